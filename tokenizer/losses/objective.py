"""The training objective of the tokenizer: the terms' weights, and the nets that they need."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from codegrid.errors import require
from codegrid.tokenizer.discriminators import DiscriminatorConfig, PatchGANConfig
from codegrid.tokenizer.fields import younger
from codegrid.tokenizer.losses.adversarial import GANLoss
from codegrid.tokenizer.losses.feature_distance import FeatureDistance, FeatureDistanceConfig
from codegrid.tokenizer.losses.perceptual import LPIPS, PerceptualNet

# Weights of the terms that compare a reconstruction with its image. At least one is above 0.
RECONSTRUCTION_WEIGHTS = ("l1_weight", "l2_weight", "smooth_l1_weight", "log_laplace_weight", "perceptual_weight")
RECONSTRUCTION_WEIGHTS += ("feature_distance_weight", "dssim_weight")
# The terms by their names in logs: each has a `<term>_weight` and a `<term>_start`.
RECONSTRUCTION_TERMS = tuple(name.removesuffix("_weight") for name in RECONSTRUCTION_WEIGHTS)
TERMS = (*RECONSTRUCTION_TERMS, "adversarial", "gradient_penalty", "r1", "lecam", "rate")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and start steps of the terms. A weight of 0 turns a term off, and it is not computed.

    `<term>_start` is the first step of a term; before it, the term is not computed. The discriminator's terms
    (gradient_penalty, r1, lecam) never start before adversarial_start. At least one reconstruction term starts at 0.

    Args:
        l1_weight: mean absolute error of the pixels in [-1, 1].
        l2_weight: mean squared error of the pixels in [-1, 1].
        smooth_l1_weight: Huber error of the pixels: quadratic for small errors, linear for large ones.
        smooth_l1_beta: the error, in units of [-1, 1], at which the quadratic part ends.
        log_laplace_weight: negative log-likelihood of the pixels, in nats per value, under a Laplace distribution whose
            scale is chosen for each image (see `log_laplace_loss`).
        dssim_weight: structural dissimilarity, (1 - SSIM) / 2. Beside a squared error of weight 1, 0.2 raised SSIM by
            0.025 and cost no PSNR (docs/experiments.md).
        perceptual_weight: LPIPS.
        perceptual_net: trunk of LPIPS.
        perceptual_weights: local file of the trunk's torchvision weights; none downloads them.
        feature_distance_weight: distance of the features of any frozen net.
        feature_distance: the net and the comparison (see `FeatureDistanceConfig`).
        adversarial_weight: weight of the GAN term, times the adaptive weight.
        gan_loss: the pair of losses of discriminator and generator (`GAN_LOSSES`).
        adversarial_start: first step of the discriminator's training and of the GAN term.
        adversarial_warmup: steps after the start over which the GAN term's weight rises from 0.
        adaptive_weight: scale the GAN term by the ratio of gradient norms on the last layer (VQGAN, eq. 7).
        adaptive_weight_max: upper bound of that ratio.
        gradient_penalty_weight: weight of `gradient_penalty`, which keeps the discriminator's gradients between real
            and fake images near length 1; 10 is published for "wasserstein".
        r1_weight: gamma of `r1_penalty`, on the discriminator's gradients on real images.
        r1_every: compute that penalty once in this many steps, with its weight multiplied by this number.
        lecam_weight: weight of `lecam_penalty`, which keeps the logits near the EMA of the other kind's logits.
        lecam_decay: decay of these EMAs per step.
        rate_weight: weight of the rate (`soft_rate`), in nats a code: what the codes cost a small prior that learns
            beside the tokenizer. The codes get easier to predict, so that compressed pictures get smaller, and the
            pictures a little worse; 0.001 and 0.002 were tried (docs/compression.md). It needs a quantizer with a table
            of codes and one code a position ("vq", "simvq"), and holds a few [N, codebook_size] matrices of a
            micro-batch of N codes.
        discriminator: the kind of discriminator, and its config.
    """

    l1_weight: float = 1.0
    l1_start: int = 0
    l2_weight: float = 0.0
    l2_start: int = 0
    smooth_l1_weight: float = 0.0
    smooth_l1_start: int = 0
    smooth_l1_beta: float = 0.1
    log_laplace_weight: float = 0.0
    log_laplace_start: int = 0
    dssim_weight: float = younger(0.0)
    dssim_start: int = younger(0)
    perceptual_weight: float = 1.0
    perceptual_start: int = 0
    perceptual_net: PerceptualNet = "vgg"
    perceptual_weights: str | None = None
    feature_distance_weight: float = 0.0
    feature_distance_start: int = 0
    feature_distance: FeatureDistanceConfig = field(default_factory=FeatureDistanceConfig)
    adversarial_weight: float = 0.5
    gan_loss: GANLoss = "hinge"
    adversarial_start: int = 20_000
    adversarial_warmup: int = 1_000
    adaptive_weight: bool = True
    adaptive_weight_max: float = 1e4
    gradient_penalty_weight: float = 0.0
    gradient_penalty_start: int = 0
    r1_weight: float = 0.0
    r1_start: int = 0
    r1_every: int = 1
    lecam_weight: float = 0.0
    lecam_start: int = 0
    lecam_decay: float = 0.999
    rate_weight: float = younger(0.0)
    rate_start: int = younger(0)
    discriminator: DiscriminatorConfig = field(default_factory=PatchGANConfig)

    def __post_init__(self) -> None:
        ruled = [f"{term}_{kind}" for term in TERMS for kind in ("weight", "start")]
        for name in (*ruled, "adversarial_warmup", "adaptive_weight_max"):
            require(getattr(self, name) >= 0, f"objective.{name} is {getattr(self, name)}.", "Give 0 or more.")
        require(
            self.smooth_l1_beta > 0, f"objective.smooth_l1_beta is {self.smooth_l1_beta}.", "Give a number above 0."
        )
        require(self.r1_every >= 1, f"objective.r1_every is {self.r1_every}.", "Give at least 1.")
        require(
            0 <= self.lecam_decay < 1,
            f"objective.lecam_decay is {self.lecam_decay}.",
            "Give a number from 0 to below 1.",
        )
        require(
            self.gan_loss != "wasserstein" or self.gradient_penalty_weight + self.r1_weight > 0,
            "objective.gan_loss wasserstein has no bound without a penalty on the discriminator's gradients.",
            "Set objective.gradient_penalty_weight (10 is published) or objective.r1_weight.",
        )
        require(
            any(getattr(self, name) for name in RECONSTRUCTION_WEIGHTS),
            "Every reconstruction term is off.",
            f"Set one of objective.{', '.join(RECONSTRUCTION_WEIGHTS)} above 0.",
        )
        require(
            any(self.is_active(term, 0) for term in RECONSTRUCTION_TERMS),
            "No reconstruction term counts at step 0.",
            "Set the start of one of them, such as objective.l1_start, to 0.",
        )

    def is_active(self, term: str, step: int) -> bool:
        """Whether `term` of `TERMS` counts at `step` (the discriminator's terms, once it has started)."""
        return getattr(self, f"{term}_weight") > 0 and step >= getattr(self, f"{term}_start")


def make_distances(config: ObjectiveConfig) -> dict[str, nn.Module]:
    """The frozen nets that compare images, by the names of their terms; terms of weight 0 are left out.

    Raises:
        MissingFileError, WeightsError: a net's weights are not available; the message names the option.
        CodegridError: the file holds another net's weights.
    """
    distances: dict[str, nn.Module] = {}
    if config.perceptual_weight:
        distances["perceptual"] = LPIPS(config.perceptual_net, config.perceptual_weights)
    if config.feature_distance_weight:
        distances["feature_distance"] = FeatureDistance(config.feature_distance)
    return distances

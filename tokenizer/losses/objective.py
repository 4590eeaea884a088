"""What the tokenizer minimises: the weighted terms of one batch, by name. No loop, no optimizer, no ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.discriminators import PatchGANConfig
from tokenizer.fields import require
from tokenizer.losses.perceptual import LPIPS, PerceptualNet


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and start steps of the terms; a weight of 0 turns a term off, and nothing of it is then computed.

    Args:
        l1_weight: mean absolute error of the pixels in [-1, 1].
        l2_weight: mean squared error of the pixels in [-1, 1].
        perceptual_weight: LPIPS.
        perceptual_net: trunk of LPIPS.
        perceptual_weights: local file of the trunk's torchvision weights; none downloads them.
        adversarial_weight: of the GAN term, times the adaptive weight.
        adversarial_start: step at which the discriminator starts to train and its verdict to count.
        adversarial_warmup: steps over which the verdict's weight rises from 0 after the start.
        adaptive_weight: scale the GAN term by the ratio of gradient norms on the last layer (VQGAN, eq. 7).
        adaptive_weight_max: bound of that ratio.
        discriminator: its shape.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 1.0
    perceptual_net: PerceptualNet = "vgg"
    perceptual_weights: str | None = None
    adversarial_weight: float = 0.5
    adversarial_start: int = 20_000
    adversarial_warmup: int = 1_000
    adaptive_weight: bool = True
    adaptive_weight_max: float = 1e4
    discriminator: PatchGANConfig = field(default_factory=PatchGANConfig)

    def __post_init__(self) -> None:
        for name in ("l1_weight", "l2_weight", "perceptual_weight", "adversarial_weight", "adaptive_weight_max"):
            require(getattr(self, name) >= 0, f"objective.{name} is {getattr(self, name)}: it must not be negative.")
        for name in ("adversarial_start", "adversarial_warmup"):
            require(getattr(self, name) >= 0, f"objective.{name} is {getattr(self, name)}: it must not be negative.")
        require(
            self.l1_weight + self.l2_weight + self.perceptual_weight > 0,
            "Every reconstruction term is off: set objective.l1_weight, l2_weight or perceptual_weight above 0.",
        )


def make_perceptual(config: ObjectiveConfig) -> LPIPS | None:
    """The frozen perceptual net, or None where its weight is 0."""
    return LPIPS(config.perceptual_net, config.perceptual_weights) if config.perceptual_weight else None


def reconstruction_terms(
    config: ObjectiveConfig, perceptual: nn.Module | None, images: Tensor, reconstruction: Tensor
) -> dict[str, Tensor]:
    """Weighted terms that compare the reconstruction with the images, both [B, C, H, W] in [-1, 1], in float32."""
    images, reconstruction = images.float(), reconstruction.float()
    terms = {}
    if config.l1_weight:
        terms["l1"] = config.l1_weight * F.l1_loss(reconstruction, images)
    if config.l2_weight:
        terms["l2"] = config.l2_weight * F.mse_loss(reconstruction, images)
    if perceptual is not None:
        terms["perceptual"] = config.perceptual_weight * perceptual(images, reconstruction).mean()
    return terms

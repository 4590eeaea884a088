"""The adversarial part of a tokenizer's training step: the generator's term and the discriminator's terms."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from codegrid.pipelines.training.learner import Learner
from codegrid.tokenizer.losses import (
    GAN_LOSSES,
    ObjectiveConfig,
    adaptive_weight,
    clamped_ratio,
    gradient_penalty,
    lecam_penalty,
    r1_penalty,
)

Terms = dict[str, Tensor]


def generator_terms(
    model: Learner,
    discriminator: Learner,
    objective: ObjectiveConfig,
    reconstruction_loss: Tensor,
    reconstruction: Tensor,
    labels: Tensor | None,
    factor: float,
    accelerator: Accelerator,
) -> tuple[Terms, Terms, Tensor]:
    """The generator's term, weight * warm-up * lambda * L_G with D frozen, and further values to log.

    This calls the unwrapped discriminator: its wrapper would wait for gradients that a frozen module never gets.

    Returns:
        the term, the values to log, and the gradient of the term plus `reconstruction_loss` at the reconstruction, of
        the reconstruction's shape. One backward pass through perceptual net and discriminator serves both the adaptive
        weight and the update.
    """
    judge = discriminator.module.requires_grad_(False)
    with accelerator.autocast():
        logits = judge(reconstruction, _labels_for(discriminator, labels))
    judge.requires_grad_(True)
    loss = GAN_LOSSES[objective.gan_loss][1](logits.float())
    (by_reconstruction,) = torch.autograd.grad(reconstruction_loss, reconstruction)
    (by_adversary,) = torch.autograd.grad(loss, reconstruction)
    ratio = torch.ones((), device=reconstruction.device)
    if objective.adaptive_weight:
        norms = adaptive_weight(reconstruction, by_reconstruction, by_adversary, model.module.last_layer)
        norms = accelerator.reduce(torch.stack(norms), "mean")
        ratio = clamped_ratio(norms[0], norms[1], objective.adaptive_weight_max)
    weight = objective.adversarial_weight * factor * ratio
    gradient = by_reconstruction + (weight * by_adversary).to(by_reconstruction)
    return {"adversarial": weight * loss.detach()}, {"adaptive_weight": ratio}, gradient


def discriminator_terms(
    discriminator: Learner,
    objective: ObjectiveConfig,
    running: Terms,
    images: Tensor,
    reconstruction: Tensor,
    labels: Tensor | None,
    step: int,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> tuple[Terms, Terms]:
    """The discriminator's weighted terms on real and reconstructed images [B, C, H, W], and its mean logits.

    The penalties' gradients go through the unwrapped module: the wrapper exchanges its own in the one backward pass.

    Args:
        labels: the images' classes, int64 [B]; only a class-conditional discriminator uses them.
        running: running means of the logits for LeCAM, "real" and "fake"; empty in the first step, which has no LeCAM
            term.
        generator: generator for the gradient penalty's draws.
    """
    reconstruction, labels = reconstruction.detach().to(images.dtype), _labels_for(discriminator, labels)
    with accelerator.autocast():
        real, fake = _judged(discriminator, images, reconstruction, labels)
    terms = {"discriminator": GAN_LOSSES[objective.gan_loss][0](real, fake)}

    def judge(pixels: Tensor) -> Tensor:
        return discriminator.module(pixels, labels)

    if objective.is_active("gradient_penalty", step):
        penalty = gradient_penalty(judge, images, reconstruction, generator)
        terms["gradient_penalty"] = objective.gradient_penalty_weight * penalty
    if objective.is_active("r1", step) and step % objective.r1_every == 0:
        # The factor r1_every keeps the mean weight per step (lazy regularization, https://arxiv.org/abs/1912.04958).
        terms["r1"] = objective.r1_weight * objective.r1_every * r1_penalty(judge, images)
    if objective.is_active("lecam", step) and running:
        terms["lecam"] = objective.lecam_weight * lecam_penalty(real, fake, running["real"], running["fake"])
    return terms, {"logits_real": real.mean(), "logits_fake": fake.mean()}


def _labels_for(discriminator: Learner, labels: Tensor | None) -> Tensor | None:
    return labels if discriminator.module.config.conditional else None


def _judged(discriminator: Learner, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of both, in one call; in two if the discriminator looks across the batch and could compare them."""
    if discriminator.module.judges_alone:
        twice = None if labels is None else labels.repeat(2)
        return discriminator.wrapped(torch.cat([real, fake]), twice).float().chunk(2)
    return discriminator.wrapped(real, labels).float(), discriminator.wrapped(fake, labels).float()


@torch.no_grad()
def update_running_logits(
    running: Terms, values: Terms, decay: float, accelerator: Accelerator, skipped: Tensor | None = None
) -> None:
    """a <- decay a + (1 - decay) E[D] for the step's mean logits over all ranks; the first step's are the initial a.

    Nothing changes if `skipped`, a scalar on the device, is 1.
    """
    means = accelerator.reduce(torch.stack([values["logits_real"], values["logits_fake"]]), "mean")
    if skipped is not None and not running and skipped:  # the host looks once in a run
        return
    for name, mean in zip(("real", "fake"), means.unbind(), strict=True):
        after = torch.lerp(mean, running[name], decay) if name in running else mean.clone()
        running[name] = (
            after if skipped is None or name not in running else torch.where(skipped > 0, running[name], after)
        )

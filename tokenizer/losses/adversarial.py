"""Adversarial terms: pure functions of logits. A large logit means real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GANLoss = Literal["hinge", "vanilla", "non_saturating", "least_squares", "wasserstein"]


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """1/2 (E[max(0, 1 - D(x))] + E[max(0, 1 + D(x_hat))]) (Lim & Ye 2017, https://arxiv.org/abs/1705.02894)."""
    return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())


def cross_entropy_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-1/2 (E[log s(D(x))] + E[log(1 - s(D(x_hat)))]), s the sigmoid (Goodfellow 2014, arXiv:1406.2661, eq. 1)."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def least_squares_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """1/2 (E[(D(x) - 1)^2] + E[D(x_hat)^2]) (Mao 2016, https://arxiv.org/abs/1611.04076)."""
    return 0.5 * ((real_logits - 1.0).square().mean() + fake_logits.square().mean())


def wasserstein_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[D(x_hat)] - E[D(x)] (Arjovsky 2017, https://arxiv.org/abs/1701.07875). Unbounded: D needs a penalty."""
    return fake_logits.mean() - real_logits.mean()


def linear_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(x_hat)]."""
    return -fake_logits.mean()


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[log s(D(x_hat))], s the sigmoid (Goodfellow 2014, arXiv:1406.2661, section 3)."""
    return F.softplus(-fake_logits).mean()


def least_squares_generator_loss(fake_logits: Tensor) -> Tensor:
    """1/2 E[(D(x_hat) - 1)^2] (Mao 2016, https://arxiv.org/abs/1611.04076)."""
    return 0.5 * (fake_logits - 1.0).square().mean()


# Pairs of losses: the discriminator's, of real and fake logits, and the generator's, of fake logits. "vanilla" has the
# meaning of taming-transformers: cross-entropy for the discriminator, but -E[D(x_hat)] for the generator; its gradient
# does not fade when the discriminator is fooled. "non_saturating" has the cross-entropy on both sides.
GAN_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge_discriminator_loss, linear_generator_loss),
    "vanilla": (cross_entropy_discriminator_loss, linear_generator_loss),
    "non_saturating": (cross_entropy_discriminator_loss, non_saturating_generator_loss),
    "least_squares": (least_squares_discriminator_loss, least_squares_generator_loss),
    "wasserstein": (wasserstein_discriminator_loss, linear_generator_loss),
}


def adaptive_weight(
    reconstruction: Tensor, by_reconstruction: Tensor, by_adversary: Tensor, last_layer: Tensor
) -> tuple[Tensor, Tensor]:
    """Norms of the two losses' gradients on the decoder's last layer; their ratio weights the adversarial term.

    lambda = |grad_L(L_rec)| / (|grad_L(L_GAN)| + delta), eq. 7 of https://arxiv.org/abs/2012.09841. It returns both
    norms, so that ranks can average them before `clamped_ratio` divides. If each rank had its own weight, the ranks
    would optimise different losses.

    Args:
        reconstruction: [B, C, H, W], the last layer's output with its graph, which is kept.
        by_reconstruction: gradient of the reconstruction loss at the reconstruction, of the same shape. From there the
            chain rule needs neither the perceptual net nor the discriminator again.
        by_adversary: the same gradient of the GAN loss.
        last_layer: the weight of the last layer.
    """
    norms = []
    for gradient in (by_reconstruction, by_adversary):
        (at_layer,) = torch.autograd.grad(reconstruction, last_layer, gradient, retain_graph=True)
        norms.append(at_layer.float().norm())
    return norms[0], norms[1]


def clamped_ratio(numerator: Tensor, denominator: Tensor, largest: float) -> Tensor:
    """numerator / (denominator + 1e-4), as in taming-transformers' code, clamped to [0, largest]."""
    return (numerator / (denominator + 1e-4)).clamp(0.0, largest).detach()


def warmup_factor(step: int, start: int, warmup_steps: int) -> float:
    """Weight of the adversarial term in [0, 1]: 0 before step `start`; then it rises to 1 over `warmup_steps`."""
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / (warmup_steps + 1))

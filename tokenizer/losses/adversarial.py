"""Adversarial terms: pure functions of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """1/2 (E[max(0, 1 - D(x))] + E[max(0, 1 + D(x_hat))]) (Lim & Ye 2017, https://arxiv.org/abs/1705.02894)."""
    return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(x_hat)]."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the two losses' gradients on the decoder's last layer; their ratio weighs the adversarial term.

    lambda = |grad_L(L_rec)| / (|grad_L(L_GAN)| + delta), eq. 7 of https://arxiv.org/abs/2012.09841. Both norms are
    returned, so that ranks can average them before `clamped_ratio` divides: a weight of one rank alone would let the
    ranks' models drift apart in what they optimise.
    """
    (by_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (by_adversary,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    return by_reconstruction.float().norm(), by_adversary.float().norm()


def clamped_ratio(numerator: Tensor, denominator: Tensor, largest: float) -> Tensor:
    """numerator / (denominator + 1e-4), as taming-transformers' code has it, clamped to [0, largest]."""
    return (numerator / (denominator + 1e-4)).clamp(0.0, largest).detach()


def warmup_factor(step: int, start: int, warmup_steps: int) -> float:
    """Weight of the adversarial term in [0, 1]: 0 before step `start`, then rising to 1 over `warmup_steps`."""
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / (warmup_steps + 1))

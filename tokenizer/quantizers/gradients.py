"""How a gradient passes a code that was chosen: both take features and their codes, and give the codes' values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Under this length a feature has no direction worth the name; the gradient's factor |e| / |z| stays finite.
_SHORTEST = 1e-6


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """e with the gradient of z (Bengio et al. 2013, https://arxiv.org/abs/1308.3432): any shape -> the same."""
    return z + (e - z).detach()


def rotation(z: Tensor, e: Tensor) -> Tensor:
    """e as |e| / |z| R z, where R turns z towards e and is a constant (Fifty et al. 2024, arXiv:2410.06424, sec. 4.2).

    The angle between a feature's gradient and the feature is then the one between the code's gradient and the code.
    R = I - 2 w w^T + 2 e' z'^T, with z' = z / |z|, e' = e / |e| and w the unit vector of z' + e'; no matrix is made.

    Args:
        z: [B, D, h, w], features.
        e: the same shape, their codes; they get no gradient.

    Returns:
        [B, D, h, w], e to float rounding, also where z is 0 or points away from e (R is a reflection there).
    """
    e = e.detach()
    with torch.no_grad():
        length = z.norm(dim=1, keepdim=True).clamp_min(_SHORTEST)  # [B, 1, h, w]
        from_, to = z / length, F.normalize(e, dim=1)
        between = F.normalize(from_ + to, dim=1)
        scale = e.norm(dim=1, keepdim=True) / length
    turned = z - 2 * between * _dot(between, z) + 2 * to * _dot(from_, z)
    return straight_through(scale * turned, e)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, keepdim=True)

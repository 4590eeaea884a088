"""Gradients through the choice of a code: each function takes features and their codes, and gives the codes' values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A shorter feature has no meaningful direction. The bound keeps the gradient's factor |e| / |z| finite.
_SHORTEST = 1e-6


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """Straight-through estimator (Bengio et al. 2013, https://arxiv.org/abs/1308.3432): e with the gradient of z."""
    return z + (e - z).detach()


def rotation(z: Tensor, e: Tensor) -> Tensor:
    """e as |e| / |z| R z; the constant R rotates z towards e (Fifty et al. 2024, arXiv:2410.06424, sec. 4.2).

    A feature and its gradient then have the same angle as the code and its gradient.
    R = I - 2 w w^T + 2 e' z'^T, with z' = z / |z|, e' = e / |e| and w the unit vector of z' + e'; no matrix is built.

    Args:
        z: [B, D, h, w], features.
        e: their codes, the same shape; they get no gradient.

    Returns:
        [B, D, h, w], equal to e up to float rounding, also if z is 0 or points away from e (R is then a reflection).
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

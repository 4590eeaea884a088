"""How good a reconstruction is, and how much of the codebook is used."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image: [B, C, H, W] in [-1, 1] twice -> [B].

    10 log10(peak^2 / MSE) with peak 2, the width of the range. The reconstruction is clamped, as it would be when it is
    saved.
    """
    error = (images.float() - reconstruction.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-10))


def ssim(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004; 11x11 Gaussian window): [B, C, H, W] in [-1, 1] -> [B].

    It is measured on intensities in [0, 1], as published figures are: its luminance term depends on where black is.
    """
    real, made = ((batch.float().clamp(-1, 1) + 1) / 2 for batch in (images, reconstruction))
    return structural_similarity_index_measure(made, real, data_range=1.0, reduction="none").reshape(-1)


def code_counts(codes: Tensor, codebook_size: int, depth: int = 1) -> Tensor:
    """How often each code occurs: any shape of int64 -> [depth * codebook_size] int64.

    Where `depth` is above 1 it is the last axis of `codes`, and each level is counted by itself, one after the other.
    """
    levels = torch.arange(depth, device=codes.device) * codebook_size  # [depth]
    return torch.bincount((codes.reshape(-1, depth) + levels).flatten(), minlength=depth * codebook_size)


def usage_and_perplexity(counts: Tensor, depth: int = 1) -> tuple[float, float]:
    """Share of the codes that occur, in [0, 1], and exp of the codes' entropy, in [1, codebook_size].

    counts: [depth * codebook_size], as `code_counts` gives them; both numbers are means over the levels.
    """
    found = [_usage_and_perplexity(level) for level in counts.chunk(depth)]
    usages, perplexities = zip(*found, strict=True)
    return sum(usages) / depth, sum(perplexities) / depth


def _usage_and_perplexity(counts: Tensor) -> tuple[float, float]:
    total = counts.sum()
    if total == 0:
        return 0.0, 1.0
    shares = counts[counts > 0].double() / total
    return float((counts > 0).double().mean()), float(torch.exp(-(shares * shares.log()).sum()))

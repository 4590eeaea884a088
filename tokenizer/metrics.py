"""Metrics of reconstructions and of codebook use."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this number of codes (times levels), every code has a count (8 MB); beyond it, only codes that occur.
MOST_COUNTS = 2**20


def psnr(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image: [B, C, H, W] in [-1, 1] twice -> [B].

    10 log10(peak^2 / MSE) with peak 2, the width of the range. The reconstruction is clamped, as when it is saved.
    """
    error = (images.float() - reconstruction.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-10))


def ssim(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004; 11x11 Gaussian window): [B, C, H, W] in [-1, 1] -> [B].

    It is measured on intensities in [0, 1], like published figures: its luminance term depends on the value of black.
    """
    real, made = ((batch.float().clamp(-1, 1) + 1) / 2 for batch in (images, reconstruction))
    from torchmetrics.functional.image import structural_similarity_index_measure  # the import takes seconds

    return structural_similarity_index_measure(made, real, data_range=1.0, reduction="none").reshape(-1)


def code_counts(codes: Tensor, codebook_size: int, depth: int = 1) -> Tensor:
    """How often each code occurs in int64 codes of any shape.

    A `depth` above 1 is the last axis of `codes`, and each level is counted separately: code k of level l has number
    l * codebook_size + k.

    Returns:
        [depth * codebook_size] int64, a count for each number. If that is more than `MOST_COUNTS`, a table [M, 2] int64
        of the numbers that occur, ascending, and their counts: its size follows the data, not the codebook (31 bits of
        LFQ would need 17 GB). `add_counts` adds up both forms.
    """
    levels = torch.arange(depth, device=codes.device) * codebook_size  # [depth]
    numbers = (codes.reshape(-1, depth) + levels).flatten()
    if depth * codebook_size <= MOST_COUNTS:
        return occurrences(numbers, depth * codebook_size)
    return torch.stack(numbers.unique(return_counts=True), 1)


def occurrences(codes: Tensor, size: int) -> Tensor:
    """How often each of the numbers 0, ..., size - 1 occurs: int64 of any shape -> int64 [size]."""
    numbers = codes.flatten()
    if numbers.device.type == "cpu":
        return torch.bincount(numbers, minlength=size)
    # On an accelerator `bincount` makes the host wait for the largest number.
    return torch.zeros(size, dtype=torch.int64, device=numbers.device).scatter_add_(
        0, numbers, torch.ones_like(numbers)
    )


def add_counts(*counts: Tensor) -> Tensor:
    """The sum of several `code_counts` of one codebook and depth."""
    if counts[0].dim() == 1:
        return sum(counts[1:], counts[0])
    rows = torch.cat(counts)  # [M, 2]
    numbers, places = rows[:, 0].unique(return_inverse=True)
    return torch.stack([numbers, torch.zeros_like(numbers).index_add_(0, places, rows[:, 1])], 1)


def counts_of_levels(counts: Tensor, codebook_size: int, depth: int = 1) -> list[Tensor]:
    """Each level's counts [M] from `code_counts`: of all its codes, or from a table, of those that occur."""
    if counts.dim() == 1:
        return list(counts.chunk(depth))
    levels = counts[:, 0] // codebook_size
    return [counts[levels == level, 1] for level in range(depth)]


def relative_counts(counts: Tensor, codebook_size: int, depth: int = 1) -> Tensor:
    """`code_counts` divided by their mean: float [M], 1 for a code that occurs as often as the mean."""
    if counts.dim() == 1:
        return counts / counts.float().mean()
    return counts[:, 1] / (counts[:, 1].float().sum() / (depth * codebook_size))


def usage_and_perplexity(counts: Tensor, depth: int = 1, codebook_size: int | None = None) -> tuple[float, float]:
    """Share of the codes that occur, in [0, 1], and exp of the codes' entropy, in [1, codebook_size].

    Both are means over the levels.

    Args:
        counts: the result of `code_counts`, or a multiple of it.
        codebook_size: number of codes; optional if `counts` has one count for each code.
    """
    codebook_size = codebook_size or len(counts) // depth
    levels = counts_of_levels(counts.cpu(), codebook_size, depth)  # MPS has no float64
    found = [_usage_and_perplexity(level[level > 0].double(), codebook_size) for level in levels]
    usages, perplexities = zip(*found, strict=True)
    return sum(usages) / depth, sum(perplexities) / depth


def _usage_and_perplexity(counts: Tensor, codebook_size: int) -> tuple[float, float]:
    """counts [M], each above zero."""
    if not len(counts):
        return 0.0, 1.0
    shares = counts / counts.sum()
    return len(counts) / codebook_size, float(torch.exp(-(shares * shares.log()).sum()))

"""k-means by Lloyd's iterations, for the initial codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.tokenizer.metrics import occurrences
from codegrid.tokenizer.quantizers.nearest import nearest_codes


@torch.no_grad()
def kmeans(rows: Tensor, start: Tensor, iterations: int, on_sphere: bool = False) -> Tensor:
    """Move each mean to the middle of its nearest rows, `iterations` times.

    It stops early when no mean moves any more. A mean without nearest rows stays where it is. The same rows and start
    give the same means.

    Args:
        rows: [N, D].
        start: [K, D], the first means.
        on_sphere: rows and means are unit vectors, and the middle is the mean direction (spherical k-means, Dhillon and
            Modha 2001, https://doi.org/10.1023/A:1007612920971).

    Returns:
        [K, D].
    """
    means = start
    for _ in range(iterations):
        nearest = nearest_codes(rows, means, on_sphere)  # [N]
        size = occurrences(nearest, len(means))[:, None]  # [K, 1]
        middle = sum_by_code(nearest, rows, len(means)) / size.clamp_min(1)
        if on_sphere:
            middle = F.normalize(middle, dim=1)
        moved = torch.where(size > 0, middle, means)
        if torch.equal(moved, means):
            break
        means = moved
    return means


def sum_by_code(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """Sum of the rows of each code: [N], [N, D] -> [codebook_size, D].

    It is computed as the gradient of a look-up. torch's documentation lists `index_add_`, but not this operation, among
    those without a fixed order on CUDA, which would break a bitwise resume.
    """
    with torch.enable_grad():
        table = rows.new_zeros(codebook_size, rows.shape[1], requires_grad=True)
        return torch.autograd.grad(F.embedding(codes, table), table, rows)[0]

"""The nearest code of each feature, in bounded memory; and the distances to all codes, where a loss needs them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.tokenizer.quantizers.shortlist import nearest_of_shortlist, pays, rounded

# Number of float32 scores held at once: 1 MB, which fits into a CPU core's own cache. On a GPU it is 1 GiB: smaller
# products would be many launches, and each reads the whole codebook.
_SCORES_AT_ONCE = {"cpu": 262_144}
_SCORES_AT_ONCE_ELSEWHERE = 2**28
# With wider codes, a product needs more rows to be worth reading the codebook: two rows per channel, as long as their
# scores take at most 32 MB.
_SCORES_AT_MOST = 8_388_608
# Codes per block. torch finds a maximum with vector instructions, but the index of a maximum without them. Finding the
# blocks' maxima first, and the index in the best block only, takes half the time at a width of 8.
_BLOCK = 256


@torch.no_grad()
def nearest_codes(rows: Tensor, codebook: Tensor, on_sphere: bool = False) -> Tensor:
    """Index of the nearest code for each row; ties go to the lower code: [N, D], [K, D] -> [N] int64.

    argmin |z - e|^2 = argmax (z.e - |e|^2 / 2); on the sphere the second part is the same for every code. Rows are
    processed in chunks, so that the [N, K] matrix never exists; in an exported program, which has no loop over a number
    of rows that it does not know, it does. Where a CPU multiplies bfloat16, `shortlist.py` finds wide codes, the
    nearest by float64. Elsewhere float32's rounding decides between codes that are as near.
    """
    if pays(rows, codebook):
        return _by_shortlist(rows, codebook, on_sphere)
    return _by_scores(rows, codebook, on_sphere)


def _by_shortlist(rows: Tensor, codebook: Tensor, on_sphere: bool) -> Tensor:
    whole, codes = rounded(codebook, on_sphere), [torch.empty(0, dtype=torch.int64)]
    step = max(1, 2 * _SCORES_AT_MOST // len(codebook))  # as many bytes as other scores
    memory = rows.new_empty(min(step, len(rows)), whole.matrix.shape[1], dtype=torch.bfloat16)
    for part in rows.split(step):
        nearest, found = nearest_of_shortlist(part, codebook, whole, on_sphere, memory)
        if not found.all():
            nearest[~found] = _by_scores(part[~found], codebook, on_sphere)
        codes.append(nearest)
    return torch.cat(codes)


def _by_scores(rows: Tensor, codebook: Tensor, on_sphere: bool) -> Tensor:
    size = len(codebook)
    codebook = F.pad(codebook, (0, 0, 0, -size % _BLOCK))  # whole blocks
    offset = torch.zeros_like(codebook[:, 0]) if on_sphere else -0.5 * codebook.square().sum(1)
    offset[size:] = -torch.inf
    transposed = codebook.t()
    if torch.compiler.is_exporting():
        return torch.addmm(offset, rows, transposed).argmax(1)
    at_once = _SCORES_AT_ONCE.get(rows.device.type, _SCORES_AT_ONCE_ELSEWHERE)
    wide_enough = min(2 * codebook.shape[1], _SCORES_AT_MOST // len(codebook))
    step = min(len(rows), max(1, wide_enough, at_once // len(codebook)))
    scores = rows.new_empty(step, len(codebook))
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    numbers = torch.arange(step, device=rows.device)
    for start in range(0, len(rows), max(1, step)):
        chunk = rows[start : start + step]  # [n, D]
        blocks = torch.addmm(offset, chunk, transposed, out=scores[: len(chunk)]).unflatten(1, (-1, _BLOCK))
        best = blocks.amax(2).argmax(1)  # [n]
        within = blocks[numbers[: len(chunk)], best].argmax(1)  # [n]
        codes[start : start + step] = best * _BLOCK + within
    return codes.clamp_(max=size - 1)  # a row of infinities has NaN scores beyond the codebook


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """|z - e|^2 of all pairs at once, with a gradient: [N, D], [K, D] -> [N, K]."""
    return torch.addmm(rows.square().sum(1)[:, None] + codebook.square().sum(1), rows, codebook.t(), alpha=-2)

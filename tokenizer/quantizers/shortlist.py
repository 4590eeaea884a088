"""The nearest codes by bfloat16 scores, which leave few codes over, and by float64 among these few: exact, and faster.

Where a processor multiplies bfloat16 (AVX-512 or AMX), wide codes cost less in it than in float32. Its scores are
wrong by no more than a known bound, so every code that can be the nearest is that close to the best score.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

# Below these widths and numbers of a codebook [K, D], finding the maxima is the time, and float32 is as fast.
_LEAST_WIDTH, _LEAST_NUMBERS = 64, 2**20
_MOST_LEFT = 8  # blocks of codes that may be left over of a row
_BLOCK = 256
# Half a unit in the last place, relative, of bfloat16 and float32; and what may be lost where numbers underflow.
_HALF_ULP, _FLOAT32, _TINY = 2.0**-8, 2.0**-24, 1e-30


class Rounded(NamedTuple):
    """A codebook [K, D] as the scores read it. Codes are moved by their mean, which changes no order of distances.

    Attributes:
        mean: what the codes are moved by, and the rows too unless the codes are on the sphere, [D].
        matrix: bfloat16 [D + 3, K'], K' whole blocks: e', then -|e|^2 / 2 (0 on the sphere) in three parts, since three
            bfloat16 hold the 24 bits of a float32.
        residual, norm, half: the largest |e - e'|, |e'| and |e|^2 / 2, with e' the rounded e.
    """

    mean: Tensor
    matrix: Tensor
    residual: Tensor
    norm: Tensor
    half: Tensor


def pays(rows: Tensor, codebook: Tensor) -> bool:
    """Whether the shortlist is the faster way. It does not depend on the number of rows."""
    wide = codebook.shape[1] >= _LEAST_WIDTH and codebook.numel() >= _LEAST_NUMBERS
    kind = rows.device.type == "cpu" and rows.dtype == codebook.dtype == torch.float32
    # A trace cannot know how many codes are left over.
    return kind and wide and _multiplies_bfloat16() and not torch.compiler.is_compiling()


@functools.cache
def _multiplies_bfloat16() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def rounded(codebook: Tensor, on_sphere: bool) -> Rounded:
    """See `Rounded`."""
    mean = codebook.mean(0)
    moved = codebook - mean
    coarse = moved.bfloat16()
    half = torch.zeros_like(moved[:, 0]) if on_sphere else 0.5 * moved.square().sum(1)
    parts, left = [], -half
    for _ in range(3):
        parts.append(left.bfloat16())
        left = left - parts[-1]
    matrix = torch.cat([coarse, torch.stack(parts, 1)], 1)
    missing = -len(codebook) % _BLOCK
    if missing:
        matrix = torch.cat([matrix, matrix[:1].expand(missing, -1)])  # the first code again, behind all others
    residual = torch.linalg.vector_norm(moved - coarse, dim=1).amax()
    norm = torch.linalg.vector_norm(coarse, dim=1, dtype=torch.float32).amax()
    return Rounded(mean, matrix.t(), residual, norm, half.amax())


def nearest_of_shortlist(
    rows: Tensor, codebook: Tensor, whole: Rounded, on_sphere: bool, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[N, D], [K, D] -> the nearest codes by float64, ties to the lower: [N] int64; and where they are found, bool [N].

    They are not found where many codes are as near as the bound, or a number is not finite.

    The score of row z and code e is s = z.e - |e|^2 / 2, and t the computed one. With z' and e' the rounded z and e,

        |s - t| <= b + 2^-8 |t|,  b = |z| |e - e'| + |z - z'| |e'| + 4 (D + 3) 2^-24 (|z'| |e'| + |e|^2 / 2),

    by the inequality of Cauchy and Schwarz, the sums in float32, and the rounding of t. So the nearest code's t has
    t + 2^-8 |t| >= T - 2^-8 |T| - 2 b, where T is the largest t.

    Args:
        memory: bfloat16 for the scores, [at least N, K'].
    """
    moved = rows if on_sphere else rows - whole.mean
    coarse = moved.bfloat16()
    left = torch.cat([coarse, coarse.new_ones(len(rows), 3)], 1)
    scores = torch.mm(left, whole.matrix, out=None if memory is None else memory[: len(rows)])  # [n, K'] bfloat16
    blocks = scores.unflatten(1, (-1, _BLOCK))
    tops = blocks.amax(2).float()  # [n, K' / 256]
    best = tops.amax(1)
    least = best - _HALF_ULP * best.abs() - 2 * _bound(moved, coarse, whole)
    least -= 1.01 * _HALF_ULP * least.abs()
    close = tops >= least[:, None]
    number = close.sum(1)
    found = (number > 0) & (number <= _MOST_LEFT)
    row, block = (close & found[:, None]).nonzero(as_tuple=True)
    pair, within = (blocks[row, block].float() >= least[row, None]).nonzero(as_tuple=True)
    row, code = row[pair], block[pair] * _BLOCK + within
    real = code < len(codebook)
    return _nearest_of_pairs(rows, codebook, row[real], code[real], on_sphere), found


def _nearest_of_pairs(rows: Tensor, codebook: Tensor, row: Tensor, code: Tensor, on_sphere: bool) -> Tensor:
    """The best code of each row among some pairs of a row and a code, [P] each -> [N]; 0 for a row of no pair."""
    last, none = len(codebook), codebook.new_full((len(rows),), -torch.inf, dtype=torch.float64)
    scores = []
    for own, other in zip(row.split(_BLOCK * _BLOCK), code.split(_BLOCK * _BLOCK), strict=True):
        exact = codebook[other].double()
        score = (rows[own].double() * exact).sum(1)
        scores.append(score if on_sphere else score - 0.5 * exact.square().sum(1))
    score = torch.cat([none[:0], *scores])
    wins = score == none.scatter_reduce(0, row, score, "amax")[row]
    nearest = torch.full_like(none, last, dtype=torch.int64).scatter_reduce_(0, row[wins], code[wins], "amin")
    return nearest.where(nearest < last, 0)


def _bound(moved: Tensor, coarse: Tensor, whole: Rounded) -> Tensor:
    """b of `nearest_of_shortlist` for each row, [n], and a little more: it is itself computed in float32."""
    norm, residual = (torch.linalg.vector_norm(each, dim=1) for each in (moved, moved - coarse))
    size = torch.linalg.vector_norm(coarse, dim=1, dtype=torch.float32)
    sums = 4 * (moved.shape[1] + 3) * _FLOAT32 * (size * whole.norm + whole.half)
    return 1.001 * (norm * whole.residual + residual * whole.norm + sums) + _TINY

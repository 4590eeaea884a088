"""A tokenizer over pictures too large for its memory: overlapping tiles.

Every code is taken from the tile in whose middle it lies most. Decoded tiles are blended: a pixel's weight in a tile
falls linearly to the tile's edge over the overlap, so that there is no seam.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from codegrid.errors import require

# Codes that tiles share at least by default, where half of a tile has as many. With two of eight, steps at the tiles'
# borders were 1.2 times those beside them, with four 0.96 times (docs/compression.md).
_LEAST_OVERLAP = 4


def encode_tiles(
    encode: Callable[[Tensor], Tensor], images: Tensor, factor: int, tile: int, overlap: int | None
) -> Tensor:
    """Codes [B, h, w(, depth)] of images [B, C, H, W], which `encode` sees in tiles.

    Args:
        factor: pixels per code along a side.
        tile, overlap: in pixels, multiples of `factor`; None is a quarter of the tile, of small ones up to a half. See
            `places`.
    """
    size, shared = in_codes(factor, tile, overlap)
    rows, columns = (places(side // factor, size, shared) for side in images.shape[2:])
    parts = []
    for top, (first_row, last_row) in zip(rows, owned(rows, size, images.shape[2] // factor), strict=True):
        line = []
        for left, (first, last) in zip(columns, owned(columns, size, images.shape[3] // factor), strict=True):
            pixels = images[:, :, top * factor : (top + size) * factor, left * factor : (left + size) * factor]
            codes = encode(pixels)
            line.append(codes[:, first_row - top : last_row - top, first - left : last - left])
        parts.append(torch.cat(line, 2))
    return torch.cat(parts, 1)


def decode_tiles(
    decode: Callable[[Tensor], Tensor], codes: Tensor, factor: int, tile: int, overlap: int | None
) -> Tensor:
    """Images [B, C, H, W] of codes [B, h, w(, depth)], which `decode` sees in tiles."""
    size, shared = in_codes(factor, tile, overlap)
    height, width = codes.shape[1:3]
    rows, columns = places(height, size, shared), places(width, size, shared)
    images, total = None, torch.zeros(height * factor, width * factor, device=codes.device)
    for top in rows:
        for left in columns:
            part = decode(codes[:, top : top + size, left : left + size])  # [B, C, <= tile, <= tile]
            across = _ramps(part.shape[2], shared * factor, top > 0, top + size < height, part.device)
            along = _ramps(part.shape[3], shared * factor, left > 0, left + size < width, part.device)
            weight = across[:, None] * along
            if images is None:
                images = part.new_zeros(*part.shape[:2], height * factor, width * factor)
            where = (slice(top * factor, (top + size) * factor), slice(left * factor, (left + size) * factor))
            images[(..., *where)] += weight.to(part.dtype) * part
            total[where] += weight
    assert images is not None  # a grid has at least one tile
    return images / total.to(images.dtype)


def places(length: int, size: int, shared: int) -> list[int]:
    """Where tiles of `size` begin that cover `length`, evenly, any two neighbours sharing at least `shared`."""
    if length <= size:
        return [0]
    number = -(-(length - shared) // (size - shared))
    return [round(index * (length - size) / (number - 1)) for index in range(number)]


def owned(starts: list[int], size: int, length: int) -> list[tuple[int, int]]:
    """For each tile the first code that is taken from it, and the first behind: borders lie midway in the overlap."""
    borders = [(before + size + start) // 2 for before, start in itertools.pairwise(starts)]
    return list(zip([0, *borders], [*borders, length], strict=True))


def _ramps(length: int, shared: int, rises: bool, falls: bool, device: torch.device) -> Tensor:
    """Weights [length] in (0, 1]: 1, or linear over `shared` pixels from an edge where another tile lies."""
    steps = (torch.arange(length, device=device) + 0.5) / max(1, shared)
    weights = torch.ones(length, device=device)
    weights = torch.minimum(weights, steps) if rises else weights
    return torch.minimum(weights, steps.flip(0)) if falls else weights


def in_codes(factor: int, tile: int, overlap: int | None) -> tuple[int, int]:
    """Tile and overlap in codes instead of pixels, checked."""
    if overlap is None:
        codes = max(0, tile // factor)
        overlap = max(codes // 4, min(codes // 2, _LEAST_OVERLAP)) * factor
    require(
        tile % factor == 0 and overlap % factor == 0 and 0 <= overlap <= tile // 2 and tile > 0,
        f"tile is {tile} and overlap {overlap} pixels.",
        f"Give multiples of {factor}, the overlap at most half of the tile.",
    )
    return tile // factor, overlap // factor

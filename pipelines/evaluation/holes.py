"""The holes that inpainting is scored with: masks of pixels, the same for a picture in every evaluation of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

HoleName = Literal["centre", "right", "random", "strokes"]

_STROKES, _POINTS = 3, 4  # strokes a picture, and corners of each
_THIN = 32  # a stroke is this share of the shorter side wide: 2 pixels of 64


def hole_masks(
    name: HoleName, rows: Sequence[int], size: tuple[int, int], grid: tuple[int, int], seed: int
) -> np.ndarray:
    """Masks bool [N, H, W], True where the picture is drawn again.

    Args:
        name: "centre": the middle half of each side; "right": the right half; "random": half of the cells of the code
            grid, of each picture its own; "strokes": thin lines across the picture, of each its own.
        rows: numbers of the pictures, which choose the random holes together with `seed`.
        size: height and width of the pictures.
        grid: height and width of the code grid.
    """
    return np.stack([_mask(name, np.random.default_rng([seed, row]), size, grid) for row in rows])


def _mask(name: HoleName, random: np.random.Generator, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    height, width = size
    mask = np.zeros(size, dtype=bool)
    if name == "centre":
        mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    elif name == "right":
        mask[:, width // 2 :] = True
    elif name == "random":
        cells = np.zeros(grid[0] * grid[1], dtype=bool)
        cells[random.permutation(len(cells))[: max(1, len(cells) // 2)]] = True
        down, across = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
        mask = cells.reshape(grid)[down[:, None], across[None]]
    else:
        picture = Image.new("L", (width, height))
        for _ in range(_STROKES):
            corners = random.random((_POINTS, 2)) * (width - 1, height - 1)
            thick = max(1, round(min(size) / _THIN))
            ImageDraw.Draw(picture).line([tuple(corner) for corner in corners.tolist()], fill=255, width=thick)
        mask = np.array(picture) > 0
    return mask

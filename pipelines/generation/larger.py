"""Pictures larger than trained: a size in pixels -> a grid of codes, and drawing grids of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.pipelines.generation.arguments import whole_number
from codegrid.prior import SequenceConfig, to_codes
from codegrid.prior.sampling import iterate_codes
from codegrid.prior.window_sampling import iterate_windows
from codegrid.tokenizer import VQModelConfig


def grid_of_size(config: VQModelConfig, height: Any, width: Any) -> tuple[int, int]:
    """Height and width in pixels -> rows and columns of codes. None is the trained size.

    Raises:
        CodegridError: a size is no multiple of the pixels of a position, or below the trained size.
    """
    factor, trained = config.pixels_per_position, config.preprocessing_config.size
    grid = []
    for name, value, least in zip(("height", "width"), (height, width), trained, strict=True):
        pixels = least if value is None else whole_number(name, value)
        require(
            pixels >= least,
            f"{name} is {pixels} pixels, and the prior was trained on {least}.",
            f"Give {least} or more.",
        )
        below = pixels // factor * factor
        require(
            pixels == below,
            f"{name} is {pixels} pixels, and a code stands for {factor}x{factor}.",
            f"Give a multiple of {factor}: {below} or {below + factor}.",
        )
        grid.append(pixels // factor)
    return grid[0], grid[1]


def iterate_grids(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    grid_shape: tuple[int, int],
    labels: Tensor | None,
    prefix_codes: Tensor | None = None,
    window_labels: Tensor | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Grids [n, H, W] or [n, H, W, depth] of each batch: of the trained size, or by windows of a larger one.

    `window_labels` are those of `iterate_windows`, `options` those of `iterate_codes`; the call itself raises the
    errors about arguments.
    """
    if tuple(grid_shape) == tuple(sequence.grid_shape):
        batches = iterate_codes(model, sequence, labels, prefix_codes=prefix_codes, **options)
        return (to_codes(batch, sequence, validate=False) for batch in batches)  # drawn codes are codes
    require(
        prefix_codes is None,
        "prefix_codes is given for a picture larger than trained.",
        "Go on from a picture's codes with `pipe.outpaint`.",
    )
    return iterate_windows(model, sequence, grid_shape, labels, window_labels=window_labels, **options)


def known_in(codes: Tensor, grid_shape: tuple[int, int], top: int, left: int) -> tuple[Tensor, Tensor]:
    """Codes [N, h, w(, depth)] in a grid of another shape, at a row and a column.

    Returns:
        codes [N, H, W(, depth)], and which positions have none, bool [H, W].
    """
    rows, columns = slice(top, top + codes.shape[1]), slice(left, left + codes.shape[2])
    around = codes.new_zeros(len(codes), *grid_shape, *codes.shape[3:])
    around[:, rows, columns] = codes
    unknown = torch.ones(grid_shape, dtype=torch.bool)
    unknown[rows, columns] = False
    return around, unknown

"""Grids of images with names, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from codegrid.pipelines.pictures.lettering import lettering

_SPACE = 2
_WIDEST_NAME = 240  # pixels
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def labelled_rows(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    least_side: int = 64,
    stand_ins: Sequence[str | None] | None = None,
) -> Image.Image:
    """A line of images per row, after the row's name. Small images are enlarged to about `least_side` pixels.

    Names are cut to 240 pixels. A name that no font of the system can write is replaced by the row's stand-in (ASCII).
    """
    width, height = (max(image.size[axis] for _, images in rows for image in images) for axis in (0, 1))
    scale = max(1, round(least_side / width))
    width, height = width * scale + _SPACE, height * scale + _SPACE
    written = [
        lettering(name, 14, _WIDEST_NAME, stand_in)
        for (name, _), stand_in in zip(rows, stand_ins or [None] * len(rows), strict=True)
    ]
    margin = max(math.ceil(name.width) for name in written) + 12
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (margin + columns * width, len(rows) * height + _SPACE), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for line, (name, (_, images)) in enumerate(zip(written, rows, strict=True)):
        top = _SPACE + line * height
        draw.text((6, top + (height - _SPACE) // 2), name.text, fill=_BLACK, font=name.font, anchor="lm")
        for column, image in enumerate(images):
            enlarged = image.convert("RGB").resize(
                (image.width * scale, image.height * scale), Image.Resampling.NEAREST
            )
            sheet.paste(enlarged, (margin + column * width, top))
    return sheet


def grid(images: Sequence[Image.Image], columns: int = 8, least_side: int = 64) -> Image.Image:
    """A grid of images, `columns` per row, without names."""
    return labelled_rows(
        [("", images[first : first + columns]) for first in range(0, len(images), columns)], least_side
    )


def class_sheet(
    images: Sequence[Image.Image], names: Sequence[str] | None, labels: Sequence[Any] | None = None
) -> Image.Image:
    """The images in one picture: a named row per class, or a plain grid without `names`.

    Args:
        names: of each image's class.
        labels: of each image's class; a label stands in the place of a name that no font of the system can write.
    """
    if names is None:
        return grid(images)
    rows: dict[str, list[Image.Image]] = {}
    for image, name in zip(images, names, strict=False):
        rows.setdefault(name, []).append(image)
    numbers = {} if labels is None else dict(zip(names, map(str, labels), strict=False))
    return labelled_rows(list(rows.items()), stand_ins=[numbers.get(name) for name in rows])


def differences(images: Tensor, reconstruction: Tensor) -> Tensor:
    """2 * |image - reconstruction| as pictures; equal pixels are black. All are [B, C, H, W] in [-1, 1]."""
    return (2 * (images - reconstruction).abs() - 1).clamp(-1, 1)

"""Grids of images with names, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SPACE = 2
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def labelled_rows(rows: Sequence[tuple[str, Sequence[Image.Image]]], least_side: int = 64) -> Image.Image:
    """A line of images per row, after the row's name. Small images are enlarged to about `least_side` pixels."""
    width, height = (max(image.size[axis] for _, images in rows for image in images) for axis in (0, 1))
    scale = max(1, round(least_side / width))
    width, height = width * scale + _SPACE, height * scale + _SPACE
    font = ImageFont.load_default(size=14)
    margin = max(math.ceil(font.getlength(name)) for name, _ in rows) + 12
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (margin + columns * width, len(rows) * height + _SPACE), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for line, (name, images) in enumerate(rows):
        top = _SPACE + line * height
        draw.text((6, top + (height - _SPACE) // 2), name, fill=_BLACK, font=font, anchor="lm")
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


def class_sheet(images: list[Image.Image], names: list[str] | None) -> Image.Image:
    """The images in one picture: a named row per class, or a plain grid without `names`."""
    if names is None:
        return grid(images)
    rows = {name: [image for image, other in zip(images, names, strict=False) if other == name] for name in names}
    return labelled_rows([(name, row) for name, row in rows.items() if row])


def differences(images: Tensor, reconstruction: Tensor) -> Tensor:
    """2 * |image - reconstruction| as pictures; equal pixels are black. All are [B, C, H, W] in [-1, 1]."""
    return (2 * (images - reconstruction).abs() - 1).clamp(-1, 1)

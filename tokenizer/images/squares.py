"""Loaded pictures -> the squares that the tokenizer reads, uint8 [S, S, C]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from codegrid.errors import CodegridError, require
from codegrid.tokenizer.fields import younger
from codegrid.tokenizer.images.decoding import MAX_PIXELS, PIL_PIXEL_LIMIT, BadImage


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become square arrays; part of the tokenizer's config, because codes mean nothing without it.

    Args:
        image_size: side of the prepared picture in pixels.
        fit: "crop" scales the short side to image_size (PIL bicubic, antialiased) and cuts a square; "pad" keeps the
            pixels, scales down only what is larger than image_size, and centres it on black; "stretch" scales both
            sides to image_size.
        smaller: pictures smaller than image_size under "crop" and "stretch": "skip" leaves them out, "upscale" scales
            them up. "pad" never needs it.
        max_pixels: pictures with more pixels are left out before they are decoded (decompression bombs).
        max_aspect: pictures whose long side is more than this many times the short side are left out.
        colour: "srgb" turns the colours of pictures with an ICC profile (Display P3, Adobe RGB, CMYK, grey) into sRGB;
            "stored" takes the stored numbers for sRGB, as tokenizers of 0.1.0 do, whose config.json does not say.
    """

    image_size: int = 256
    fit: Literal["crop", "pad", "stretch"] = "crop"
    smaller: Literal["skip", "upscale"] = "skip"
    max_pixels: int = MAX_PIXELS
    max_aspect: float = 20.0
    colour: Literal["stored", "srgb"] = younger("srgb", before="stored")

    def __post_init__(self) -> None:
        choices = {"fit": ("crop", "pad", "stretch"), "smaller": ("skip", "upscale"), "colour": ("stored", "srgb")}
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, f"preprocessing.{name} is {value!r}: it must be one of {', '.join(allowed)}.")
        for name, most in {"image_size": 16384, "max_pixels": PIL_PIXEL_LIMIT, "max_aspect": 10_000}.items():
            value = getattr(self, name)
            require(1 <= value <= most, f"preprocessing.{name} is {value}: it must lie in [1, {most}].")


class TenCropVariant(NamedTuple):
    """One of the ten crops: where the square is cut (y and x, fractions of the free room), and whether mirrored."""

    position: tuple[float, float]
    flip: bool


# Variants 0 to 4: top left, top right, bottom left, bottom right, centre; 5 to 9: the same five, mirrored.
_FIVE = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
TEN_CROP = tuple(TenCropVariant(position, flip) for flip in (False, True) for position in _FIVE)
TEN_CROP_SCALE = 1.1


def prepare(
    image: Image.Image,
    preprocessing: Preprocessing,
    channels: int = 3,
    *,
    crop: Literal["center"] | tuple[float, float] | int = "center",
    flip: bool = False,
) -> np.ndarray:
    """Cut a loaded picture to the square that the tokenizer reads.

    Args:
        image: what `load_image` gave.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma; exact for pictures that are grey already).
        crop: "center"; or (y, x) in [0, 1], the place of the square within the free room (training draws it); or
            0 to 9, a variant of `TEN_CROP`: as in ADM and LlamaGen the central square at 1.1 times image_size, of which
            four corners and the centre are cut, then the same mirrored. Under "pad" and "stretch" nothing is cut off:
            a position is without effect, and a variant is refused.
        flip: mirror left and right (a mirrored TEN_CROP variant is mirrored back).

    Returns:
        uint8 [image_size, image_size, channels].

    Raises:
        BadImage: too_small or extreme_aspect.
        CodegridError: an argument is out of range.
    """
    if channels not in (1, 3):
        raise CodegridError(
            f"channels is {channels}: pictures are grey (1) or colour (3). Set backbone.in_channels to one."
        )
    _check_shape(image.size, preprocessing)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if isinstance(crop, (int, np.integer)):
        position, mirrored = _ten_crop_variant(int(crop), preprocessing)
        flip = flip != mirrored
        square = _cut(_scale_short_side(image, round(preprocessing.image_size * TEN_CROP_SCALE)), (0.5, 0.5))
        image = _cut(square, position, preprocessing.image_size)
    else:
        image = _fit(image, preprocessing, _position(crop))
    # Mirrored before it is padded: the padding may be one pixel wider on one side, and valid_box must still hold.
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
    array = np.asarray(_centre_on_black(image, preprocessing.image_size))
    return np.array(array if channels == 3 else array[:, :, None])  # a copy: PIL's memory is read-only


def _check_shape(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    short, long = min(size), max(size)
    if long > short * preprocessing.max_aspect:
        raise BadImage(
            "extreme_aspect",
            f"A picture of {size[0]}x{size[1]} pixels is a strip: max_aspect allows {preprocessing.max_aspect:g} to 1.",
        )
    if preprocessing.fit != "pad" and preprocessing.smaller == "skip" and short < preprocessing.image_size:
        raise BadImage(
            "too_small",
            f"A picture of {size[0]}x{size[1]} pixels is smaller than image_size {preprocessing.image_size}. Set "
            "preprocessing.smaller to upscale to scale them up, or preprocessing.fit to pad to keep their pixels.",
        )


def _position(crop: Literal["center"] | tuple[float, float]) -> tuple[float, float]:
    if crop == "center":
        return 0.5, 0.5
    if isinstance(crop, str) or len(crop) != 2 or not all(0 <= fraction <= 1 for fraction in crop):
        raise CodegridError(f'crop is {crop!r}: it must be "center", two fractions (y, x) in [0, 1], or 0 to 9.')
    return crop


def _ten_crop_variant(index: int, preprocessing: Preprocessing) -> TenCropVariant:
    require(0 <= index < len(TEN_CROP), f"crop is {index}: ten-crop variants are numbered 0 to {len(TEN_CROP) - 1}.")
    require(preprocessing.fit == "crop", f'Ten-crop needs preprocessing.fit "crop", not {preprocessing.fit!r}.')
    return TEN_CROP[index]


def _fit(image: Image.Image, preprocessing: Preprocessing, position: tuple[float, float]) -> Image.Image:
    """The picture scaled and cut, not yet padded."""
    side = preprocessing.image_size
    if preprocessing.fit == "stretch":
        return _resize(image, (side, side))
    if preprocessing.fit == "crop":
        return _cut(_scale_short_side(image, side), position, side)
    left, top, right, bottom = valid_box(image.size, preprocessing)
    return _resize(image, (right - left, bottom - top))


def _centre_on_black(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    canvas = Image.new(image.mode, (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _scale_short_side(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    return _resize(image, tuple(max(side, round(length * scale)) for length in image.size))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    # Bicubic with PIL's antialiasing. reducing_gap=3 shrinks large pictures by whole-number box averages first, down to
    # three times the wanted size: several times faster, and hardly to be told from the plain filter.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _cut(image: Image.Image, position: tuple[float, float], side: int | None = None) -> Image.Image:
    """The square of `side` (None: the short side) at `position` of the free room."""
    side = min(image.size) if side is None else side
    top = _offset(image.height - side, position[0])
    left = _offset(image.width - side, position[1])
    return image.crop((left, top, left + side, top + side))


def _offset(room: int, fraction: float) -> int:
    """0 to `room`, each for an equal share of the fractions in [0, 1]; 0.5 gives room // 2."""
    return max(0, math.ceil(fraction * (room + 1)) - 1)


def valid_box(original_size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the part of a prepared picture that is no padding; all of it for crop and stretch.

    Args:
        original_size: (width, height) as loaded.
    """
    side = preprocessing.image_size
    if preprocessing.fit != "pad":
        return 0, 0, side, side
    scale = min(1.0, side / max(original_size))
    width, height = (max(1, round(length * scale)) for length in original_size)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, left + width, top + height

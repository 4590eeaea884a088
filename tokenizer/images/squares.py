"""Loaded pictures -> the rectangles (squares, mostly) that the tokenizer reads, uint8 [H, W, C]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from codegrid.errors import CodegridError, require
from codegrid.tokenizer.fields import younger
from codegrid.tokenizer.images.bands import Bands
from codegrid.tokenizer.images.decoding import MAX_PIXELS, PIL_PIXEL_LIMIT
from codegrid.tokenizer.images.depth import Levels
from codegrid.tokenizer.images.reasons import BadImage

MAX_SIDE = 16_384  # of the prepared picture


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become arrays of one size; part of the tokenizer's config, because codes mean nothing without it.

    Args:
        image_size: side of the prepared picture in pixels, or its height and width (`--preprocessing.image-size 180
            360`); what is square is kept as one number.
        fit: "crop" scales the picture until it just covers image_size (PIL bicubic, antialiased) and cuts off what lies
            beyond; "pad" keeps the pixels, scales down only what is larger than image_size, and centres it on black;
            "stretch" scales both sides to image_size.
        smaller: pictures smaller than image_size under "crop" and "stretch": "skip" leaves them out, "upscale" scales
            them up. "pad" never needs it.
        max_pixels: pictures with more pixels are left out before they are decoded (decompression bombs).
        max_aspect: pictures whose long side is more than this many times the short side are left out.
        colour: "srgb" turns the colours of pictures with an ICC profile (Display P3, Adobe RGB, CMYK, grey) into sRGB;
            "stored" takes the stored numbers for sRGB, as tokenizers of 0.1.0 do, whose config.json does not say.
        white: stored value that is white in pictures of more than 8 bits, such as 4095 for 12 bits in 16-bit files;
            what lies above is cut. None is 65535 for integers, and 1 or 255 for floats.
        black: stored value that is black in them.
    """

    image_size: int | tuple[int, int] = 256
    fit: Literal["crop", "pad", "stretch"] = "crop"
    smaller: Literal["skip", "upscale"] = "skip"
    max_pixels: int = MAX_PIXELS
    max_aspect: float = 20.0
    colour: Literal["stored", "srgb"] = younger("srgb", before="stored")
    white: float | None = younger(None)
    black: float = younger(0.0)

    def __post_init__(self) -> None:
        self._check_size()
        choices = {"fit": ("crop", "pad", "stretch"), "smaller": ("skip", "upscale"), "colour": ("stored", "srgb")}
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, f"preprocessing.{name} is {value!r}.", f"It must be one of {', '.join(allowed)}.")
        for name, most in {"max_pixels": PIL_PIXEL_LIMIT, "max_aspect": 10_000}.items():
            value = getattr(self, name)
            require(1 <= value <= most, f"preprocessing.{name} is {value}.", f"It must lie in [1, {most}].")

        white = 1 if self.white is None else self.white
        require(
            math.isfinite(self.black) and math.isfinite(white) and (self.white is None or self.black < white),
            f"preprocessing.black is {self.black} and white {self.white}.",
            "They must be numbers, black below white.",
        )

    @property
    def levels(self) -> Levels:
        """Black and white of pictures of more than 8 bits."""
        return Levels(self.black, self.white)

    def _check_size(self) -> None:
        sides = self.image_size if isinstance(self.image_size, (tuple, list)) else (self.image_size,) * 2
        fits = len(sides) == 2 and all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MAX_SIDE for side in sides
        )
        require(
            fits,
            f"preprocessing.image_size is {self.image_size}.",
            f"It must be a whole number in [1, {MAX_SIDE}], or two of them, height and width.",
        )
        # One number for a square: what is computed of a config stays as it was when sides were always alike.
        object.__setattr__(self, "image_size", sides[0] if sides[0] == sides[1] else tuple(sides))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the prepared picture."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def size_text(self) -> str:
        """The size for people."""
        height, width = self.size
        return f"{height}x{width}" + ("" if height == width else " (height x width)")


class TenCropVariant(NamedTuple):
    """One of the ten crops: where the picture is cut (y and x, fractions of the free room), and whether mirrored."""

    position: tuple[float, float]
    flip: bool


# Variants 0 to 4: top left, top right, bottom left, bottom right, centre; 5 to 9: the same five, mirrored.
_FIVE = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
TEN_CROP = tuple(TenCropVariant(position, flip) for flip in (False, True) for position in _FIVE)
TEN_CROP_SCALE = 1.1


def prepare(
    image: Image.Image | Bands,
    preprocessing: Preprocessing,
    channels: int = 3,
    *,
    crop: Literal["center"] | tuple[float, float] | int = "center",
    flip: bool = False,
) -> np.ndarray:
    """Cut a loaded picture to what the tokenizer reads.

    Args:
        image: what `open_picture` gave for these channels.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma; exact for pictures that are grey already). Of other numbers,
            each channel is scaled and cut by itself.
        crop: "center"; or (y, x) in [0, 1], the place of the cut within the free room (training draws it); or 0 to 9,
            a variant of `TEN_CROP`: as in ADM and LlamaGen the central part at 1.1 times image_size, of which
            four corners and the centre are cut, then the same mirrored. Under "pad" and "stretch" nothing is cut off:
            a position is without effect, and a variant is refused.
        flip: mirror left and right (a mirrored TEN_CROP variant is mirrored back).

    Returns:
        uint8 [H, W, channels], H and W those of image_size.

    Raises:
        BadImage: too_small or extreme_aspect.
        CodegridError: an argument is out of range.
    """
    check_size(image.size, preprocessing)
    if isinstance(image, Bands):
        require(
            image.values.shape[2] == channels,
            f"The picture has {image.values.shape[2]} channels, not {channels}.",
            "Open it with the number of channels that it is prepared with.",
        )
        planes = [Image.fromarray(image.values[:, :, channel]) for channel in range(channels)]
        return np.stack([np.asarray(_prepared(plane, preprocessing, crop, flip)) for plane in planes], axis=2)
    require(
        channels in (1, 3),
        f"A picture of PIL has 1 or 3 channels, not {channels}.",
        "For another backbone.in_channels, open it with `open_picture`.",
    )
    mode = "L" if channels == 1 else "RGB"
    array = np.asarray(_prepared(image if image.mode == mode else image.convert(mode), preprocessing, crop, flip))
    return np.array(array if channels == 3 else array[:, :, None])  # a copy: PIL's memory is read-only


def _prepared(
    image: Image.Image, preprocessing: Preprocessing, crop: Literal["center"] | tuple[float, float] | int, flip: bool
) -> Image.Image:
    if isinstance(crop, (int, np.integer)):
        position, mirrored = _ten_crop_variant(int(crop), preprocessing)
        flip = flip != mirrored
        larger = tuple(round(side * TEN_CROP_SCALE) for side in preprocessing.size)
        image = _cut(_cut(_cover(image, larger), (0.5, 0.5), larger), position, preprocessing.size)
    else:
        image = _fit(image, preprocessing, _position(crop))
    # Mirrored before it is padded: the padding may be one pixel wider on one side, and valid_box must still hold.
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
    return _centre_on_black(image, preprocessing.size)


def check_size(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Whether a picture of this width and height can be prepared.

    Raises:
        BadImage: too_small or extreme_aspect.
    """
    short, long = min(size), max(size)
    if long > short * preprocessing.max_aspect:
        raise BadImage(
            "extreme_aspect",
            f"A picture of {size[0]}x{size[1]} pixels is a strip: max_aspect allows {preprocessing.max_aspect:g} to 1.",
        )
    height, width = preprocessing.size
    shown = height if height == width else f"{height} (height) and {width} (width)"
    smaller = size[1] < height or size[0] < width
    if preprocessing.fit != "pad" and preprocessing.smaller == "skip" and smaller:
        raise BadImage(
            "too_small",
            f"A picture of {size[0]}x{size[1]} pixels is smaller than image_size {shown}. Set preprocessing.smaller to "
            "upscale to scale them up, or preprocessing.fit to pad to keep their pixels.",
        )


def _position(crop: Literal["center"] | tuple[float, float]) -> tuple[float, float]:
    if crop == "center":
        return 0.5, 0.5
    if isinstance(crop, str) or len(crop) != 2 or not all(0 <= fraction <= 1 for fraction in crop):
        raise CodegridError(f"crop is {crop!r}.", 'It must be "center", two fractions (y, x) in [0, 1], or 0 to 9.')
    return crop


def _ten_crop_variant(index: int, preprocessing: Preprocessing) -> TenCropVariant:
    require(
        0 <= index < len(TEN_CROP), f"crop is {index}.", f"Ten-crop variants are numbered 0 to {len(TEN_CROP) - 1}."
    )
    require(preprocessing.fit == "crop", f"preprocessing.fit is {preprocessing.fit!r}.", 'Ten-crop needs "crop".')
    return TEN_CROP[index]


def _fit(image: Image.Image, preprocessing: Preprocessing, position: tuple[float, float]) -> Image.Image:
    """The picture scaled and cut, not yet padded."""
    height, width = preprocessing.size
    if preprocessing.fit == "stretch":
        return _resize(image, (width, height))
    if preprocessing.fit == "crop":
        return _cut(_cover(image, preprocessing.size), position, preprocessing.size)
    left, top, right, bottom = valid_box(image.size, preprocessing)
    return _resize(image, (right - left, bottom - top))


def _centre_on_black(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture as small as it covers `size` (height, width)."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    return _resize(image, (max(width, round(image.width * scale)), max(height, round(image.height * scale))))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    # Bicubic with PIL's antialiasing. reducing_gap=3 shrinks large pictures by whole-number box averages first, down to
    # three times the wanted size: several times faster, and hardly to be told from the plain filter.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _cut(image: Image.Image, position: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """The part of `size` (height, width) at `position` of the free room."""
    height, width = size
    top = _offset(image.height - height, position[0])
    left = _offset(image.width - width, position[1])
    return image.crop((left, top, left + width, top + height))


def _offset(room: int, fraction: float) -> int:
    """0 to `room`, each for an equal share of the fractions in [0, 1]; 0.5 gives room // 2."""
    return max(0, math.ceil(fraction * (room + 1)) - 1)


def valid_box(original_size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the part of a prepared picture that is no padding; all of it for crop and stretch.

    Args:
        original_size: (width, height) as loaded.
    """
    height, width = preprocessing.size
    if preprocessing.fit != "pad":
        return 0, 0, width, height
    scale = min(1.0, height / original_size[1], width / original_size[0])
    inner_width, inner_height = (max(1, round(length * scale)) for length in original_size)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height

"""Picture files -> upright RGB -> uint8 arrays -> model tensors, and back. The only place that knows [-1, 1].

load_image      bytes or file        -> PIL image, RGB, upright, first frame, clear parts on white
prepare         PIL image            -> uint8 [S, S, C], S = preprocessing.image_size
to_model        uint8 [B, H, W, C]   -> float32 [B, C, H, W] in [-1, 1]
to_uint8        [B, C, H, W]         -> uint8 [B, H, W, C]
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError

from codegrid.tokenizer.fields import require

Image.init()  # registers all formats; otherwise a rare one is an unknown name below
# Decoders that work on pixels in memory. Left out on purpose: EPS and its like, which start other programs.
FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM") if name in Image.OPEN)
IMAGE_EXTENSIONS = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")

_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_MAX_FILE_BYTES = 1 << 30
_PIL_PIXEL_LIMIT = 178_956_970  # twice Image.MAX_IMAGE_PIXELS as shipped: above it PIL refuses on its own
# What PIL raises on hostile bytes. KeyError, IndexError, TypeError, ... come from plugins that trust their header.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError)
_DECODING_ERRORS += (RuntimeError, MemoryError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError)
_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


class BadImage(ValueError):  # noqa: N818  (it names the picture's state; callers skip it and go on)
    """A picture that must be left out.

    Args:
        reason: one snake_case word to count by: empty_file, truncated, not_an_image, unreadable, too_many_pixels,
            file_too_large, unsupported_depth, too_small or extreme_aspect.
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling out of a DataLoader worker
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


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
    """

    image_size: int = 256
    fit: Literal["crop", "pad", "stretch"] = "crop"
    smaller: Literal["skip", "upscale"] = "skip"
    max_pixels: int = 64_000_000
    max_aspect: float = 20.0

    def __post_init__(self) -> None:
        for name, allowed in {"fit": ("crop", "pad", "stretch"), "smaller": ("skip", "upscale")}.items():
            value = getattr(self, name)
            require(value in allowed, f"preprocessing.{name} is {value!r}: it must be one of {', '.join(allowed)}.")
        for name, most in {"image_size": 16384, "max_pixels": _PIL_PIXEL_LIMIT, "max_aspect": 10_000}.items():
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


def load_image(data: bytes | str | Path, max_pixels: int = Preprocessing.max_pixels) -> Image.Image:
    """Decode a picture to 8-bit RGB, upright, its first frame, clear parts on white.

    16-bit grey is scaled, not clipped. Bytes that stop early are refused, never filled up with grey.

    Args:
        data: the file's bytes, or its path.
        max_pixels: the limit that the header's size is held against before anything is decoded.

    Raises:
        BadImage: the picture must be left out; `.reason` says why.
        FileNotFoundError: there is no such file. (Other trouble of the disk is raised as it is, too.)
    """
    where = "The picture"
    if not isinstance(data, (bytes, bytearray, memoryview)):
        where = str(data)
        data = _read_file(Path(data))
    data = bytes(data)
    if not data:
        raise BadImage("empty_file", f"{where} is empty (0 bytes).")
    try:
        with _strict_and_quiet():
            return _decode(data, max_pixels, where)
    except BadImage:
        raise
    except _DECODING_ERRORS as error:
        raise _as_bad_image(error, data, where) from error


def _read_file(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise BadImage("file_too_large", f"{path} has {size} bytes; more than {_MAX_FILE_BYTES} are not read.")
        return path.read_bytes()
    except (PermissionError, IsADirectoryError) as error:
        raise BadImage("unreadable", f"{path} cannot be opened: {error.strerror}.") from error


@contextmanager
def _strict_and_quiet() -> Iterator[None]:
    """No warnings out of PIL, and no grey filling even where the program around us has switched it on."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode(data: bytes, max_pixels: int, where: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
    _check_pixels(image.size, max_pixels, where)
    image.load()
    _check_pixels(image.size, max_pixels, where)  # a decoder may find another size than its header's
    orientation = _orientation(image)
    image = _to_rgb(image, where)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _check_pixels(size: tuple[int, int], max_pixels: int, where: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadImage(
            "too_many_pixels", f"{where} has {width}x{height} pixels; preprocessing.max_pixels allows {max_pixels}."
        )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODING_ERRORS:  # a broken EXIF block is no reason to lose a readable picture
        return 1


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image, where)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # alpha_composite blends and rounds in 8 bits; the colour stored below clear pixels does not show
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    # copy() leaves the plugin's class, its file and its metadata behind
    return image.convert("RGB") if image.mode != "RGB" else Image.Image.copy(image)


def _deep_grey_to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Grey of more than 8 bits. Integers up to 65,535 are 16-bit; floats up to 1 are a unit range, up to 255 8-bit."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    is_float = image.mode == "F"
    if not (low >= 0 and high <= (255 if is_float else 65535)):  # also true of NaN
        raise BadImage(
            "unsupported_depth",
            f"{where} has grey values from {low} to {high}, whose white is not known: save it with 8 or 16 bits.",
        )
    white = (1 if high <= 1 else 255) if is_float else 65535
    grey = np.rint(values.astype(np.float32) * (255 / white)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _as_bad_image(error: BaseException, data: bytes, where: str) -> BadImage:
    detail = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return BadImage("too_many_pixels", f"{where} has more pixels than preprocessing.max_pixels can allow: {detail}")
    if isinstance(error, UnidentifiedImageError):
        if data.startswith(_SIGNATURES):
            return BadImage("unreadable", f"{where} starts like a picture but its header cannot be read.")
        return BadImage("not_an_image", f"{where} is no picture in a known format ({', '.join(FORMATS)}).")
    if "truncat" in detail.lower() or isinstance(error, EOFError):
        return BadImage("truncated", f"{where} stops in the middle: {detail}.")
    return BadImage("unreadable", f"{where} cannot be decoded: {detail}.")


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
        ValueError: an argument is out of range.
    """
    if channels not in (1, 3):
        raise ValueError(
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
        raise ValueError(f'crop is {crop!r}: it must be "center", two fractions (y, x) in [0, 1], or 0 to 9.')
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


def to_model(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1], on the same device.

    Raises:
        ValueError: another dtype or number of dimensions.
    """
    pixels = torch.as_tensor(pixels)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(f"Pixels must be uint8 [B, H, W, C], not {pixels.dtype} {list(pixels.shape)}.")
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] of any float dtype -> uint8 [B, H, W, C]: clamped to [-1, 1] and rounded; undoes `to_model` exactly.

    Raises:
        ValueError: not a float tensor of four dimensions.
    """
    if not images.is_floating_point() or images.ndim != 4:
        raise ValueError(f"Images must be floats [B, C, H, W], not {images.dtype} {list(images.shape)}.")
    pixels = images.detach().float().add(1.0).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """[B, C, H, W] in [-1, 1] -> B pictures, grey for C = 1 and RGB for C = 3.

    Raises:
        ValueError: another number of channels, or what `to_uint8` refuses.
    """
    pixels = to_uint8(images).cpu().numpy()
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(f"Pictures have 1 or 3 channels, not {pixels.shape[-1]}.")
    return [Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array) for array in pixels]

"""Pictures -> upright 8-bit RGB, clear parts on white; what cannot be used raises `BadImage` with a reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from codegrid.names import shown
from codegrid.tokenizer.images.colour import to_srgb

Image.init()  # registers all formats; otherwise a rare one is an unknown name below
# Decoders that work on pixels in memory. Left out on purpose: EPS and its like, which start other programs.
FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM") if name in Image.OPEN)
IMAGE_EXTENSIONS = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")

# Of `Preprocessing`: above twice Image.MAX_IMAGE_PIXELS as shipped PIL refuses on its own.
MAX_PIXELS, PIL_PIXEL_LIMIT = 64_000_000, 178_956_970

_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_MAX_FILE_BYTES = 1 << 30
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


def load_image(
    data: bytes | str | Path | Image.Image,
    max_pixels: int = MAX_PIXELS,
    *,
    colour: Literal["stored", "srgb"] = "stored",
) -> Image.Image:
    """A picture as 8-bit RGB, upright, a file's first frame, clear parts on white.

    16-bit grey is scaled, not clipped. Bytes that stop early are refused, never filled up with grey. The result carries
    nothing of the file beside its pixels (no EXIF, no profile), so that loading it again changes nothing.

    Args:
        data: the file's bytes, or its path; or a picture of PIL in any mode, which is treated like the file that it was
            opened from (its current frame is taken).
        max_pixels: the limit that the header's size is held against before anything is decoded.
        colour: "srgb" turns the colours of a picture with a profile into sRGB; "stored" takes the numbers as they are.

    Raises:
        BadImage: the picture must be left out; `.reason` says why.
        FileNotFoundError: there is no such file. (Other trouble of the disk is raised as it is, too.)
    """
    where = "The picture"
    if not isinstance(data, (bytes, bytearray, memoryview, Image.Image)):
        where = shown(data)
        data = _read_file(Path(data))
    if not isinstance(data, Image.Image):
        data = bytes(data)
        if not data:
            raise BadImage("empty_file", f"{where} is empty (0 bytes).")
    try:
        with _strict_and_quiet():
            image = data if isinstance(data, Image.Image) else _open(data)
            return _upright_rgb(image, max_pixels, where, colour == "srgb")
    except BadImage:
        raise
    except _DECODING_ERRORS as error:
        raise _as_bad_image(error, data if isinstance(data, bytes) else b"", where) from error


def _read_file(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise BadImage(
                "file_too_large", f"{shown(path)} has {size} bytes; more than {_MAX_FILE_BYTES} are not read."
            )
        return path.read_bytes()
    except (PermissionError, IsADirectoryError) as error:
        raise BadImage("unreadable", f"{shown(path)} cannot be opened: {error.strerror}.") from error


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


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only


def _upright_rgb(image: Image.Image, max_pixels: int, where: str, in_srgb: bool) -> Image.Image:
    _check_pixels(image.size, max_pixels, where)
    image.load()
    _check_pixels(image.size, max_pixels, where)  # a decoder may find another size than its header's
    orientation = _orientation(image)
    image = _to_rgb(image, where, image.info.get("icc_profile") if in_srgb else None)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info = {}  # an orientation left here would turn the picture again when it is loaded again
    return image


def _check_pixels(size: tuple[int, int], max_pixels: int, where: str) -> None:
    width, height = size
    if width * height == 0:
        raise BadImage("too_small", f"{where} has no pixels ({width}x{height}).")
    if width * height > max_pixels:
        raise BadImage(
            "too_many_pixels", f"{where} has {width}x{height} pixels; preprocessing.max_pixels allows {max_pixels}."
        )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODING_ERRORS:  # a broken EXIF block is no reason to lose a readable picture
        return 1


def _to_rgb(image: Image.Image, where: str, profile: bytes | None) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_srgb(_deep_grey_to_8_bits(image, where), profile).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        # Grey stays grey until its profile was applied.
        image = to_srgb(image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA"), profile).convert("RGBA")
        # alpha_composite blends and rounds in 8 bits; the colour stored below clear pixels does not show
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if profile:
        # a palette's colours are RGB; HSV and the like have no profiles of their own
        image = to_srgb(image if image.mode in ("1", "L", "CMYK") else image.convert("RGB"), profile)
    # copy() leaves the plugin's class and its file behind
    return image.convert("RGB") if image.mode != "RGB" else Image.Image.copy(image)


def _deep_grey_to_8_bits(image: Image.Image, where: str) -> Image.Image:
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
    return Image.fromarray(grey)


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

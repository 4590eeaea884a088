"""Pictures -> upright 8-bit RGB, clear parts on white; what cannot be used raises `BadImage` with a reason."""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError

from codegrid.names import shown
from codegrid.tokenizer.images.bands import has_hidden_samples
from codegrid.tokenizer.images.colour import to_srgb
from codegrid.tokenizer.images.depth import (
    FORMATS_OWN,
    Levels,
    colour_to_8_bits,
    grey_to_8_bits,
    is_deep,
    is_deep_grey,
    is_negative,
    stated_white,
)
from codegrid.tokenizer.images.reasons import BadImage

Image.init()  # registers all formats; otherwise a rare one is an unknown name below
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
if HAS_HEIF:  # the extra `heif`
    import pillow_heif

    pillow_heif.register_heif_opener()
# Decoders that work on pixels in memory. Left out on purpose: EPS and its like, which start other programs. TGA is the
# last: its files have no first bytes of their own.
_KNOWN = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "QOI", "TGA")
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
IMAGE_EXTENSIONS = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif")
IMAGE_EXTENSIONS += (".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".j2c", ".qoi", ".tga")
IMAGE_EXTENSIONS += (".heic", ".heif", ".hif") if HAS_HEIF else ()
# Arrays of numpy are pictures, too, where they are the only ones: beside pictures they are mostly something else.
ARRAY_EXTENSION = ".npy"

# Of `Preprocessing`: above twice Image.MAX_IMAGE_PIXELS as shipped PIL refuses on its own.
MAX_PIXELS, PIL_PIXEL_LIMIT = 64_000_000, 178_956_970

_SIGNATURES = (
    b"qoif",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"\x89PNG",
    b"\xff\xd8",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
)
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


class _Reading(NamedTuple):
    """How a picture is read; see `load_image`."""

    max_pixels: int
    in_srgb: bool
    levels: Levels
    where: str
    keep_alpha: bool


def load_image(
    data: bytes | str | Path | Image.Image,
    max_pixels: int = MAX_PIXELS,
    *,
    colour: Literal["stored", "srgb"] = "stored",
    levels: Levels = FORMATS_OWN,
    keep_alpha: bool = False,
    where: str = "The picture",
) -> Image.Image:
    """A picture as 8-bit RGB, upright, a file's first frame, clear parts on white.

    16-bit grey is scaled, not clipped. Bytes that stop early are refused, never filled up with grey. The result carries
    nothing of the file beside its pixels (no EXIF, no profile), so that loading it again changes nothing; of a picture
    of more than 8 bits, `info["peak"]` is the largest value as a share of white.

    Args:
        data: the file's bytes, or its path; or a picture of PIL in any mode, which is treated like the file that it was
            opened from (its current frame is taken).
        max_pixels: the limit that the header's size is held against before anything is decoded.
        colour: "srgb" turns the colours of a picture with a profile into sRGB; "stored" takes the numbers as they are.
        levels: which stored values are black and white in pictures of more than 8 bits.
        keep_alpha: give RGBA instead, in which the colour of wholly clear pixels is white.
        where: what the picture is called in messages, where it is no path.

    Raises:
        BadImage: the picture must be left out; `.reason` says why.
        FileNotFoundError: there is no such file. (Other trouble of the disk is raised as it is, too.)
    """
    if not isinstance(data, (bytes, bytearray, memoryview, Image.Image)):
        where = shown(data)
        data = read_file(Path(data))
    if not isinstance(data, Image.Image):
        data = bytes(data)
        if not data:
            raise BadImage("empty_file", f"{where} is empty (0 bytes).")
    reading = _Reading(max_pixels, colour == "srgb", levels, where, keep_alpha)
    try:
        with _strict_and_quiet():
            return _upright_rgb(*_opened(data), reading)
    except BadImage:
        raise
    except _DECODING_ERRORS as error:
        raise _as_bad_image(error, data if isinstance(data, bytes) else b"", where) from error


def read_file(path: Path) -> bytes:
    """A picture's file.

    Raises:
        BadImage: it is too large, or may not be read.
        OSError: as the disk says, FileNotFoundError among others.
    """
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


def _opened(data: bytes | Image.Image) -> tuple[Image.Image, bytes]:
    """The picture, of which only the header is read, and its file's bytes; none where they are not at hand."""
    if isinstance(data, bytes):
        return Image.open(io.BytesIO(data), formats=FORMATS), data
    file = getattr(data, "fp", None) if is_deep(data) and not is_deep_grey(data) else None
    if file is None or not file.seekable():
        return data, b""
    place = file.tell()
    file.seek(0)
    stored = file.read()
    file.seek(place)
    return data, stored


def _upright_rgb(image: Image.Image, data: bytes, reading: _Reading) -> Image.Image:
    _check_pixels(image.size, reading.max_pixels, reading.where)
    deep_colour, white = is_deep(image) and not is_deep_grey(image), stated_white(image)
    if white and image.mode == "RGB" and reading.levels.given and reading.levels != (0, white):
        raise BadImage(
            "unsupported_depth",
            f"{reading.where} says itself that {white} is white, and its colours are read by that alone: "
            "preprocessing.white and black are others. Save it as a 16-bit PNG.",
        )
    if has_hidden_samples(image):
        raise BadImage("wrong_channels", f"{reading.where} has planes beside the first, which would not be read.")
    image.load()
    _check_pixels(image.size, reading.max_pixels, reading.where)  # a decoder may find another size than its header's
    orientation, profile = _orientation(image), image.info.get("icc_profile") if reading.in_srgb else None
    peak = None
    if deep_colour:
        image, peak = colour_to_8_bits(image, data, reading.levels, reading.where)
    elif is_deep_grey(image):
        # Tokenizers whose config.json does not say "srgb" took the stored numbers.
        negative = reading.in_srgb and is_negative(image)
        image, peak = grey_to_8_bits(image, reading.levels, reading.where, white=white, negative=negative)
    image = _to_rgb(image, profile, reading.keep_alpha)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    # An orientation left here would turn the picture again when it is loaded again.
    image.info = {} if peak is None else {"peak": peak}
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


def _to_rgb(image: Image.Image, profile: bytes | None, keep_alpha: bool) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        # Grey stays grey until its profile was applied.
        image = to_srgb(image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA"), profile).convert("RGBA")
        if keep_alpha:
            clear = image.getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)
            image.paste((255, 255, 255, 0), mask=clear)
            return image
        # alpha_composite blends and rounds in 8 bits; the colour stored below clear pixels does not show
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if profile:
        # a palette's colours are RGB; HSV and the like have no profiles of their own
        image = to_srgb(image if image.mode in ("1", "L", "CMYK") else image.convert("RGB"), profile)
    if keep_alpha:
        return image.convert("RGB").convert("RGBA")
    # copy() leaves the plugin's class and its file behind
    return image.convert("RGB") if image.mode != "RGB" else Image.Image.copy(image)


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

"""Pictures of any number of channels: arrays in .npy files, pages and samples of .tif files, RGBA."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from codegrid.tokenizer.images.depth import Levels, deep_to_8_bits
from codegrid.tokenizer.images.reasons import BadImage

ARRAY_MAGIC, TIFF_MAGICS = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MULTISPECTRAL = 'pip install "codegrid[multispectral]"'
# Tags of TIFF 6.0.
_ORIENTATION, _SAMPLES_PER_PIXEL, _PLANAR_CONFIGURATION = 274, 277, 284


class Bands:
    """A picture of any number of channels, with the attributes of a PIL picture that are asked for.

    Args:
        values: uint8 [H, W, C].
        peak: the largest value as a share of white, where the picture has more than 8 bits.
    """

    def __init__(self, values: np.ndarray, peak: float | None = None) -> None:
        self.values = values
        self.info: dict[str, Any] = {} if peak is None else {"peak": peak}

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.values.shape[1], self.values.shape[0]


def read_npy(data: bytes, max_pixels: int, where: str) -> np.ndarray:
    """The array in a .npy file's bytes; nothing of it is unpickled.

    Raises:
        BadImage: it holds objects or fields, is not whole, or is larger than `max_pixels` allows.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, in_columns, dtype = header(stream)
    except (ValueError, KeyError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
        raise BadImage("unreadable", f"{where} starts like a .npy file, but its header cannot be read.") from error
    if dtype.kind not in "biuf":
        raise BadImage("unsupported_depth", f"{where} holds values of type {dtype}: pictures are numbers.")
    size = int(np.prod(shape, dtype=object)) if shape else 1
    _check_size(shape, max_pixels, where)
    if len(data) - stream.tell() < size * dtype.itemsize:
        raise BadImage("truncated", f"{where} stops in the middle: its array is {dtype} {list(shape)}.")
    array = np.frombuffer(data, dtype, count=size, offset=stream.tell())
    return array.reshape(shape, order="F" if in_columns else "C")


def bands_of_array(array: np.ndarray, channels: int, levels: Levels, where: str) -> Bands:
    """An array of numbers [H, W, C], or [H, W] for one channel, as a picture; more than 8 bits are scaled.

    Raises:
        BadImage: it has another shape, or values whose white is not known.
    """
    found = array[:, :, None] if array.ndim == 2 else array
    if found.ndim != 3 or found.shape[2] != channels:
        kind = f"{array.dtype} {list(array.shape)}"
        first = array.ndim == 3 and array.shape[0] == channels
        raise BadImage(
            "wrong_channels",
            f"{where} is an array {kind}, and the tokenizer reads {channels} channels: [H, W, {channels}]"
            + (". Its channels seem to come first: save it permuted to (1, 2, 0)." if first else "."),
        )
    if not found.size:
        raise BadImage("too_small", f"{where} is an array {list(array.shape)}, which has no pixels.")
    values, peak = deep_to_8_bits(found, levels, where)
    return Bands(np.ascontiguousarray(values), peak)


def bands_of_tiff(data: bytes, channels: int, levels: Levels, max_pixels: int, where: str) -> Bands | None:
    """A TIFF whose samples or pages are `channels` channels, as they are stored; None where it is an ordinary picture.

    Raises:
        BadImage: it has another number of channels, or samples that only tifffile reads, which is missing.
    """
    opened = _opened(data)
    if opened is None:
        return bands_of_array(_by_tifffile(data, max_pixels, where), channels, levels, where)
    samples, pages = opened.tag_v2.get(_SAMPLES_PER_PIXEL, 1), opened.n_frames
    if samples == 1 and pages > 1:
        array = _upright(_pages(opened, max_pixels, where), opened.tag_v2.get(_ORIENTATION, 1))
    elif samples in (1, 3) or (samples in (2, 4) and samples != channels) or opened.mode == "CMYK":
        return None  # grey or colours, with or without alpha
    elif opened.mode == "RGBA" and opened.tile[0][3][0] == "RGBA":  # 8 bits, not premultiplied
        _check_size((*opened.size, samples), max_pixels, where)
        array = _upright(np.asarray(opened), opened.tag_v2.get(_ORIENTATION, 1))
    else:
        array = _by_tifffile(data, max_pixels, where)
    return bands_of_array(array, channels, levels, where)


def has_hidden_samples(image: Image.Image) -> bool:
    """Whether a TIFF has planes beside the one that Pillow reads."""
    tags = getattr(image, "tag_v2", {})
    return (
        tags.get(_PLANAR_CONFIGURATION, 1) == 2 and tags.get(_SAMPLES_PER_PIXEL, 1) > 1 and len(image.getbands()) == 1
    )


def _opened(data: bytes) -> Any:
    """The TIFF as Pillow opens it; None where it does not, or would read one plane of several."""
    try:
        image = Image.open(io.BytesIO(data), formats=("TIFF",))
    except Exception:  # whatever a plugin raises of a header; tifffile has the next word
        return None
    return None if has_hidden_samples(image) else image


def _pages(image: Any, max_pixels: int, where: str) -> np.ndarray:
    """Pages of one channel each: [H, W, pages]."""
    _check_size((*image.size, image.n_frames), max_pixels, where)
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if len(image.getbands()) != 1 or (pages and image.size[::-1] != pages[0].shape):
            raise BadImage("wrong_channels", f"{where} has pages of different sizes or kinds: channels are alike.")
        pages.append(np.asarray(image))
    return np.stack(pages, axis=2)


def _by_tifffile(data: bytes, max_pixels: int, where: str) -> np.ndarray:
    """The first picture of a TIFF [H, W, C]: its samples or pages are the last axis."""
    try:
        import tifffile
    except ImportError as error:
        raise BadImage(
            "needs_tifffile", f"{where} has samples that Pillow does not read, but tifffile does: {MULTISPECTRAL}."
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series, orientation = file.series[0], file.pages[0].tags.get(_ORIENTATION)
            _check_size(series.shape, max_pixels, where)
            array, axes = series.asarray(), series.axes
    except BadImage:
        raise
    except Exception as error:  # whatever it raises of damaged bytes, or of a compression that it lacks
        raise BadImage("unreadable", f"{where} cannot be decoded by tifffile: {error}.") from error
    others = [place for place, axis in enumerate(axes) if axis not in "YX"]
    if "Y" not in axes or "X" not in axes or len(others) > 1:
        raise BadImage("wrong_channels", f"{where} has the axes {axes}: channels are one axis beside Y and X.")
    array = np.moveaxis(array, others[0], 2) if others else array[:, :, None]
    return _upright(array, orientation.value if orientation else 1)


def _check_size(shape: tuple[int, ...], max_pixels: int, where: str) -> None:
    """`max_pixels` holds for a picture's sides; of channels there may be many, so four times as many values may be."""
    sides = sorted(shape)[-2:]
    if np.prod(sides, dtype=object) > max_pixels or np.prod(shape, dtype=object) > 4 * max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"{where} is an array {list(shape)}; preprocessing.max_pixels allows {max_pixels} pixels, and four times "
            "as many values.",
        )


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] turned as the tag Orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)  # rows become columns: 5 alone
    down, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if right else 1]

"""Anything that is a picture -> what the model sees: the one way in for training, tokenizing, `encode` and the demo."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.tokenizer.images.bands import ARRAY_MAGIC, TIFF_MAGICS, Bands, bands_of_array, bands_of_tiff, read_npy
from codegrid.tokenizer.images.decoding import load_image, read_file
from codegrid.tokenizer.images.depth import FORMATS_OWN, Levels, deep_to_8_bits
from codegrid.tokenizer.images.pixels import check_images, to_model
from codegrid.tokenizer.images.reasons import BadImage
from codegrid.tokenizer.images.squares import Preprocessing, prepare

# A path, a file's bytes, an open file, a row of `datasets` ({"bytes": ..., "path": ...}), PIL in any mode; uint8 or
# uint16 [H, W] or [H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA), as an array or a tensor.
Picture: TypeAlias = "bytes | str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_KINDS = "a path, bytes, a PIL picture, a uint8 array or tensor [H, W, C], several, or floats [N, C, H, W] in [-1, 1]"


def open_picture(picture: Picture, preprocessing: Preprocessing, channels: int = 3) -> Image.Image | Bands:
    """A picture as `preprocessing` says, not yet cut: RGB, upright, clear parts on white.

    For other numbers of channels than 1 and 3 these are `Bands`: an array's last axis, a TIFF's samples or pages, or
    (4) red, green, blue and alpha.

    Raises:
        BadImage: it must be left out; `.reason` says why.
        CodegridError: it is no picture: of another type, or an array of another shape or dtype.
        FileNotFoundError: there is no such file.
    """
    where = "The picture"
    if isinstance(picture, dict) and ("bytes" in picture or "path" in picture):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy has no bfloat16
    if isinstance(picture, (np.ndarray, np.generic)) and not isinstance(picture, str):  # numpy's texts are both
        array = _checked_array(picture, channels)
        if channels not in (1, 3):
            return bands_of_array(array, channels, preprocessing.levels, "The array")
        picture = _from_array(array, preprocessing)
    elif hasattr(picture, "read") and not isinstance(picture, (Image.Image, Path)):
        picture = picture.read()
    elif isinstance(picture, (str, os.PathLike)):
        where, picture = shown(picture), read_file(Path(picture))
    known = (bytes, bytearray, memoryview, Image.Image)
    require(isinstance(picture, known), f"{_name(picture)} is no picture.", f"Give {_KINDS}.")
    if not isinstance(picture, Image.Image):
        return _of_file(bytes(picture), preprocessing, channels, where)
    return _of_picture(picture, preprocessing, channels, where)


def _of_file(data: bytes, preprocessing: Preprocessing, channels: int, where: str) -> Image.Image | Bands:
    most, levels = preprocessing.max_pixels, preprocessing.levels
    if data.startswith(ARRAY_MAGIC):
        array = read_npy(data, most, where)
        if channels in (1, 3) and array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _MODES)):
            return _of_numbers(array, preprocessing, where)
        return bands_of_array(array, channels, levels, where)  # or it says what is wrong
    if channels not in (1, 3) and data.startswith(TIFF_MAGICS):
        found = bands_of_tiff(data, channels, levels, most, where)
        if found is not None:
            return found
    return _of_picture(data, preprocessing, channels, where)


def _of_numbers(array: np.ndarray, preprocessing: Preprocessing, where: str) -> Image.Image:
    """Numbers of any type, [H, W] or [H, W, 1 to 4], as a picture of colours."""
    array = array[:, :, None] if array.ndim == 2 else array
    colours = array.shape[2] - (array.shape[2] in (2, 4))
    eight, peak = deep_to_8_bits(array[:, :, :colours], preprocessing.levels, where)
    if colours < array.shape[2]:  # alpha has no black and white of its own
        eight = np.concatenate([eight, deep_to_8_bits(array[:, :, colours:], FORMATS_OWN, where)[0]], axis=2)
    picture = Image.fromarray(np.ascontiguousarray(eight[:, :, 0] if eight.shape[2] == 1 else eight))
    image = load_image(picture, preprocessing.max_pixels, where=where)
    if peak is not None:
        image.info["peak"] = peak
    return image


def _of_picture(
    picture: bytes | Image.Image, preprocessing: Preprocessing, channels: int, where: str
) -> Image.Image | Bands:
    kinds = {"colour": preprocessing.colour, "levels": preprocessing.levels, "where": where}
    if channels in (1, 3):
        return load_image(picture, preprocessing.max_pixels, **kinds)
    if channels != 4:
        raise BadImage(
            "wrong_channels",
            f"{where} is a picture of colours, and the tokenizer reads {channels} channels: arrays "
            f"[H, W, {channels}] in .npy files, or .tif files of {channels} samples or pages.",
        )
    image = load_image(picture, preprocessing.max_pixels, keep_alpha=True, **kinds)
    return Bands(np.asarray(image), image.info.get("peak"))


def to_square(
    picture: Picture,
    preprocessing: Preprocessing,
    channels: int = 3,
    *,
    crop: Literal["center"] | tuple[float, float] | int = "center",
    flip: bool = False,
) -> np.ndarray:
    """A picture as the tokenizer reads it: uint8 [H, W, channels]; `crop` and `flip` as in `prepare`.

    Raises:
        BadImage, CodegridError, FileNotFoundError: see `open_picture` and `prepare`.
    """
    return prepare(open_picture(picture, preprocessing, channels), preprocessing, channels, crop=crop, flip=flip)


def to_images(pictures: Any, preprocessing: Preprocessing, channels: int = 3) -> Tensor:
    """Pictures, or what is the model's own already -> float32 [N, C, H, W] in [-1, 1].

    Args:
        pictures: one picture or several (see `Picture`), uint8 [N, H, W, C], or floats in [-1, 1]: a batch
            [N, C, H, W], or single ones [C, H, W] in a list. Floats are the model's own: nothing is cut or scaled.

    Raises:
        BadImage: a picture cannot be used; the message says which.
        CodegridError: it is none of these: integers where floats are due, floats that are not in [-1, 1], NaN.
    """
    if isinstance(pictures, (Tensor, np.ndarray)) and pictures.ndim == 4 and _is_float(pictures):
        return _checked(_floats(pictures), channels)
    entries = _entries(pictures)
    require(bool(entries), "There is no picture.", f"Give {_KINDS}.")
    images = [
        _to_image(entry, preprocessing, channels, f"Picture {number} of {len(entries)}")
        for number, entry in enumerate(entries, start=1)
    ]
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    require(
        len(shapes) == 1,
        f"The pictures have different sizes {shapes}, and floats are taken as they are.",
        "Cut them to one size.",
    )
    return torch.stack(images)


def _entries(pictures: Any) -> list[Any]:
    single = (bytes, bytearray, memoryview, str, os.PathLike, Image.Image, dict)
    if isinstance(pictures, single) or hasattr(pictures, "read"):
        pictures = [pictures]
    elif isinstance(pictures, np.ndarray) and pictures.dtype.kind in "UO":  # paths, such as a table's column
        pictures = pictures.reshape(-1).tolist()
    elif isinstance(pictures, (Tensor, np.ndarray)):
        pictures = list(pictures) if pictures.ndim == 4 else [pictures]
    require(isinstance(pictures, Iterable), f"{_name(pictures)} is no picture.", f"Give {_KINDS}.")
    return list(pictures)


def _to_image(entry: Any, preprocessing: Preprocessing, channels: int, where: str) -> Tensor:
    """One of `to_images`: [C, H, W]; errors name it."""
    try:
        if isinstance(entry, (Tensor, np.ndarray)) and entry.ndim == 3 and _is_float(entry):
            return _checked(_floats(entry)[None], channels)[0]
        return to_model(to_square(entry, preprocessing, channels)[None])[0]
    except BadImage as error:
        raise BadImage(error.reason, f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise CodegridError(f"{where}: there is no file {shown(str(entry))}.", "Check the path.") from error
    except CodegridError as error:
        raise CodegridError(f"{where}: {error.what.rstrip('.')}.", error.remedy or "Leave it out.") from error


def _checked(images: Tensor, channels: int) -> Tensor:
    """Floats [N, C, H, W] that are the model's own."""
    require(
        images.shape[1] == channels,
        f"Floats {list(images.shape)} are no [N, {channels}, H, W], which this tokenizer takes.",
        "Turn the axes; pictures as arrays [H, W, C] are uint8.",
    )
    check_images(images)
    if images.numel() and float(images.min()) >= 0:
        warnings.warn(
            "No value of these images lies below 0: the model reads black as -1. From 0..1 it is x * 2 - 1.",
            stacklevel=5,
        )
    return images


def _floats(values: Tensor | np.ndarray) -> Tensor:
    """Floats of any library, byte order and strides -> float32 of the same shape, on their own device."""
    if isinstance(values, np.ndarray):
        require(
            not np.ma.is_masked(values),
            "Some values of this array are masked, and the model has no such values.",
            "Fill them (x.filled(value)) before.",
        )
        with np.errstate(over="ignore"):  # infinity is refused by name
            return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    plain = values.layout == torch.strided and values.device.type != "meta"
    require(plain, f"A {values.layout} tensor on {values.device} is no picture.", "Give a dense one (x.to_dense()).")
    return values.detach().to(torch.float32)


def _is_float(values: Tensor | np.ndarray) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else np.issubdtype(values.dtype, np.floating)


def _checked_array(array: Any, channels: int) -> np.ndarray:
    """An array that is a picture: uint8, uint16 or bool [H, W] or [H, W, C]."""
    require(
        not np.ma.is_masked(array),
        "Some values of this array are masked, and a picture has no such values.",
        "Fill them (x.filled(value)) before.",
    )
    array = np.asarray(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    allowed = _MODES if channels in (1, 3) else (channels,)
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in allowed)
    kind = f"{array.dtype} {list(array.shape)}"
    if not fits and array.ndim == 3 and array.shape[0] in allowed and array.dtype in (np.uint8, np.uint16):
        raise CodegridError(
            f"An array {kind} has its channels first.", "Pictures are [H, W, C]: permute it to (1, 2, 0)."
        )
    require(
        array.dtype in (np.uint8, np.uint16, np.bool_),
        f"An array {kind} is no picture.",
        "0..255 is uint8 [H, W, C] (x.astype('uint8')), 0..65535 uint16; the model's own are floats [N, C, H, W] in "
        "[-1, 1].",
    )
    counts = "1, 2, 3 or 4" if channels in (1, 3) else str(channels)
    require(fits, f"An array {kind} is no picture.", f"Give [H, W] or [H, W, C] with {counts} channels.")
    if not array.size:
        raise BadImage("too_small", f"An array {kind} has no pixels.")
    return array


def _from_array(array: np.ndarray, preprocessing: Preprocessing) -> Image.Image:
    """uint8, uint16 or bool [H, W] or [H, W, C] as a picture."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16 and array.ndim == 3:
        array = _colours_to_8_bits(array, preprocessing.levels)
    return Image.fromarray(np.ascontiguousarray(array))  # LA of two channels, RGB, RGBA


def _colours_to_8_bits(array: np.ndarray, levels: Levels) -> np.ndarray:
    """uint16 [H, W, C] -> uint8; alpha, the last of 2 or 4 channels, has no black and white of its own."""
    colours = array.shape[2] - (array.shape[2] in (2, 4))
    alpha = Levels().to_8_bits(array[:, :, colours:])
    return np.concatenate([levels.to_8_bits(array[:, :, :colours]), alpha], axis=2)


def _name(value: Any) -> str:
    return f"An object of type {type(value).__name__}"

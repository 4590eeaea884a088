"""Pictures of more than eight bits -> eight bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from codegrid.tokenizer.images.reasons import BadImage

WHITE_OF_16_BITS = 65535
_PHOTOMETRIC = 262  # TIFF's PhotometricInterpretation


class Levels(NamedTuple):
    """The stored values that are black and white. `white` None: 65535 for integers; 1 or 255 for floats, by the values.

    They hold for pictures of more than 8 bits alone.
    """

    black: float = 0.0
    white: float | None = None

    @property
    def given(self) -> bool:
        return self.white is not None or self.black != 0

    def to_8_bits(self, values: np.ndarray, white: float = WHITE_OF_16_BITS) -> np.ndarray:
        """uint8 of the same shape; what lies beyond black and white is cut. `white` holds where none is given."""
        scale = 255 / ((white if self.white is None else self.white) - self.black)
        return np.rint(((values.astype(np.float32) - np.float32(self.black)) * scale).clip(0, 255)).astype(np.uint8)


FORMATS_OWN = Levels()


def is_deep(image: Image.Image) -> bool:
    """Whether a picture stores more than 8 bits a value; of colours Pillow says it only before they are decoded."""
    return is_deep_grey(image) or any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def stated_white(image: Image.Image) -> int | None:
    """The white of more than 8 bits that a PGM's or PPM's header states; None for any other picture.

    Pillow scales such values to 65535 (grey) or 255 (colours), and says how only before they are decoded.
    """
    tiles = getattr(image, "tile", None) or ()
    words = tiles[0].args if image.format == "PPM" and tiles else ()
    white = words[1] if isinstance(words, tuple) and len(words) == 2 else None
    return white if isinstance(white, int) and white > 255 else None


def is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a deep picture: Pillow turns such TIFFs (WhiteIsZero) of 8 bits alone."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == 0


def grey_to_8_bits(
    image: Image.Image, levels: Levels, where: str, *, white: int | None = None, negative: bool = False
) -> tuple[Image.Image, float]:
    """A grey picture of mode I, I;16 or F as L, and its largest value as a share of white.

    Args:
        white: of the file's own (`stated_white`), which Pillow has scaled to 65535.
        negative: 0 is white in the file (`is_negative`).

    Raises:
        BadImage: white is not known or not above black, or a value is NaN.
    """
    values = np.asarray(image)
    if white is not None and levels.given:
        values = np.rint(values * (white / WHITE_OF_16_BITS)).astype(np.int32)  # as they are stored
    grey, peak = deep_to_8_bits(values, levels, where)
    grey = 255 - grey if negative else grey
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey), 0.0 if peak is None else peak


def deep_to_8_bits(values: np.ndarray, levels: Levels, where: str) -> tuple[np.ndarray, float | None]:
    """Numbers of any type and shape as uint8, and their largest as a share of white; None for values of 8 bits.

    Raises:
        BadImage: white is not known or not above black, or a value is NaN.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), None
    if values.dtype == np.uint8:
        return values, None
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    known = levels.white is not None and bool(np.isfinite(low) and np.isfinite(high))
    if not known and not (low >= 0 and high <= (255 if is_float else WHITE_OF_16_BITS)):  # also true of NaN
        raise BadImage(
            "unsupported_depth",
            f"{where} has values from {low} to {high}, whose white is not known: set preprocessing.white, or save it "
            "with 8 or 16 bits.",
        )
    white = (1 if high <= 1 else 255) if is_float else WHITE_OF_16_BITS
    white = white if levels.white is None else levels.white
    if levels.black >= white:
        raise BadImage(
            "unsupported_depth",
            f"{where} has values from {low} to {high}, whose white is {white}: preprocessing.black is "
            f"{levels.black:g} and must lie below it. Set preprocessing.white as well.",
        )
    return levels.to_8_bits(values, white), float(high) / white


def colour_to_8_bits(image: Image.Image, data: bytes, levels: Levels, where: str) -> tuple[Image.Image, float]:
    """A loaded picture of 16-bit colours, and its largest value as a share of white.

    Pillow reads the high bytes, which are right where white is 65535. For another white PNGs are read by torchvision.

    Raises:
        BadImage: another white is wanted for a file that is no PNG.
    """
    if not levels.given:
        inks = image.mode == "CMYK"  # whose largest value is black
        bands = [band for band in image.getbands() if band != "A" and not inks]
        return image, max((image.getchannel(band).getextrema()[1] / 255 for band in bands), default=1.0)
    if image.format != "PNG" or not data:
        raise BadImage(
            "unsupported_depth",
            f"{where} has colours of 16 bits, of which only the high bytes can be read here: preprocessing.white and "
            "black go with 16-bit PNGs and with grey. Save it as PNG.",
        )
    from torchvision.io import ImageReadMode, decode_image  # a slow import that few need

    values = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    values = values.permute(1, 2, 0).numpy()  # [H, W, C]; grey and alpha, RGB, RGBA
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    eight = levels.to_8_bits(values[:, :, :colours])
    clear = image.info.get("transparency")
    if colours == values.shape[2] and isinstance(clear, tuple):
        alpha = np.where((values == np.array(clear)).all(-1, keepdims=True), np.uint8(0), np.uint8(255))
    else:
        alpha = (values[:, :, colours:] >> 8).astype(np.uint8)
    made = Image.fromarray(np.concatenate([eight, alpha], axis=2).squeeze())
    made.info = {key: value for key, value in image.info.items() if key != "transparency"}
    peak = float(values[:, :, :colours].max())
    return made, peak / (WHITE_OF_16_BITS if levels.white is None else levels.white)

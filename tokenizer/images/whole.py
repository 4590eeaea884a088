"""A picture of any size, whole: nothing is cut or scaled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from codegrid.tokenizer.images.bands import Bands
from codegrid.tokenizer.images.door import Picture, open_picture
from codegrid.tokenizer.images.squares import Preprocessing


class Whole(NamedTuple):
    """A picture whose sides were made multiples of a number.

    Attributes:
        pixels: uint8 [H, W, C].
        size: height and width of the picture in it, from the upper left corner.
    """

    pixels: np.ndarray
    size: tuple[int, int]

    @property
    def added(self) -> tuple[int, int]:
        """Rows below and columns at the right that are no part of the picture."""
        return self.pixels.shape[0] - self.size[0], self.pixels.shape[1] - self.size[1]


def to_whole(picture: Picture, preprocessing: Preprocessing, multiple: int, channels: int = 3) -> Whole:
    """A picture as `preprocessing` says of colours, numbers and orientation, in its own size.

    Rows below and columns at the right repeat the edge until both sides are multiples of `multiple`.

    Raises:
        BadImage, CodegridError, FileNotFoundError: see `open_picture`.
    """
    opened = open_picture(picture, preprocessing, channels)
    if isinstance(opened, Bands):
        pixels = opened.values
    else:
        image: Image.Image = opened if channels == 3 else opened.convert("L")
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
    return padded(pixels, multiple)


def padded(pixels: np.ndarray, multiple: int) -> Whole:
    """Pixels [H, W, C] with edges that are repeated until both sides are multiples of `multiple`."""
    height, width = pixels.shape[:2]
    edges = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    return Whole(np.pad(pixels, edges, mode="edge"), (height, width))

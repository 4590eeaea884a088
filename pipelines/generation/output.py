"""What a pipeline gives: images in one of four forms, with their codes and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.tokenizer.images import check_colours, to_pil, to_uint8

OutputType = Literal["pil", "np", "pt", "codes"]


@dataclass
class ImagePipelineOutput:
    """The pipeline's output.

    Attributes:
        images: a list of PIL images; a uint8 array [N, H, W, C] ("np"); a float tensor [N, C, H, W] in [-1, 1] ("pt");
            None for "codes".
        codes: int64 [N, h, w] on the CPU, or [N, h, w, depth] if a position has several codes.
        labels: the class of each image, or None.
    """

    images: list[Image.Image] | np.ndarray | Tensor | None
    codes: Tensor
    labels: list[Any] | None


def check_output_type(output_type: str, channels: int) -> None:
    """Refuse an unknown type of output, and PIL images of colours that PIL has not.

    Raises:
        CodegridError: see above.
    """
    require(output_type in get_args(OutputType), f"output_type is {output_type!r}.", "Give pil, np, pt or codes.")
    if output_type == "pil":
        check_colours(channels, 'output_type "pil" (not "np", "pt", "codes")')


def as_output(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Images [N, C, H, W] in [-1, 1], on any device, as PIL images, as uint8 [N, H, W, C], or as they are on the CPU.

    They leave the device as bytes where bytes are wanted.
    """
    if output_type == "pt":
        return images.cpu()
    return to_pil(images) if output_type == "pil" else to_uint8(images).cpu().numpy()


class CodesBar:
    """A bar that moves by codes, and the caller's own callback; called with the codes that are drawn and wanted."""

    def __init__(self, total: int, shown: bool, callback: Callable[[int, int], None] | None) -> None:
        self._bar = tqdm(total=total, unit="code", unit_scale=True, disable=not shown, dynamic_ncols=True, delay=0.2)
        self._callback = callback

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(done - self._bar.n)
        if self._callback is not None:
            self._callback(done, total)

    def __enter__(self) -> CodesBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

"""What a pipeline gives: images in one of four forms, with their codes and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from codegrid.tokenizer.images import to_pil, to_uint8

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


def as_output(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Images [N, C, H, W] in [-1, 1] as PIL images, as uint8 [N, H, W, C], or as they are."""
    if output_type == "pt":
        return images
    return to_pil(images) if output_type == "pil" else to_uint8(images).numpy()

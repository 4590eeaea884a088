"""Results that keep what their condition tells exactly: the picture made small, or its luma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.pipelines.data.degradations import Degradation, degradation, tells_a_part, with_part
from codegrid.pipelines.generation.wanted import as_condition, condition_model, picture_part
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.moving import to_device

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

_OF_CODES = ("int64", "int32", "int16", "uint16")  # integers of pixels are uint8


@dataclass(frozen=True)
class Keeping:
    """What the results of a call keep.

    Args:
        made: how conditions follow from pictures.
        given: the conditions, uint8 [N, H, W, C].
        each: results of each condition, one after the other; where there is one condition, all are its.
    """

    made: Degradation
    given: np.ndarray
    each: int

    def of(self, images: Tensor, first: int) -> Tensor:
        """Results [n, C, H, W] in [-1, 1] from number `first` on -> the same with what their conditions tell.

        They are whole numbers of 255 steps then.
        """
        rows = np.arange(first, first + len(images)) // self.each if len(self.given) > 1 else np.zeros(len(images), int)
        kept = with_part(self.made, to_uint8(images).cpu().numpy(), self.given[rows])
        return to_device(to_model(torch.from_numpy(kept)), images.device)


def keeping(pipe: ImageGenerationPipeline, condition: Any, each: int, grid_shape: Sequence[int]) -> Keeping:
    """What a call's results keep of its conditions.

    Args:
        condition: pictures; `each` has so many results.
        grid_shape: of the results' codes.

    Raises:
        BadImage, CodegridError: see `check_keeping`; or a picture cannot be used.
    """
    made, model = check_keeping(pipe, condition)
    rows, columns = (side * pipe.tokenizer.config.pixels_per_position for side in grid_shape)
    return Keeping(made, to_uint8(as_condition(model, condition, (rows, columns))).numpy(), each)


def check_keeping(pipe: ImageGenerationPipeline, condition: Any) -> tuple[Degradation, VQModel]:
    """How conditions follow from pictures, and their tokenizer, where results can keep what conditions tell.

    Raises:
        CodegridError: no pictures are given, or the prior's are of a kind or a size that tells no part of a result.
    """
    kind = pipe.sequence.conditioning
    part = picture_part(kind)
    if part is None or part.made_by is None or not tells_a_part(part.made_by):
        raise CodegridError(
            f"keep_condition is set, and this pipeline's images follow {kind.describe()}.",
            "Leave it out: it is for priors of downscale and grey.",
        )
    codes = isinstance(condition, (Tensor, np.ndarray)) and str(condition.dtype).rpartition(".")[2] in _OF_CODES
    require(
        condition is not None and not codes,
        f"keep_condition is set, and condition is {'codes' if codes else 'not given'}.",
        "Give the pictures to follow.",
    )
    model = condition_model(pipe, part)
    of_model, of_results = (
        (config.preprocessing_config.size, config.backbone_config.in_channels)
        for config in (model.config, pipe.tokenizer.config)
    )
    require(
        of_model == of_results,
        f"keep_condition is set, and the pictures to follow are read with {of_model} (size, channels), where the "
        f"results have {of_results}.",
        "Leave it out.",
    )
    return degradation(part.made_by), model

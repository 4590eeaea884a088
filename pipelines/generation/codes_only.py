"""A prior whose codes have no pictures (`codegrid import-codes`), and its rows as an array of integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from codegrid.pipelines.artifacts.loading import load_prior_and_sequence
from codegrid.pipelines.codec.context import ContextModel
from codegrid.prior import SequenceConfig

CODES_NAME = "codes.npy"


@dataclass(frozen=True)
class CodesPipeline:
    """What a pipeline is of codes without pictures: a prior, and a model of neighbouring codes or None."""

    prior: PreTrainedModel
    sequence: SequenceConfig
    context: ContextModel | None = None

    def to(self, device: torch.device) -> CodesPipeline:
        self.prior.to(device)
        return self

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> CodesPipeline:
        """Load a prior's folder, with its context/ if it has one; options as of `load_prior_and_sequence`."""
        return cls(*load_prior_and_sequence(folder, **options), ContextModel.of_pipeline(Path(folder)))


def as_imported(codes: np.ndarray, sequence: SequenceConfig) -> np.ndarray:
    """Codes [N, length], position by position -> [N, ...] with the axes of a row of the source."""
    axes = sequence.axes
    assert axes is not None
    inside = [axis for axis in axes if axis != "d"] + ["d"] * ("d" in axes)  # as the rows are stored
    grid = codes.reshape(len(codes), *(axes[axis] for axis in inside))
    return np.moveaxis(grid, -1, 1) if next(iter(axes)) == "d" else grid

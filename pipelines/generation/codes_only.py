"""Samples of a prior whose codes have no pictures (`codegrid import-codes`), as an array of integers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from codegrid.pipelines.artifacts.loading import load_prior_and_sequence
from codegrid.pipelines.codec.context import ContextModel
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.files import write_atomically
from codegrid.prior import SequenceConfig, iterate_codes, to_codes
from codegrid.prior.sampling import image_generator

CODES_NAME = "codes.npy"


@dataclass(frozen=True)
class CodesPipeline:
    """What a pipeline is of codes without pictures: a prior, and a model of neighbouring codes or None."""

    prior: PreTrainedModel
    sequence: SequenceConfig
    context: ContextModel | None = None

    @property
    def fingerprint(self) -> str:
        """Of what made the codes, their codebook and shape."""
        return self.sequence.tokenizer_fingerprint or ""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.sequence.class_names

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


def write_codes(
    prior: PreTrainedModel,
    sequence: SequenceConfig,
    folder: Path,
    labels: list[int] | None,
    num_images: int,
    seed: int,
    batch_size: int,
    sampling: dict[str, Any],
) -> None:
    """Draw rows of codes into codes.npy [num_images, ...], a batch at a time; a stop loses one."""
    path, aside = folder / CODES_NAME, folder / f".{CODES_NAME}"
    if _rows(path) == num_images:
        return
    if _rows(aside) != num_images:  # -1: not drawn yet
        shape = (num_images, *(sequence.axes or {}).values())
        write_atomically(aside, lambda new: np.lib.format.open_memmap(new, "w+", np.int64, shape).fill(-1))
    array = np.lib.format.open_memmap(aside, "r+")
    with resumable():
        for first in tqdm(range(0, num_images, batch_size), unit="batch", dynamic_ncols=True):
            part = array[first : first + batch_size]
            if part.min() >= 0:
                continue
            rows = range(first, first + len(part))
            drawn = iterate_codes(
                prior,
                sequence,
                None if labels is None else [labels[row] for row in rows],
                generators=[image_generator(seed, row) for row in rows],
                batch_size=batch_size,
                **sampling,
            )
            codes = np.concatenate([to_codes(batch, sequence).cpu().numpy() for batch in drawn])
            part[:] = as_imported(codes.reshape(len(codes), -1), sequence)
            array.flush()
    os.replace(aside, path)


def _rows(path: Path) -> int:
    return len(np.load(path, mmap_mode="r", allow_pickle=False)) if path.is_file() else 0

"""Samples of a prior whose codes have no pictures (`codegrid import-codes`), as an array of integers."""

from __future__ import annotations

import shutil
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
_PARTS = ".parts"


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


def as_stored(codes: np.ndarray, sequence: SequenceConfig) -> np.ndarray:
    """Codes [N, ...] with the axes of the source -> [N, h, w, depth], position by position."""
    assert sequence.axes is not None
    inside = np.moveaxis(codes, 1, -1) if next(iter(sequence.axes)) == "d" else codes
    return inside.reshape(len(codes), *sequence.grid_shape, sequence.depth)


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
    """Draw rows of codes into codes.npy [num_images, ...]. Each batch is kept until all are there: a stop loses one."""
    path, parts = folder / CODES_NAME, folder / _PARTS
    if path.is_file() and len(np.load(path, mmap_mode="r", allow_pickle=False)) == num_images:
        return
    parts.mkdir(exist_ok=True)
    with resumable():
        for first in tqdm(range(0, num_images, batch_size), unit="batch", dynamic_ncols=True):
            last, part = min(first + batch_size, num_images), parts / f"{first:09d}-{batch_size}.npy"
            if part.is_file() and last - first == len(np.load(part, mmap_mode="r", allow_pickle=False)):
                continue
            drawn = iterate_codes(
                prior,
                sequence,
                None if labels is None else labels[first:last],
                generators=[image_generator(seed, index) for index in range(first, last)],
                batch_size=batch_size,
                **sampling,
            )
            codes = np.concatenate([to_codes(batch, sequence).cpu().numpy() for batch in drawn])
            rows = as_imported(codes.reshape(len(codes), -1), sequence)
            write_atomically(part, lambda aside, rows=rows: _save(aside, rows))
        files = [parts / f"{first:09d}-{batch_size}.npy" for first in range(0, num_images, batch_size)]
        everything = np.concatenate([np.load(file, allow_pickle=False) for file in files])
        write_atomically(path, lambda aside: _save(aside, everything))
    shutil.rmtree(parts)


def _save(path: Path, codes: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy.save would add a suffix to a name
        np.save(file, codes, allow_pickle=False)

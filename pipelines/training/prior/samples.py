"""Samples of a prior in training. Every evaluation uses the same seeds, so that the pictures can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.pipelines.artifacts.loading import LoadingError, load_tokenizer
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.pictures.grids import class_sheet, labelled_rows
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.prior import SequenceConfig, sample_codes, to_codes
from codegrid.prior.codes import CodeDataset, CodesManifest
from codegrid.prior.conditions import PictureCondition, parts_of
from codegrid.prior.laid_out import LaidOut
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_pil


def samples_tokenizer(
    config: PriorTrainingConfig, manifest: CodesManifest, log: Callable[[str], None]
) -> VQModel | None:
    """The tokenizer that made the codes, if it is available and samples are wanted; else None, and `log` says why."""
    if not config.num_samples:
        return None
    if manifest.axes is not None:
        log(f"No samples while training: {manifest.tokenizer} gives no pictures. `codegrid generate` writes codes.")
        return None
    name = config.tokenizer or manifest.tokenizer
    if config.tokenizer is None and not Path(name).is_dir():  # never download for pictures that nobody asked for
        log(f"No samples while training: the codes' tokenizer {name!r} is no folder here (name it with --tokenizer).")
        return None
    try:
        tokenizer = load_tokenizer(name)
    except LoadingError as error:
        log(f"No samples while training: {error}")
        return None
    if (channels := tokenizer.config.backbone_config.in_channels) not in (1, 3):
        log(f"No samples while training: the tokenizer's pictures have {channels} channels, not 1 or 3.")
        return None
    if tokenizer.codes_fingerprint() != manifest.tokenizer_fingerprint:
        log(f"No samples while training: {name} has changed since it made the codes.")
        return None
    return tokenizer


class Rows(NamedTuple):
    """Some rows of a code data set: codes [n, L], the values of their condition, and which are not known."""

    codes: Tensor
    values: Tensor
    unknown: Tensor


def rows_to_follow(codes: CodeDataset, rows: np.ndarray, number: int) -> Rows | None:
    """The first `number` of `rows`; None where a prior follows classes or nothing."""
    values, unknown = codes.condition_values(rows[:number])
    if codes.manifest.condition is None or values is None or unknown is None:
        return None
    return Rows(torch.from_numpy(codes.codes(rows[:number])), values, unknown)


def sample_picture(
    prior: PreTrainedModel, tokenizer: VQModel, sequence: SequenceConfig, number: int, rows: Rows | None = None
) -> Tensor:
    """`number` samples, by class if there are classes, with the guidance of a pipeline: uint8 [3, H, W].

    Samples of another condition follow that of `rows`, and stand below what the rows' own codes are.
    """
    with evaluating(prior):
        pipe = ImageGenerationPipeline(tokenizer.to(prior.device), prior, sequence)
        pipe.laid_out = LaidOut(in_place=prior.device.type != "cpu")  # beside the optimizer a second copy may not fit
        if rows is not None:
            return _below(pipe, rows)
        # An accelerator always computes whole batches: no rows more than there are images.
        batch_size = None if prior.device.type == "cpu" else number
        output = pipe(num_images=number, seed=0, batch_size=batch_size, progress=False)
    known = sequence.class_names
    names = None if output.labels is None or known is None else [known[label] for label in output.labels]
    return torch.from_numpy(np.array(class_sheet(output.images, names, output.labels))).permute(2, 0, 1).contiguous()


def _below(pipe: ImageGenerationPipeline, rows: Rows) -> Tensor:
    """The pictures of the rows' codes, those that they follow where the tokenizer is the same, and samples."""
    sequence, number = pipe.sequence, len(rows.codes)
    seen = rows.unknown if sequence.null_class and rows.unknown.any() else None
    options = {"seeds": range(number), "batch_size": number, "drop": seen}
    drawn = sample_codes(pipe.prior, sequence, rows.values, **options, **pipe.sampling.to_dict())
    plain = replace(sequence, order="positions")
    shown = [("true codes", to_codes(rows.codes, plain))]
    parts = parts_of(sequence.conditioning)
    values = [rows.values] if len(parts) == 1 else sequence.conditioning.values_of_parts(rows.values)
    for part, own in zip(parts, values, strict=True):
        same = (sequence.codebook_size, sequence.grid_shape, sequence.depth, sequence.tokenizer_fingerprint)
        if isinstance(part, PictureCondition) and part.codes_of == same:
            shown.append(("follows", to_codes(own, plain)))
    shown.append(("samples", to_codes(drawn, sequence)))
    sheet = labelled_rows([(name, to_pil(pipe.decode(codes))) for name, codes in shown])
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()

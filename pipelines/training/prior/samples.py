"""Samples of a prior in training. Every evaluation uses the same seeds, so that the pictures can be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.pipelines.artifacts.loading import LoadingError, load_tokenizer
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.prior import SequenceConfig
from codegrid.prior.codes import CodesManifest
from codegrid.prior.laid_out import LaidOut
from codegrid.tokenizer import VQModel


def samples_tokenizer(
    config: PriorTrainingConfig, manifest: CodesManifest, log: Callable[[str], None]
) -> VQModel | None:
    """The tokenizer that made the codes, if it is available and samples are wanted; else None, and `log` says why."""
    if not config.num_samples:
        return None
    if manifest.condition is not None:
        log(f"No samples while training: what should they follow (condition {manifest.condition.get('type')!r})?")
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


def sample_picture(prior: PreTrainedModel, tokenizer: VQModel, sequence: SequenceConfig, number: int) -> Tensor:
    """`number` samples, by class if there are classes, with the guidance of a pipeline: uint8 [3, H, W]."""
    with evaluating(prior):
        pipe = ImageGenerationPipeline(tokenizer.to(prior.device), prior, sequence)
        pipe.laid_out = LaidOut(in_place=prior.device.type != "cpu")  # beside the optimizer a second copy may not fit
        # An accelerator always computes whole batches: no rows more than there are images.
        batch_size = None if prior.device.type == "cpu" else number
        output = pipe(num_images=number, seed=0, batch_size=batch_size, progress=False)
    known = sequence.class_names
    names = None if output.labels is None or known is None else [known[label] for label in output.labels]
    return torch.from_numpy(np.array(class_sheet(output.images, names, output.labels))).permute(2, 0, 1).contiguous()

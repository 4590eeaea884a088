"""A tokenizer and a prior -> a pipeline's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.cards import cards_of
from codegrid.pipelines.artifacts.export import export
from codegrid.pipelines.artifacts.loading import (
    is_without_pictures,
    load_prior_and_sequence,
    load_tokenizer,
    local_folder,
)
from codegrid.pipelines.codec.context import CONTEXT_FOLDER, ContextModel, count_contexts
from codegrid.pipelines.generation.pipeline import DEFAULT_GUIDANCE, ImageGenerationPipeline
from codegrid.prior import SamplingConfig, save_prior
from codegrid.prior.codes import open_codes
from codegrid.prior.distribution import GuidanceSchedule
from codegrid.prior.guidance import guidance_of

_MOST_COUNTED, _MOST_CODES = 200_000, 2**26  # rows of codes, and codes in them


def make_pipeline(
    tokenizer: str,
    prior: str,
    output_dir: str,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    guidance_schedule: GuidanceSchedule = "constant",
    guidance_power: float = 2.0,
    guidance_range: tuple[float, float] = (0.0, 1.0),
    part_guidance: tuple[float, ...] | None = None,
    context: str | None = None,
    condition_tokenizer: str | None = None,
) -> Path:
    """Combine a tokenizer and a prior into a pipeline folder, with its default sampling settings.

    Args:
        tokenizer: folder or Hub name. "none" with a prior of imported codes: the folder then holds it and the context.
        prior: folder or Hub name.
        output_dir: the pipeline's folder.
        guidance_scale: scale s of classifier-free guidance: u + s (c - u), logits with (c) and without (u) the class; 1
            is no guidance. None is 2 if the prior has classes and a null class.
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: sample from the k likeliest codes only; 0 for all.
        top_p: sample from the likeliest codes that together reach this probability; 1 for all.
        min_p: sample from codes at least this share as likely as the likeliest; 0 for all.
        guidance_schedule: how the scale grows over the positions, from 1 to guidance_scale.
        guidance_power: exponent of the schedule "power"; a higher one starts guidance later.
        guidance_range: the part of the positions with guidance, as fractions.
        part_guidance: a scale for each part of what the prior follows (class and picture), instead of guidance_scale.
        context: a code data set of the tokenizer, from which a model of neighbouring codes is counted: with it,
            `codegrid compress --model context` writes files that any machine reads (docs/compression.md).
        condition_tokenizer: folder or Hub name of the tokenizer of the pictures that the prior follows, where they have
            one of their own.

    Raises:
        LoadingError: the tokenizer or the prior cannot be loaded, or the prior's or the context's codes are another
            tokenizer's.
    """
    if tokenizer == "none":
        return _of_codes(prior, Path(output_dir), context)
    folders = {"tokenizer": local_folder(tokenizer, "tokenizer"), "prior": local_folder(prior, "prior")}
    model = load_tokenizer(folders["tokenizer"])
    prior_model, sequence = load_prior_and_sequence(folders["prior"])
    if guidance_scale is None:
        guidance_scale = DEFAULT_GUIDANCE if sequence.can_be_guided else 1.0
    sampling = SamplingConfig(
        *(guidance_scale, temperature, top_k, top_p, min_p),
        *(guidance_schedule, guidance_power, guidance_range, part_guidance),
    )
    guidance_of(sampling, sequence)  # refuses guidance that this prior has not
    counted = None if context is None else _count_contexts(context)
    second = None if condition_tokenizer is None else load_tokenizer(condition_tokenizer)
    pipe = ImageGenerationPipeline(model, prior_model, sequence, sampling, counted, second)
    pipe.cards = cards_of(folders)
    return pipe.save_pretrained(output_dir)


def _of_codes(prior: str, folder: Path, context: str | None) -> Path:
    """A prior of imported codes and a context model of them."""
    require(
        context is not None and is_without_pictures(prior),
        'tokenizer is "none".',
        "Name one. Only a prior of imported codes has none, and is put together with a --context.",
    )
    require(not folder.exists(), f"{shown(folder)} is there already.", "Choose another --output-dir.")
    model, sequence = load_prior_and_sequence(prior)
    counted = _count_contexts(str(context))
    counted.check_tokenizer(sequence.tokenizer_fingerprint or "")

    def write(aside: Path) -> None:
        save_prior(model, sequence, aside)
        counted.save(aside / CONTEXT_FOLDER)

    export(folder, write)
    return folder


def _count_contexts(codes: str) -> ContextModel:
    """A context model of a code data set, of a bounded number of rows spread over it."""
    data = open_codes(codes)
    manifest = data.manifest
    most = max(20, min(_MOST_COUNTED, _MOST_CODES // manifest.sequence_config().length))
    rows = np.linspace(0, len(data) - 1, min(len(data), most)).round().astype(np.int64)
    grids = data.codes(rows).reshape(len(rows), *manifest.grid_shape, manifest.depth)
    return count_contexts(grids, manifest.codebook_size, manifest.tokenizer_fingerprint)

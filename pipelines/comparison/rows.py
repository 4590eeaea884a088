"""Trains, scores and draws one quantizer of a comparison."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.comparison.report import SHEET_NAME, Report, Row
from codegrid.pipelines.comparison.twins import compared
from codegrid.pipelines.comparison.variants import VARIANTS
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import ImageSource
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction
from codegrid.pipelines.pictures.grids import labelled_rows
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.pipelines.system.files import write_atomically
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import VQModelConfig
from codegrid.tokenizer.images import to_pil
from codegrid.tokenizer.losses import FeatureDistance

# Steps of two short trainings. The difference of their times is the time of the steps alone.
_TRIALS = (5, 25)


@dataclass(frozen=True)
class Comparison:
    """Settings shared by all quantizers.

    Args:
        folder: folder for the report and each quantizer's run.
        base: config of the trainings, except for `quantizer` and `output_dir`.
        seconds: duration of each training, instead of `base.max_steps`.
        validation: images to score.
        feature_net: name of the net of `feature_distance`.
    """

    folder: Path
    base: TokenizerTrainingConfig
    seconds: float | None
    validation: ImageSource
    feature_net: str | None
    feature_distance: FeatureDistance | None


def complete_row(comparison: Comparison, report: Report, name: str) -> None:
    """Train and score a quantizer unless this is done already, and save the report. The row records an error."""
    quantizer = json.loads(json.dumps(asdict(compared()[name])))
    row = report.rows.get(name)
    if row is None or row.quantizer != quantizer:
        row = report.rows[name] = Row(name, quantizer)
    if row.scores and comparison.feature_net in (None, row.feature_net):
        tqdm.write("Done before.")
        return
    row.error = None
    try:
        _train(comparison, report, row)
        _score(comparison, row)
    except Exception as error:  # the other quantizers can still be compared; this row records the error
        row.error, row.scores = f"{type(error).__name__}: {error}", None
        tqdm.write(f"{name} failed: {row.error}")
        if os.environ.get("CODEGRID_TRACEBACK"):
            traceback.print_exc()
    report.save(comparison.folder)


def _train(comparison: Comparison, report: Report, row: Row) -> None:
    config = replace(comparison.base, output_dir=str(comparison.folder / row.name), quantizer=compared()[row.name])
    row.bits = bits_per_image(config)
    if row.steps is None:
        row.steps = config.max_steps if comparison.seconds is None else steps_within(comparison.seconds, config)
    report.save(comparison.folder)  # a resumed training has the same number of steps
    finished = (Path(config.output_dir) / "config.json").exists()  # the last file that a run writes
    began = time.monotonic()
    try:
        train_tokenizer(replace(config, max_steps=row.steps, eval_every=row.steps))
    finally:
        if not finished:
            row.seconds += time.monotonic() - began
            report.save(comparison.folder)


def _score(comparison: Comparison, row: Row) -> None:
    accelerator = make_accelerator()
    model = load_tokenizer(str(comparison.folder / row.name)).to(accelerator.device)
    distances = {}
    if comparison.feature_distance is not None:
        distances = {"feature_distance": comparison.feature_distance.to(accelerator.device)}
    scores = evaluate_reconstruction(model, comparison.validation, accelerator, comparison.base.batch_size, distances)
    row.scores, row.feature_net = asdict(scores), comparison.feature_net
    row.parameters = sum(parameter.numel() for parameter in model.parameters())


def bits_per_image(config: TokenizerTrainingConfig) -> float:
    """Bits of the codes of one image, log2(codebook_size) each."""
    model = VQModelConfig(backbone=config.backbone, quantizer=config.quantizer, preprocessing=config.preprocessing)
    return math.prod(model.codes_shape) * math.log2(config.quantizer.codebook_size)


def steps_within(seconds: float, config: TokenizerTrainingConfig) -> int:
    """The number of steps of this config that fit into `seconds`, on this machine under its current load."""
    data = replace(config.data, validation_split=None, validation_fraction=0.0)
    taken = []
    with TemporaryDirectory() as aside:
        for number in _TRIALS:
            trial = replace(config, output_dir=f"{aside}/{number}", max_steps=number, data=data, tracking=())
            began = time.monotonic()
            train_tokenizer(trial)
            taken.append(time.monotonic() - began)
    each = max(taken[1] - taken[0], 1e-3) / (_TRIALS[1] - _TRIALS[0])
    return max(1, int(seconds / each))


def write_sheet(comparison: Comparison, report: Report, number: int) -> None:
    """Write a sheet: validation images from all over the split, and below them each tokenizer's reconstructions."""
    source = comparison.validation
    spread = np.unique(np.linspace(0, len(source) - 1, number).astype(np.int64))
    rows = []
    for row in report.in_order():
        if not row.scores or row.name not in VARIANTS:  # ours alone: theirs would double the sheet
            continue
        model = load_tokenizer(str(comparison.folder / row.name))
        batch = next(prepared_batches(model, iter(source.subset(spread, "on the sheet")), number), None)
        if batch is None or not batch.records:
            return
        rows = rows or [("original", to_pil(batch.images))]
        with evaluating(model):
            rows.append((row.name, to_pil(model.decode(model.encode(batch.images)).clamp(-1, 1))))
    if rows:
        sheet = labelled_rows(rows)
        write_atomically(comparison.folder / SHEET_NAME, lambda aside: sheet.save(aside, format="PNG"))

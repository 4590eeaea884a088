"""One quantizer of a comparison: trained, scored, and drawn beside the others."""

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

# Steps of two short trainings: the difference of their times is that of the steps alone.
_TRIALS = (5, 25)


@dataclass(frozen=True)
class Comparison:
    """What all quantizers have in common.

    Args:
        folder: gets the report and each quantizer's run.
        base: the config of their trainings, but for `quantizer` and `output_dir`.
        seconds: of each training, in place of `base.max_steps`.
        validation: the images that are scored.
        feature_net: name of the net of `feature_distance`.
    """

    folder: Path
    base: TokenizerTrainingConfig
    seconds: float | None
    validation: ImageSource
    feature_net: str | None
    feature_distance: FeatureDistance | None


def complete_row(comparison: Comparison, report: Report, name: str) -> None:
    """Train and score a quantizer where this has not been done, and save the report; an error becomes the row's."""
    quantizer = json.loads(json.dumps(asdict(VARIANTS[name])))
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
    except Exception as error:  # the others can still be compared: this one's row says what happened
        row.error, row.scores = f"{type(error).__name__}: {error}", None
        tqdm.write(f"{name} failed: {row.error}")
        if os.environ.get("CODEGRID_TRACEBACK"):
            traceback.print_exc()
    report.save(comparison.folder)


def _train(comparison: Comparison, report: Report, row: Row) -> None:
    config = replace(comparison.base, output_dir=str(comparison.folder / row.name), quantizer=VARIANTS[row.name])
    row.bits = bits_per_image(config)
    if row.steps is None:
        row.steps = config.max_steps if comparison.seconds is None else _steps_within(comparison.seconds, config)
    report.save(comparison.folder)  # a training that is gone on with has the same number of steps
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
    """Of the codes of one image, each taken as log2(codebook_size) bits."""
    model = VQModelConfig(backbone=config.backbone, quantizer=config.quantizer, preprocessing=config.preprocessing)
    return math.prod(model.codes_shape) * math.log2(config.quantizer.codebook_size)


def _steps_within(seconds: float, config: TokenizerTrainingConfig) -> int:
    """The steps of this config that about so many seconds are enough for, on this machine as busy as it is now."""
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
    """Validation images, from all over the split, in the first row; below, what each tokenizer makes of them."""
    source = comparison.validation
    spread = np.unique(np.linspace(0, len(source) - 1, number).astype(np.int64))
    rows = []
    for row in report.in_order():
        if not row.scores:
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

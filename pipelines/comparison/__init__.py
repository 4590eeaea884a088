"""Trains every quantizer alike on the same images and compares them in one table and one picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.comparison.report import TABLE_NAME, Report, markdown, read_report
from codegrid.pipelines.comparison.rows import Comparison, complete_row, write_sheet
from codegrid.pipelines.comparison.twins import PLAIN, THEIRS, compared, register_twins
from codegrid.pipelines.comparison.variants import VARIANTS
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES, split_images
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import machine
from codegrid.pipelines.system.files import OutputError, write_text
from codegrid.pipelines.training.claim import differences
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.tokenizer import Preprocessing
from codegrid.tokenizer.images import BadImage, open_picture
from codegrid.tokenizer.losses import FeatureDistance, FeatureDistanceConfig

_EMBEDDED = DataConfig(str(EMBEDDED_IMAGES))


@resumable()
def compare_quantizers(
    data: DataConfig = _EMBEDDED,
    output_dir: str = "runs/compare-quantizers",
    steps: int = 400,
    seconds: float | None = None,
    preset: Literal["auto", "quickstart", "small64"] = "auto",
    only: tuple[str, ...] = (),
    beside: bool = False,
    seed: int = 0,
    feature_net: str | None = None,
    feature_weights: str | None = None,
    num_pictures: int = 8,
) -> Path:
    """Train one small tokenizer per quantizer with the same settings; write a table and a sheet of reconstructions.

    To resume after a stop, run it again: finished quantizers are not repeated, failed ones are tried again. For
    a GPU and figures near those of a full training, set more --steps (such as 20000) and another --output-dir.

    Args:
        data: the images; by default the Fashion-MNIST images that come with the project.
        output_dir: folder for comparison.json, comparison.md, reconstructions.png and a run's folder per quantizer.
        steps: steps of each training.
        seconds: duration of each training, instead of steps; a short trial finds the number of steps.
        preset: preset of stage one for all settings except the quantizer; "auto" is quickstart (grey 32x32) for images
            of at most 32 pixels a side, else small64.
        only: names of quantizers (docs/quantizers.md); by default all. Earlier results of others stay in the table.
        beside: train vector-quantize-pytorch's module beside each quantizer that it has too, in the same network with
            the same data and optimizer, as NAME-theirs, and as NAME-plain ours without the isotropy term, which theirs
            lacks. `only` may name these rows, too. Needs that package.
        seed: seed of every training.
        feature_net: adds the distance in this net's features to the table: objective.feature_distance.net.
        feature_weights: local file of the net's weights: objective.feature_distance.weights.
        num_pictures: validation images on the sheet.

    Raises:
        DataError: the images cannot be read as configured, or none are held out.
        CodegridError: beside is asked for, and vector-quantize-pytorch is not installed.
        OutputError: the folder holds another comparison.
        TrainingError: a quantizer failed; the others' rows are written.
    """
    _check(steps, seconds, num_pictures, only, beside)
    if beside:
        register_twins()
    train_images, validation = split_images(data)
    if validation is None:
        raise DataError("No images are held out.", "Give data.validation_split or a data.validation_fraction above 0.")
    preset = _preset_for(train_images) if preset == "auto" else preset
    base = TOKENIZER_PRESETS[preset](data.source, "")
    base = replace(base, data=data, max_steps=steps, eval_every=steps, seed=seed)
    comparison = Comparison(Path(output_dir), base, seconds, validation, feature_net, None)
    if feature_net:
        net = FeatureDistanceConfig(net=feature_net, weights=feature_weights)
        comparison = replace(comparison, feature_distance=FeatureDistance(net))
    report = _open_report(
        comparison, preset, f"{len(train_images)} images to train on, {len(validation)} to validate on"
    )
    chosen = _chosen(only, beside)
    for number, name in enumerate(chosen, start=1):
        tqdm.write(f"\n== {name} ({number} of {len(chosen)}) ==")
        complete_row(comparison, report, name)
    table = markdown(report)
    write_text(comparison.folder / TABLE_NAME, table)
    write_sheet(comparison, report, num_pictures)
    print(f"\n{table}\nThe table, the picture and the tokenizers are in {comparison.folder}.")
    failed = [name for name in chosen if report.rows[name].error]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(chosen)} quantizers failed ({', '.join(failed)}); the table says why.",
            "Run again to try them again; CODEGRID_TRACEBACK=1 shows where they failed.",
        )
    return comparison.folder


def _check(steps: int, seconds: float | None, num_pictures: int, only: tuple[str, ...], beside: bool) -> None:
    require(steps >= 1, f"steps is {steps}.", "Give at least 1.")
    require(seconds is None or 0 < seconds < math.inf, f"seconds is {seconds}.", "Give a positive number.")
    require(num_pictures >= 0, f"num_pictures is {num_pictures}.", "Give at least 0.")
    known = compared() if beside else VARIANTS
    unknown = [name for name in only if name not in known]
    require(not unknown, f"only has {', '.join(unknown)}, which is no quantizer.", f"There are {', '.join(known)}.")


def _chosen(only: tuple[str, ...], beside: bool) -> list[str]:
    """The rows to train, in the order of the table."""
    wanted = set(only) or set(VARIANTS)
    return [
        name
        for name in compared()
        if name in wanted or (beside and name.removesuffix(THEIRS).removesuffix(PLAIN) in wanted)
    ]


def _preset_for(images: ImageSource) -> Literal["quickstart", "small64"]:
    """The preset for the size of the first usable image."""
    for record in images:
        try:
            size = open_picture(record.data, Preprocessing()).size
        except BadImage:
            continue
        return "quickstart" if max(size) <= 32 else "small64"
    raise DataError(
        f"None of the images of {images.description} could be used.",
        "`codegrid look` shows what is read, and why pictures are left out.",
    )


def _open_report(comparison: Comparison, preset: str, images: str) -> Report:
    """The folder's report, or a new one.

    Raises:
        OutputError: the report has other settings.
    """
    folder, base = comparison.folder, asdict(comparison.base)
    settings = {name: value for name, value in base.items() if name not in ("output_dir", "quantizer")}
    settings = json.loads(json.dumps({**settings, "seconds": comparison.seconds}))
    images = f"{Path(comparison.base.data.source).name}: {images}."
    report = read_report(folder) or Report(settings, preset, images, machine(), {})
    if found := differences(report.settings, settings):
        raise OutputError(
            f"{folder} holds another comparison. Different are: {'; '.join(found)}.",
            "Pass its settings to go on with it, or choose another --output-dir.",
        )
    report.machine = machine()
    return report

"""`codegrid evaluate generation`: compares a pipeline's samples with real images, over sampling settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.distances import (
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNet, FeatureNetName, load_feature_net
from codegrid.pipelines.evaluation.judging import Judge, train_judge
from codegrid.pipelines.evaluation.results import Row, circumstances, describe_data, output_folder, save_result
from codegrid.pipelines.evaluation.samples import Samples
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.pictures.charts import Chart, Series, png
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_atomically
from codegrid.prior.sampling import SamplingConfig
from codegrid.tokenizer.images import check_colours

_VARIED = ("guidance_scale", "temperature", "top_k", "top_p")  # set by the options; other settings are the pipeline's
_CHUNK = 250  # reference images per entry of the feature cache


def evaluate_generation(
    pipeline: str,
    reference: str,
    num_images: int = 5000,
    guidance_scales: tuple[float, ...] = (),
    temperatures: tuple[float, ...] = (),
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    output_dir: str | None = None,
    reference_split: str = "train",
    num_reference: int = 50_000,
    judge_images: int = 20_000,
    feature_net: FeatureNetName = "inception",
    feature_weights: str | None = None,
    npz: bool = False,
    cache_dir: str | None = None,
) -> Path:
    """Score a pipeline's samples against real images: FID, KID, Inception score, precision, recall, class agreement.

    The same command resumes after a stop. The classes are sampled in turn.

    Args:
        pipeline: folder or Hub name.
        reference: real images, as in the other commands' --data.source.
        num_images: samples per setting; image i depends on seed and i alone.
        guidance_scales: guidance scales to compare; by default the pipeline's own, as for the next three options.
        temperatures: temperatures to compare, each with each guidance scale.
        top_k: sample from the k likeliest codes only.
        top_p: sample from the likeliest codes that together reach this probability.
        seed: seed of the samples.
        batch_size: samples per batch.
        output_dir: folder for generation.json, a picture of samples per setting, sweep.png if there are several
            settings, and the samples. None is a folder beside the pipeline's. The pipeline's card gets the table.
        reference_split: split of the reference.
        num_reference: maximum number of reference images, spread evenly; 0 for all.
        judge_images: maximum number of reference images to train the judge of class agreement; 0 for no judge.
        feature_net: inception gives FID and related scores; another net's distances carry its name.
        feature_weights: the net's weights file; by default it is looked for in torch hub's downloads.
        npz: also write each setting's samples as the file that ADM's evaluator reads (arr_0, uint8 [N, H, W, 3]).
        cache_dir: cache folder for features, keyed by image content; by default ~/.cache/codegrid/features.

    Raises:
        DataError: the reference cannot be read as configured, or none of its images could be used.
        LoadingError: the pipeline or the feature net cannot be loaded.
        OutputError: the output folder holds samples of another pipeline or seed.
        CodegridError: a number is out of its range.
    """
    _check_numbers(num_images, batch_size, seed, num_reference, judge_images)
    accelerator = make_accelerator()
    pipe = ImageGenerationPipeline.from_pretrained(pipeline).to(accelerator.device)
    check_colours(pipe.tokenizer.config.backbone_config.in_channels, "`codegrid evaluate generation`")
    settings = _settings(pipe.sampling, guidance_scales, temperatures, top_k, top_p)
    cache = FeatureCache(load_feature_net(feature_net, feature_weights, accelerator.device), cache_dir)
    source = open_images(DataConfig(reference, split=reference_split))
    folder = output_folder(output_dir, pipeline)
    _say(accelerator, f"Reference: {source.description}. Samples: {num_images} of each of {len(settings)} settings.")
    real, num_real = _reference_features(pipe, source, num_reference, cache, accelerator)
    judge = train_judge(pipe, DataConfig(reference, split=reference_split), judge_images, accelerator)
    rows = []
    for setting in settings:
        pipe.sampling = setting
        samples = Samples(pipe, folder, num_images, seed, batch_size, accelerator)
        rows.append(_score(samples, cache, real, judge))
        if accelerator.is_main_process:
            samples.write_picture()
            _say(accelerator, ", ".join(f"{name} {value:.5g}" for name, value in rows[-1].items()))
            if npz:
                _say(accelerator, f"For ADM's evaluator: {samples.write_npz()}.")
    if accelerator.is_main_process:
        data = {**describe_data(source, reference, reference_split, pipe.tokenizer), "num_images": num_real}
        record = {**_record(pipe, pipeline, seed, batch_size, cache.net, judge), "data": data}
        _save(rows, {**record, **circumstances(accelerator)}, folder, pipeline)
    accelerator.wait_for_everyone()
    return folder


def _save(rows: Sequence[Row], record: dict[str, Any], folder: Path, pipeline: str) -> None:
    if len(rows) > 1:
        picture = png(sweep_charts(rows))
        write_atomically(folder / "sweep.png", lambda aside: picture.save(aside, format="PNG"))
    path = save_result("generation", rows, record, folder, pipeline)
    tqdm.write(f"The scores, and with what they were made, are in {path}.")


def _score(samples: Samples, cache: FeatureCache, real: Tensor, judge: Judge | None) -> Row:
    """Make the samples on all ranks and score them on the main process; other ranks return an empty row."""
    samples.make()
    keys = gather_object([(shard, cache.key(samples.pixels(shard))) for shard in samples.mine])
    samples.accelerator.wait_for_everyone()
    if not samples.accelerator.is_main_process:
        return {}
    features, logits = cache.load([key for _, key in sorted(keys)])
    scores = _scores(cache.net, features, logits, real, samples.accelerator.device)
    agreement = {} if judge is None else {"class_agreement": judge.agreement(samples)}
    sampling = {name: getattr(samples.pipe.sampling, name) for name in _VARIED}
    return {**sampling, "num_images": samples.num_images, **scores, **agreement}


def _check_numbers(num_images: int, batch_size: int, seed: int, num_reference: int, judge_images: int) -> None:
    given = {"num_images": num_images, "batch_size": batch_size, "seed": seed}
    given |= {"num_reference": num_reference, "judge_images": judge_images}
    for name, value in given.items():
        least = {"num_images": 10, "batch_size": 1}.get(name, 0)
        require(value >= least, f"{name} is {value}: it must be at least {least}.")


def _settings(
    default: SamplingConfig,
    guidance_scales: Sequence[float],
    temperatures: Sequence[float],
    top_k: int | None,
    top_p: float | None,
) -> list[SamplingConfig]:
    given = {"top_k": top_k, "top_p": top_p}
    fixed = replace(default, **{name: value for name, value in given.items() if value is not None})
    pairs = itertools.product(guidance_scales or (default.guidance_scale,), temperatures or (default.temperature,))
    return [replace(fixed, guidance_scale=scale, temperature=temperature) for scale, temperature in pairs]


def _reference_features(
    pipe: ImageGenerationPipeline, source: ImageSource, most: int, cache: FeatureCache, accelerator: Accelerator
) -> tuple[Tensor, int]:
    """Features [N, D] of the reference images as the tokenizer sees them, and N. The ranks share the work."""
    number = len(source) if not most else min(most, len(source))
    chosen = source.subset(np.linspace(0, len(source) - 1, number).round().astype(np.int64), "reference")
    chunks = range(0, number, _CHUNK)
    mine = list(chunks)[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(total=len(mine), unit="chunk", disable=not accelerator.is_main_process, dynamic_ncols=True)
    keys = []
    for first in mine:
        part = (chosen[index] for index in range(first, min(first + _CHUNK, number)))
        pixels = [batch.pixels for batch in prepared_batches(pipe.tokenizer, part, _CHUNK) if batch.records]
        keys += [(first, cache.key(batch)) for batch in pixels]
        bar.update()
    bar.close()
    keys = sorted(gather_object(keys))
    if not keys:
        raise DataError(f"None of the {number} reference images could be used.")
    accelerator.wait_for_everyone()
    features = cache.load([key for _, key in keys])[0]
    return features, len(features)


def _scores(net: FeatureNet, features: Tensor, logits: Tensor, real: Tensor, device: torch.device) -> dict[str, float]:
    frechet, kernel, score, precision, recall = net.names
    if device.type == "cuda":  # other accelerators have no float64
        features, logits, real = features.to(device), logits.to(device), real.to(device)
    distance, distance_deviation = kernel_distance(features, real)
    value, value_deviation = classifier_score(logits)
    share, coverage = precision_recall(features, real)
    return {
        frechet: frechet_distance(features, real),
        kernel: distance,
        f"{kernel}_std": distance_deviation,
        score: value,
        f"{score}_std": value_deviation,
        precision: share,
        recall: coverage,
    }


def _record(
    pipe: ImageGenerationPipeline, pipeline: str, seed: int, batch_size: int, net: FeatureNet, judge: Judge | None
) -> dict[str, Any]:
    return {
        "pipeline": pipeline,
        "sampling": {name: value for name, value in asdict(pipe.sampling).items() if name not in _VARIED},
        "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
        "prior_fingerprint": weights_fingerprint(pipe.prior),
        "seed": seed,
        "batch_size": batch_size,
        "feature_net": net.describe(),
        "judge": None if judge is None else judge.describe(),
    }


def sweep_charts(rows: Sequence[Row]) -> list[Chart]:
    """A chart per score over guidance, a line per temperature; over temperature if only that varies."""
    axis, lines = "guidance_scale", "temperature"
    if len({row[axis] for row in rows}) == 1:
        axis, lines = lines, axis
    ignored = {*_VARIED, "num_images"}
    names = [name for name in rows[0] if name not in ignored and not name.endswith("_std")]
    charts = []
    for name in names:
        groups = {value: [row for row in rows if row[lines] == value] for value in sorted({row[lines] for row in rows})}
        series = [
            Series(f"{lines} {value:g}", sorted((row[axis], row[name]) for row in group))
            for value, group in groups.items()
        ]
        charts.append(Chart(name, axis, series))
    return charts


def _say(accelerator: Accelerator, message: str) -> None:
    if accelerator.is_main_process:
        tqdm.write(message)

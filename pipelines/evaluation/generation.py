"""`codegrid evaluate generation`: compares samples with real images, over sampling settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNetName, load_feature_net
from codegrid.pipelines.evaluation.judging import Judge, train_judge
from codegrid.pipelines.evaluation.ledger import Ledger, Row
from codegrid.pipelines.evaluation.left_out import describe_left_out
from codegrid.pipelines.evaluation.picture_sets import (
    Cut,
    FolderPictures,
    check_number,
    open_samples,
    set_features,
    spread,
)
from codegrid.pipelines.evaluation.reference import (
    OpenReference,
    Reference,
    open_reference,
    read_reference,
    save_statistics,
)
from codegrid.pipelines.evaluation.results import circumstances, output_folder, save_rows
from codegrid.pipelines.evaluation.samples import Samples
from codegrid.pipelines.evaluation.sweep import (
    LEAST_IMAGES,
    VARIED,
    ReferenceConfig,
    Request,
    check_settings,
    reference_config,
)
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.pictures.charts import Chart, Series, png
from codegrid.pipelines.system.devices import make_accelerator, wait_patiently
from codegrid.pipelines.system.files import OutputError, write_atomically
from codegrid.pipelines.system.numbers import number
from codegrid.tokenizer.images import check_colours

NAME = "generation"
_SWEEP_NAME = "sweep.png"


def evaluate_generation(
    pipeline: str | None = None,
    reference: str | None = None,
    num_images: int = 5000,
    guidance_scales: tuple[float, ...] = (),
    temperatures: tuple[float, ...] = (),
    top_k: int | None = None,
    top_p: float | None = None,
    num_steps: tuple[int, ...] = (),
    seed: int = 0,
    batch_size: int = 64,
    output_dir: str | None = None,
    reference_split: str | None = None,
    num_reference: int = 50_000,
    judge_images: int = 20_000,
    feature_net: FeatureNetName = "inception",
    feature_weights: str | None = None,
    npz: bool = False,
    cache_dir: str | None = None,
    samples: str | None = None,
    save_statistics: str | None = None,
    num_workers: int = 0,
    data: ReferenceConfig = ReferenceConfig(),  # noqa: B008
) -> Path:
    """Score a pipeline's samples against real images: FID, KID, Inception score, precision, recall, class agreement.

    The same command resumes after a stop. Other settings of the same pipeline and reference add rows to the results.
    The classes are sampled in turn. A folder of images takes the pipeline's place with --samples.

    Args:
        pipeline: folder or Hub name.
        reference: real images: another name for data.source. Or an .npz file: statistics (mu and sigma, as pytorch-fid,
            clean-fid and ADM write them) give the Frechet distance alone, pictures (ADM's arr_0) all scores.
        num_images: samples per setting; image i depends on seed and i alone.
        guidance_scales: guidance scales to compare; by default the pipeline's own, as for the next three options.
        temperatures: temperatures to compare, each with each guidance scale.
        top_k: sample from the k likeliest codes only.
        top_p: sample from the likeliest codes that together reach this probability.
        num_steps: numbers of steps to compare, of a prior of any order or a masked one.
        seed: seed of the samples.
        batch_size: samples per batch.
        output_dir: folder for generation.json, a picture of samples per setting, sweep.png if there are several
            settings, and the samples. None is a folder beside the pipeline's. The pipeline's card gets the table.
        reference_split: another name for data.split.
        num_reference: maximum number of reference images, spread evenly; 0 for all.
        judge_images: maximum number of reference images to fit the probes of class agreement to; 0 for none. They are
            linear classifiers of the feature net's features. Samples of one class count as much as those of another.
        feature_net: inception gives FID and related scores; another net's distances carry its name.
        feature_weights: the net's weights file; by default it is looked for in torch hub's downloads.
        npz: also write each setting's samples as the file that ADM's evaluator reads (arr_0, uint8 [N, H, W, 3]).
        cache_dir: cache folder for features, keyed by image content; by default ~/.cache/codegrid/features.
        samples: finished samples instead of a pipeline's: images of one size as in data.source, or an .npz file with
            arr_0. The reference is cut to their size.
        save_statistics: .npz file for mean and covariance of the reference's features, to be a reference later.
        num_workers: processes that load the pictures; 0 loads in the main process.
        data: the real images.

    Raises:
        DataError: the reference cannot be read as configured, or too few of its images could be used.
        LoadingError: the pipeline or the feature net cannot be loaded.
        OutputError: the output folder holds samples of another pipeline or seed, or other files of these names.
        CodegridError: a number is out of its range, or options exclude each other.
    """
    request = Request(
        *(pipeline, samples, num_images, batch_size, seed, num_reference, judge_images),
        *(tuple(guidance_scales), tuple(temperatures), top_k, top_p, npz, save_statistics, tuple(num_steps)),
        num_workers,
    )
    config = reference_config(data, reference, reference_split)
    folder = output_folder(output_dir, pipeline or samples or "")
    _check_place(folder)
    accelerator = make_accelerator()
    if samples is not None:
        scored = _scored_samples(request, config, accelerator, (feature_net, feature_weights, cache_dir))
    else:
        scored = _scored_pipeline(request, config, folder, accelerator, (feature_net, feature_weights, cache_dir))
    _run(scored, request, folder)
    wait_patiently(accelerator)
    return folder


@dataclass
class _Scored:
    """What is scored, with all that is needed for it, and everything checked.

    Attributes:
        rows: functions that make a row each; on other ranks than the main one it is empty.
        settings: fields that tell the rows of one identity apart.
        model: the pipeline's folder, whose card gets the table.
    """

    accelerator: Accelerator
    cache: FeatureCache
    reference: Reference
    rows: Sequence[Any]
    record: dict[str, Any]
    identity: dict[str, Any]
    settings: tuple[str, ...]
    notes: list[str]
    model: str | None


def _run(scored: _Scored, request: Request, folder: Path) -> None:
    """Make the rows one after the other. Each is written when it is there."""
    accelerator, reference = scored.accelerator, scored.reference
    if request.save_statistics and accelerator.is_main_process:
        save_statistics(request.save_statistics, reference, scored.cache)
        _say(accelerator, f"The reference's statistics are in {request.save_statistics}.")
    identity = {**scored.identity, "reference": reference.record["fingerprint"], "device": accelerator.device.type}
    identity |= {"cut": reference.record["preprocessing"], "num_reference": reference.record.get("num_images")}
    identity |= {"feature_net": scored.cache.net.describe(), "precision": accelerator.policy.precision}
    ledger = Ledger(NAME, identity, scored.settings)
    record = {**scored.record, "feature_net": scored.cache.net.describe(), "data": reference.record}
    record |= circumstances(accelerator)
    for make in scored.rows:
        row = make()
        if not accelerator.is_main_process:
            continue
        dimensions = reference.moments[0].shape[0]
        notes = [*reference.notes, *scored.notes]
        notes += reference.caution(row["num_images"], dimensions, scored.cache.net.names[0])
        said = len(ledger.said)
        rows = save_rows(ledger, [row], {**record, "notes": notes}, folder, scored.model, notes)
        _say(accelerator, ", ".join(f"{name} {number(value, 5)}" for name, value in row.items()))
        for note in [*ledger.said[said:], *(notes if make is scored.rows[-1] else [])]:
            _say(accelerator, note)
        if len(rows) > 1:
            picture = png(sweep_charts(rows))
            write_atomically(folder / _SWEEP_NAME, lambda aside, picture=picture: picture.save(aside, format="PNG"))
    _say(accelerator, f"The scores, and with what they were made, are in {folder / f'{NAME}.json'}.")


def _scored_pipeline(
    request: Request, data: Any, folder: Path, accelerator: Accelerator, net: tuple[Any, Any, Any]
) -> _Scored:
    assert request.pipeline is not None
    pipe = ImageGenerationPipeline.from_pretrained(request.pipeline).to(accelerator.device)
    config = pipe.tokenizer.config
    check_colours(config.backbone_config.in_channels, "`codegrid evaluate generation`")
    settings = request.settings(pipe.sampling)
    check_settings(settings, pipe.sequence, pipe.prior, request.num_steps)
    cut = Cut(config.preprocessing_config, config.backbone_config.in_channels)
    opened = open_reference(data, cut, request.num_workers)
    cache = FeatureCache(load_feature_net(*net[:2], accelerator.device), net[2])
    made = [
        Samples(pipe, setting, steps, folder, request.num_images, request.seed, request.batch_size, accelerator)
        for setting, steps in itertools.product(settings, request.num_steps or (None,))
    ]
    _say(accelerator, f"{opened.said}\nSamples: {request.num_images:,} of each of {len(made)} settings.")
    reference = _read(opened, request, cache, accelerator)
    judge = train_judge(reference, pipe.class_names, request.judge_images, cache, accelerator, pipe)
    fingerprints = {
        "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
        "prior_fingerprint": weights_fingerprint(pipe.prior),
    }
    fixed = {
        **fingerprints,
        "sampling": {name: value for name, value in settings[0].to_dict().items() if name not in VARIED},
        "seed": request.seed,
        "judge": None if judge is None else judge.identity(),
    }
    record = {"pipeline": request.pipeline, **fixed, "batch_size": request.batch_size}
    record |= {} if judge is None else {"judge": judge.describe()}
    return _Scored(
        accelerator,
        cache,
        reference,
        [lambda samples=samples: _row(samples, cache, reference, judge, request.npz) for samples in made],
        record,
        fixed,
        (*VARIED, "num_steps", "num_images"),
        [],
        request.pipeline,
    )


def _scored_samples(request: Request, data: Any, accelerator: Accelerator, net: tuple[Any, Any, Any]) -> _Scored:
    """Finished samples: one row."""
    assert request.samples is not None
    pictures, said = open_samples(request.samples, request.num_workers)
    check_number(len(pictures), "samples", LEAST_IMAGES)
    opened = open_reference(data, pictures.cut, request.num_workers)
    cache = FeatureCache(load_feature_net(*net[:2], accelerator.device), net[2])
    said = f"Samples: {said}\n{opened.said}"
    if opened.data is not None:
        said += f"\n  Reference pictures are cut to {pictures.cut.preprocessing.size_text}."
    _say(accelerator, said)
    same = opened.record["fingerprint"] == pictures.fingerprint
    reference = _read(opened, request, cache, accelerator)
    rows = spread(len(pictures), 0)
    found = set_features(pictures, rows, cache, accelerator, "samples", LEAST_IMAGES)
    names = pictures.source.class_names if isinstance(pictures, FolderPictures) else None
    names = tuple(names) if names is not None and (found.labels >= 0).all() else None
    judge = train_judge(reference, names, request.judge_images, cache, accelerator)

    def row() -> Row:
        scores = reference.scores(cache, found.features, found.logits, accelerator.device)
        scores |= {} if judge is None else judge.scores(found.features, found.labels)
        return {"num_images": len(found.features), **scores}

    return _Scored(
        accelerator,
        cache,
        reference,
        [row],
        {
            "samples": request.samples,
            "samples_fingerprint": pictures.fingerprint,
            "left_out": found.without,
            "judge": None if judge is None else judge.describe(),
        },
        {"samples_fingerprint": pictures.fingerprint, **({} if judge is None else {"judge": judge.identity()})},
        ("num_images",),
        [*["Samples and reference are the same pictures."] * same, *describe_left_out(found.without, "samples")],
        None,
    )


def _read(opened: OpenReference, request: Request, cache: FeatureCache, accelerator: Accelerator) -> Reference:
    probed = 0
    if opened.file is not None and opened.file.has_statistics:
        probed = cache.net.forward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0].shape[1]
    return read_reference(opened, request.num_reference, cache, probed, accelerator)


def _row(samples: Samples, cache: FeatureCache, reference: Reference, judge: Judge | None, npz: bool) -> Row:
    """Make the samples on all ranks and score them on the main process; other ranks return an empty row."""
    samples.make()
    keys = gather_object([(shard, cache.key(samples.pixels(shard))) for shard in samples.mine])
    wait_patiently(samples.accelerator)
    if not samples.accelerator.is_main_process:
        return {}
    samples.write_picture()
    if npz:
        tqdm.write(f"For ADM's evaluator: {samples.write_npz()}.")
    features, logits = cache.load([key for _, key in sorted(keys)])
    scores = reference.scores(cache, features, logits, samples.accelerator.device)
    agreement = {}
    if judge is not None:
        labels = torch.tensor([label for shard in samples.shards for label in samples.labels(shard) or ()])
        agreement = judge.scores(features, labels)
    sampling = {name: getattr(samples.sampling, name) for name in VARIED}
    row = {**sampling, "num_steps": samples.num_steps, "num_images": samples.num_images, **scores, **agreement}
    return {**row, "images_per_second": samples.images_per_second()}


def _check_place(folder: Path) -> None:
    """Refuse a folder with files of our names that are not ours, before anything is computed."""
    Ledger(NAME, {}).check(folder)
    sweep = folder / _SWEEP_NAME
    if sweep.exists() and not any(folder.glob(f"{NAME}*.json")):
        raise OutputError(
            f"{folder} holds a {_SWEEP_NAME} and no {NAME}.json.", "Choose another --output-dir, or move it."
        )


def sweep_charts(rows: Sequence[Row]) -> list[Chart]:
    """A chart per score over guidance, a line per temperature; over temperature or the steps if only these vary.

    Rows without both (of finished samples) are drawn over the number of samples.
    """
    axis, lines = "guidance_scale", "temperature"
    if len({row.get("num_steps") for row in rows}) > 1 and len({(row[axis], row[lines]) for row in rows}) == 1:
        axis, lines = "num_steps", "guidance_scale"
        rows = [row for row in rows if row["num_steps"] is not None]
    if any(row.get(axis) is None for row in rows):
        rows = [{"set": 0, **row} for row in rows]
        axis, lines = "num_images", "set"
    if len({row[axis] for row in rows}) == 1:
        axis, lines = lines, axis
    ignored = {*VARIED, "num_steps", "num_images", "set"}
    names = [name for name in rows[0] if name not in ignored and not name.endswith("_std")]
    charts = []
    for name in names:
        groups = {value: [row for row in rows if row[lines] == value] for value in sorted({row[lines] for row in rows})}
        series = [
            Series(f"{lines} {value:g}", sorted((row[axis], row[name]) for row in group if row[name] is not None))
            for value, group in groups.items()
        ]
        charts.append(Chart(name, axis, series))
    return charts


def _say(accelerator: Accelerator, message: str) -> None:
    if accelerator.is_main_process:
        tqdm.write(message)

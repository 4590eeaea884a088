"""What samples are worth as training pictures: a classifier on real pictures, on samples, on both.

For each number of real pictures a class and each seed a tokenizer and a prior are trained on the classifier's own
pictures and on no others, so that nothing flows in that the classifier does not have.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.class_agreement import class_agreement, train_classifier
from codegrid.pipelines.evaluation.reconstruction import all_pixels
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import machine
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json, write_text
from codegrid.pipelines.system.randomness import numpy_generator
from codegrid.pipelines.training.prior.presets import PRIOR_PRESETS
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer.images import to_uint8

NAME = "augmentation"
# Quantiles 0.975 of Student's t by degrees of freedom, 1 to 9: 95% intervals of the mean of 2 to 10 seeds.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_SHIFT = 2  # pixels, of the crops
# What a classifier is trained on, and whether its pictures are mirrored and shifted.
_WAYS = {
    "real": (("real",), False),
    "real, flips and crops": (("real",), True),
    "samples": (("samples",), False),
    "both": (("real", "samples"), False),
    "both, flips and crops": (("real", "samples"), True),
}
_BASE = "real, flips and crops"


@dataclass(frozen=True)
class _Budget:
    """The sizes of a trial, which make its results."""

    preset: str
    tokenizer_steps: int
    prior_steps: int
    classifier_steps: int
    samples_per_class: int
    guidance_scale: float
    temperature: float


@resumable()
def evaluate_augmentation(
    data: DataConfig,
    test_data: str,
    output_dir: str = "runs/augmentation",
    per_class: tuple[int, ...] = (20, 50, 200),
    seeds: int = 3,
    samples_per_class: int = 200,
    preset: Literal["quickstart", "small64"] = "quickstart",
    tokenizer_steps: int = 600,
    prior_steps: int = 600,
    classifier_steps: int = 600,
    guidance_scale: float = 1.5,
    temperature: float = 1.0,
) -> Path:
    """Train a classifier on real pictures, on samples of a model of these pictures, and on both; compare with flips.

    For each number of pictures a class and each seed a tokenizer and a prior are trained on the classifier's own
    pictures, and on no others. All classifiers have as many steps; in "both", half of what they see is real. To resume
    after a stop, run the command again.

    Args:
        data: labelled pictures to train on.
        test_data: labelled pictures of the same classes, which nothing is trained on.
        output_dir: folder for augmentation.json, augmentation.md, and a folder of each trial's runs.
        per_class: numbers of real pictures of each class.
        seeds: trials of each number, 2 to 10: other pictures, weights and samples.
        samples_per_class: samples that are drawn of each class.
        preset: of the tokenizer and the prior: quickstart is for small grey pictures, small64 for colour.
        tokenizer_steps: steps of a tokenizer.
        prior_steps: steps of a prior.
        classifier_steps: steps of a classifier, of 64 pictures.
        guidance_scale: of the samples; more is clearer and less varied.
        temperature: of the samples.

    Raises:
        DataError: pictures have no labels, other classes than the test pictures, or there are too few of a class.
        OutputError: the folder holds results of other settings.
        CodegridError: a number is out of its range.
    """
    numbers = {"samples_per_class": samples_per_class, "tokenizer_steps": tokenizer_steps}
    numbers |= {"prior_steps": prior_steps, "classifier_steps": classifier_steps}
    for name, value in {**numbers, "per_class": min(per_class, default=0)}.items():
        require(value >= 1, f"{name} is {value}.", "Give at least 1.")
    most = len(_STUDENT) + 1
    require(2 <= seeds <= most, f"seeds is {seeds}.", f"Give 2 to {most}: an interval needs several.")
    budget = _Budget(
        *(preset, tokenizer_steps, prior_steps, classifier_steps, samples_per_class, guidance_scale, temperature)
    )
    train, test = open_images(data), open_images(DataConfig(test_data))
    classes, rows = _rows_by_class(train, max(per_class))
    if test.class_names != classes:
        raise DataError(
            f"{test.description} has the classes {test.class_names}, and {train.description} has {classes}.",
            "Give test pictures of the same classes.",
        )
    folder = Path(output_dir)
    made_with = {"kind": NAME, **budget.__dict__, "data": train.fingerprint, "test_data": test.fingerprint}
    results = _results_so_far(folder / f"{NAME}.json", made_with)
    for number in per_class:
        for seed in range(seeds):
            if any((row["per_class"], row["seed"]) == (number, seed) for row in results):
                continue
            tqdm.write(f"\n== {number} pictures a class, seed {seed} ==")
            place = folder / f"{number:04d}-{seed}"
            chosen = _chosen(rows, number, seed)
            accuracies = _trial(place, train, classes, chosen, test, budget, seed)
            results.append({"per_class": number, "seed": seed, "accuracy": accuracies})
            tqdm.write(", ".join(f"{way} {value:.1%}" for way, value in accuracies.items()))
            write_json(folder / f"{NAME}.json", {**made_with, "results": results, "machine": machine()})
    text = table([row for row in results if row["per_class"] in per_class and row["seed"] < seeds])
    write_text(folder / f"{NAME}.md", text)
    tqdm.write(f"\n{text}\nThe table is in {folder / f'{NAME}.md'}, all accuracies in {NAME}.json.")
    return folder


def table(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: means with 95% intervals, and the gain of samples over flips and crops, seed by seed."""
    lines = ["| pictures a class | " + " | ".join(_WAYS) + " | gain over flips and crops |"]
    lines.append("|---" * (len(_WAYS) + 2) + "|")
    for number in sorted({row["per_class"] for row in results}):
        rows = [row["accuracy"] for row in results if row["per_class"] == number]
        cells = [_interval([row[way] for row in rows]) for way in _WAYS]
        gains = [row["both, flips and crops"] - row[_BASE] for row in rows]
        lines.append(f"| {number} | " + " | ".join(cells) + f" | {_interval(gains, '+')} |")
    return "\n".join(lines) + "\n"


def _interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half of the 95% interval, in per cent, by Student's t."""
    mean, number = statistics.mean(values), len(values)
    if number < 2:
        return f"{100 * mean:{sign}.1f}"
    half = _STUDENT[number - 2] * statistics.stdev(values) / number**0.5
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"


def _trial(
    place: Path,
    train: ImageSource,
    classes: list[str],
    chosen: list[int],
    test: ImageSource,
    budget: _Budget,
    seed: int,
) -> dict[str, float]:
    """Train a generator and the classifiers on the chosen pictures: accuracy on the test pictures by way."""
    pipe = _generator(place, _write_pictures(place / "images.parquet", train, classes, chosen), budget, seed)
    labels = np.repeat(np.arange(len(classes)), budget.samples_per_class)
    samples = to_uint8(pipe(labels.tolist(), seed=seed, output_type="pt", progress=False).images).numpy()
    real, real_labels = all_pixels(pipe.tokenizer, open_images(DataConfig(str(place / "images.parquet"))))
    unseen, unseen_labels = all_pixels(pipe.tokenizer, test)
    accuracies = {}
    for way, (parts, augmented) in _WAYS.items():
        pictures = {"real": (real, real_labels), "samples": (samples, labels)}
        most = max(len(pictures[part][0]) for part in parts)
        # Each part is repeated up to the largest: as often seen as the other.
        given = [
            np.concatenate([np.resize(pictures[part][kind], (most, *pictures[part][kind].shape[1:])) for part in parts])
            for kind in (0, 1)
        ]
        classifier = train_classifier(
            *given, len(classes), seed=seed, steps=budget.classifier_steps, shift=_SHIFT if augmented else None
        )
        accuracies[way] = class_agreement(classifier, unseen, unseen_labels)
    return accuracies


def _generator(place: Path, pictures: DataConfig, budget: _Budget, seed: int) -> ImageGenerationPipeline:
    """A pipeline trained on these pictures alone. Finished runs are taken as they are."""
    tokenizer, prior = str(place / "tokenizer"), str(place / "prior")
    config = TOKENIZER_PRESETS[budget.preset](pictures.source, tokenizer)
    steps = budget.tokenizer_steps
    train_tokenizer(replace(config, data=pictures, max_steps=steps, eval_every=steps, seed=seed, tracking=()))
    codes = tokenize_dataset(TokenizationConfig(tokenizer, pictures, str(place / "codes"), flip=True))
    prior_config = PRIOR_PRESETS[budget.preset](str(codes), prior)
    steps = budget.prior_steps
    train_prior(
        replace(
            *(prior_config,),
            **{"max_steps": steps, "eval_every": steps, "seed": seed, "tracking": (), "num_samples": 0},
        )
    )
    options = {"guidance_scale": budget.guidance_scale, "temperature": budget.temperature}
    return ImageGenerationPipeline.from_pretrained(make_pipeline(tokenizer, prior, str(place / "pipeline"), **options))


def _rows_by_class(source: ImageSource, needed: int) -> tuple[list[str], list[list[int]]]:
    """The classes, and each one's rows in the source.

    Raises:
        DataError: there are no labels, or fewer pictures of a class than needed.
    """
    classes = source.class_names
    if not classes:
        raise DataError(f"{source.description} has no classes.", "Give labelled pictures.")
    rows: list[list[int]] = [[] for _ in classes]
    for place, record in enumerate(source):
        if record.label is not None and record.label >= 0:
            rows[record.label].append(place)
    least = min(range(len(classes)), key=lambda label: len(rows[label]))
    if len(rows[least]) < needed:
        raise DataError(
            f"{source.description} has {len(rows[least])} pictures of {classes[least]!r}, and {needed} are needed.",
            "Lower per_class, or give more pictures.",
        )
    return list(classes), rows


def _chosen(rows: Sequence[Sequence[int]], number: int, seed: int) -> list[int]:
    """`number` rows of each class; those of a smaller number are among them."""
    found = []
    for label, own in enumerate(rows):
        order = numpy_generator(seed, "augmentation", label).permutation(len(own))
        found += [own[place] for place in order[:number]]
    return found


def _write_pictures(path: Path, source: ImageSource, classes: list[str], rows: Sequence[int]) -> DataConfig:
    """The chosen pictures as a Parquet file, all to train on."""
    from datasets import ClassLabel, Dataset, Features, Image

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [source[row] for row in rows]
        stored = [record.data if isinstance(record.data, bytes) else record.data.read_bytes() for record in records]
        columns = {
            "image": [{"bytes": data, "path": hashlib.sha256(data).hexdigest()[:16]} for data in stored],
            "label": [record.label for record in records],
        }
        features = Features({"image": Image(), "label": ClassLabel(names=classes)})
        table = Dataset.from_dict(columns, features=features)
        write_atomically(path, lambda aside: table.to_parquet(str(aside)))
    return DataConfig(str(path), validation_fraction=0.0)


def _results_so_far(path: Path, made_with: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name, value in made_with.items() if before.get(name) != value]
    if different:
        raise OutputError(
            f"{path} holds results of other settings (different: {', '.join(different)}).",
            "Choose another --output-dir.",
        )
    return before["results"]

"""The whole workflow on the embedded Fashion-MNIST images: tokenizer, codes, prior, pipeline, samples and scores."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from codegrid.names import shown
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES as IMAGES
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.class_agreement import (
    class_agreement,
    diversity_ratio,
    near_copy_share,
    train_classifier,
)
from codegrid.pipelines.evaluation.reconstruct import reconstruction_sheet
from codegrid.pipelines.evaluation.reconstruction import all_pixels, evaluate_reconstruction
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_atomically, write_json
from codegrid.pipelines.training.prior.presets import quickstart_prior
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.presets import quickstart_tokenizer
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer.images import to_pil, to_uint8

_HELD_OUT = 500
_SAMPLES = 500
_JUDGE_SEED = 0
# Chosen among 18 settings of one seed, of which eight were drawn of two more (docs/experiments.md): more guidance makes
# samples of a class resemble each other, and leaves specks beside boots, bags and pullovers; without top-p fewer
# samples are recognised.
_SAMPLING = {"guidance_scale": 1.5, "temperature": 0.9, "top_p": 0.9}


@resumable()
def quickstart(output_dir: str = "runs/quickstart", test_data: str | None = None, seed: int = 0) -> Path:
    """Train a tokenizer, tokenize, train a class-conditional prior, generate samples, and score them.

    Args:
        output_dir: folder for images/, tokenizer/, codes/, prior/, pipeline/, samples.png, reconstructions.png and
            report.json. To resume after a stop, run it again: finished stages are skipped, and their seconds
            stay in the report.
        test_data: Parquet file with other test images of the same kind; by default the held-out images are used.
        seed: of both trainings and of the samples; the judge is the same for each.
    """
    folder = Path(output_dir)
    report_file = folder / "report.json"
    given = None if test_data is None else _labelled(test_data)
    seconds = _seconds_of_stages(report_file)
    source = _split_images(folder / "images")
    config = replace(quickstart_tokenizer(source.source, str(folder / "tokenizer")), data=source, seed=seed)
    tokenizer = _timed(seconds, "train_tokenizer", lambda: train_tokenizer(config))
    tokenization = TokenizationConfig(str(tokenizer), source, str(folder / "codes"), flip=True)
    codes = _timed(seconds, "tokenize", lambda: tokenize_dataset(tokenization))
    prior_config = replace(quickstart_prior(str(codes), str(folder / "prior")), seed=seed)
    prior = _timed(seconds, "train_prior", lambda: train_prior(prior_config))
    make_pipeline(str(tokenizer), str(prior), str(folder / "pipeline"), **_SAMPLING)
    pipe = ImageGenerationPipeline.from_pretrained(folder / "pipeline")
    pipe = pipe.to(make_accelerator().device)
    labels = [label for label in range(len(pipe.class_names)) for _ in range(_SAMPLES // len(pipe.class_names))]
    samples = _timed(seconds, "generate", lambda: pipe(labels, seed=seed, output_type="pt", batch_size=100).images)
    # Images that no stage has seen: the user's, or the held-out ones.
    test_source = given or open_images(DataConfig(source.source, split="validation"))
    scores = _timed(seconds, "judge", lambda: _judge(pipe, samples, labels, open_images(source), test_source))
    _pictures(folder, pipe, samples, labels, test_source)
    report = {"seconds": {**seconds, "total": sum(seconds.values())}, **scores, "machine": _machine()}
    write_json(report_file, report)
    print(json.dumps(report, indent=2))
    _say_what_next(folder)
    return folder


def _labelled(test_data: str) -> ImageSource:
    """The user's test images, refused before minutes of work if they cannot be judged."""
    source, known = open_images(DataConfig(test_data)), open_images(DataConfig(str(IMAGES))).class_names
    if not source.class_names or len(source.class_names) > len(known or ()):
        has = f"{len(source.class_names)} classes" if source.class_names else "no labels"
        raise DataError(
            f"--test-data {shown(test_data)} has {has}.", f"Give pictures with the labels 0 to {len(known or ()) - 1}."
        )
    return source


def _split_images(folder: Path) -> DataConfig:
    """Write the embedded images as a training and a validation file. No stage sees the held-out images."""
    parts = {"train": slice(0, -_HELD_OUT), "validation": slice(-_HELD_OUT, None)}
    table = pq.read_table(IMAGES)
    for split, part in parts.items():
        path = folder / f"{split}.parquet"
        if not path.exists():
            start, stop, _ = part.indices(len(table))
            rows = table.slice(start, stop - start)
            write_atomically(path, lambda aside, rows=rows: pq.write_table(rows, aside))
    return DataConfig(str(folder), split="train", validation_split="validation")


def _judge(
    pipe: ImageGenerationPipeline, samples: torch.Tensor, labels: list[int], train: ImageSource, test: ImageSource
) -> dict[str, Any]:
    """Scores of the test images' reconstructions, and those of the samples by a classifier trained on real images."""
    reconstruction = evaluate_reconstruction(pipe.tokenizer, test, make_accelerator(), batch_size=100)
    real, real_labels = all_pixels(pipe.tokenizer, train)
    unseen, unseen_labels = all_pixels(pipe.tokenizer, test)
    made, made_labels = to_uint8(samples).numpy(), np.array(labels)
    classifier = train_classifier(real, real_labels, len(pipe.class_names), seed=_JUDGE_SEED)
    return {
        "reconstruction": asdict(reconstruction),
        "generation": {
            "num_samples": len(made),
            **pipe.sampling.to_dict(),
            "class_agreement": class_agreement(classifier, made, made_labels),
            "class_agreement_of_real_images": class_agreement(classifier, unseen, unseen_labels),
            "diversity_ratio": diversity_ratio(made, made_labels, unseen, unseen_labels),
            "near_copy_share": near_copy_share(made, real, unseen),
            "near_copy_share_of_real_images": near_copy_share(unseen, real, unseen),
        },
    }


def _pictures(
    folder: Path, pipe: ImageGenerationPipeline, samples: torch.Tensor, labels: list[int], test: ImageSource
) -> None:
    """samples.png: ten samples of each class; reconstructions.png: test images above their reconstructions."""
    assert pipe.class_names is not None  # the embedded images have classes
    per_class = len(labels) // len(pipe.class_names)
    shown = [first + index for first in range(0, len(labels), per_class) for index in range(10)]
    chosen = [labels[index] for index in shown]
    sheet = class_sheet(to_pil(samples[shown]), [pipe.class_names[label] for label in chosen], chosen)
    write_atomically(folder / "samples.png", lambda aside: sheet.save(aside, format="PNG"))
    pairs = reconstruction_sheet(pipe.tokenizer, next(prepared_batches(pipe.tokenizer, iter(test), 32)).images)
    write_atomically(folder / "reconstructions.png", lambda aside: pairs.save(aside, format="PNG"))


def _timed(seconds: dict[str, float], name: str, run: Callable[[], Any]) -> Any:
    tqdm.write(f"\n== {name.replace('_', ' ')} ==")
    began = time.monotonic()
    result = run()
    seconds[name] = round(seconds.get(name, 0) + time.monotonic() - began, 1)
    return result


def _seconds_of_stages(report_file: Path) -> dict[str, float]:
    """The seconds that an earlier call spent on the stages that are finished now."""
    if not report_file.exists():
        return {}
    before = json.loads(report_file.read_text(encoding="utf-8"))["seconds"]
    return {name: before[name] for name in ("train_tokenizer", "tokenize", "train_prior")}


def _machine() -> dict[str, Any]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "cpu" if device is None else device.type
    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return {
        "device": kind,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _say_what_next(folder: Path) -> None:
    activate = (
        Path(os.path.relpath(sys.prefix)) / "bin" / "activate"
    )  # `make quickstart` runs in an environment that is not activated
    to_be_found = f"   . {activate}\n" if shutil.which("codegrid") is None and activate.exists() else ""
    print(
        f"\nLook at {folder / 'samples.png'} and {folder / 'reconstructions.png'}; one page of all runs, and one to "
        f"play with the pipeline (it wants `pip install gradio`):\n{to_be_found}"
        f"   codegrid report {folder}\n"
        f"   codegrid demo --pipeline {folder / 'pipeline'}\n"
        "With your own images, a folder of them whose subfolders are the classes:\n"
        "1. codegrid look IMAGES\n"
        "2. codegrid train-tokenizer small64 --data.source IMAGES --output-dir runs/tokenizer\n"
        "3. codegrid tokenize-dataset --tokenizer runs/tokenizer --data.source IMAGES --output-dir runs/codes --flip\n"
        "4. codegrid train-prior small64 --codes runs/codes --output-dir runs/prior\n"
        "5. codegrid make-pipeline --tokenizer runs/tokenizer --prior runs/prior --output-dir runs/pipeline\n"
        "6. codegrid generate --pipeline runs/pipeline --num-images 64 --seed 0 --output-dir runs/samples\n"
        "7. codegrid report runs/tokenizer"
    )

"""The quickstart, whole, on few images and steps: what it leaves, and what a second call does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines import quickstart as module
from codegrid.pipelines.training.prior.presets import quickstart_prior
from codegrid.pipelines.training.tokenizer.presets import quickstart_tokenizer

NEXT = ["look", "train-tokenizer", "tokenize-dataset", "train-prior", "make-pipeline", "generate", "report"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """200 of the embedded images, two steps of each training, 100 samples."""
    images = tmp_path / "images.parquet"
    pq.write_table(pq.read_table(module.IMAGES).slice(0, 200), images)

    def tokenizer(source: str, output_dir: str):
        return replace(quickstart_tokenizer(source, output_dir), max_steps=2, tracking=())

    def prior(codes: str, output_dir: str):
        return replace(quickstart_prior(codes, output_dir), max_steps=2, tracking=())

    for name, value in {"IMAGES": images, "_HELD_OUT": 60, "_SAMPLES": 100}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "quickstart_tokenizer", tokenizer)
    monkeypatch.setattr(module, "quickstart_prior", prior)
    monkeypatch.setattr(module, "train_classifier", partial(module.train_classifier, steps=2))


def test_the_whole_job_leaves_pictures_and_a_report(
    few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = module.quickstart(str(tmp_path / "run"))
    report = json.loads((folder / "report.json").read_text())
    assert set(report["seconds"]) == {"train_tokenizer", "tokenize", "train_prior", "generate", "judge", "total"}
    assert report["reconstruction"]["num_images"] == 60
    assert report["generation"]["num_samples"] == 100
    assert [Image.open(folder / f"{name}.png").format for name in ("samples", "reconstructions")] == ["PNG", "PNG"]
    printed = capsys.readouterr().out
    said = re.findall(r"^(?:\d\.|  ) (codegrid .*)$", printed, re.MULTILINE)  # what to do next
    assert [line.split()[1] for line in said[2:]] == NEXT
    assert said[0] == f"codegrid report {folder}"
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert all(f"    {line}" in readme for line in said[3:])

    pipe = ImageGenerationPipeline.from_pretrained(folder / "pipeline")
    assert pipe("Sandal", seed=0).codes.shape == (1, 8, 8)
    assert pipe.sampling.guidance_scale == module._SAMPLING["guidance_scale"]


def test_a_second_call_repeats_no_stage_and_keeps_its_seconds(few: None, tmp_path: Path) -> None:
    folder = module.quickstart(str(tmp_path / "run"))
    (checkpoint,) = (folder / "prior" / "checkpoints").glob("step-*")
    report, written = json.loads((folder / "report.json").read_text()), checkpoint.stat().st_mtime_ns
    report["seconds"]["train_prior"] = 1000.0
    (folder / "report.json").write_text(json.dumps(report))

    module.quickstart(str(tmp_path / "run"))
    again = json.loads((folder / "report.json").read_text())
    assert checkpoint.stat().st_mtime_ns == written
    assert again["seconds"]["train_prior"] >= 1000
    assert again["seconds"]["total"] >= again["seconds"]["train_prior"]
    assert again["reconstruction"] == report["reconstruction"]
    assert again["generation"] == report["generation"]


def test_the_seed_reaches_both_trainings_and_the_samples(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def judge(pipe, samples, labels, *sources):
        judged.extend([samples, labels])
        return {}

    monkeypatch.setattr(module, "_judge", judge)
    folder = module.quickstart(str(tmp_path / "run"), seed=3)
    assert [
        json.loads((folder / part / "training_config.json").read_text())["seed"] for part in ("tokenizer", "prior")
    ] == [3, 3]
    pipe, (samples, labels) = ImageGenerationPipeline.from_pretrained(folder / "pipeline"), judged
    assert torch.equal(pipe(labels, seed=3, output_type="pt", batch_size=100).images, samples)
    assert not torch.equal(pipe(labels, seed=0, output_type="pt", batch_size=100).images, samples)

"""Trackers get numbers, pictures and histograms; metrics.jsonl stays free of times."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.train import train_tokenizer

SHORT = {"max_steps": 2, "log_every": 1, "eval_every": 1}


def test_tensorboard_gets_losses_rates_pictures_and_histograms(tokenizer_config, tmp_path):
    objective = {"adversarial_weight": 0.5, "adversarial_start": 0}
    config = tokenizer_config(tmp_path / "run", **SHORT, objective=objective, tracking=("tensorboard",))
    folder = next((train_tokenizer(config) / "tensorboard").rglob("events.*")).parent
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()
    tags = events.Tags()
    wanted = {"train/l1", "train/grad_norm", "train/learning_rate", "train/discriminator_learning_rate"}
    wanted |= {"train/code_usage", "train/code_perplexity", "validation/psnr"}
    wanted |= {"timing/steps_per_second", "timing/images_per_second", "timing/peak_memory_gb"}
    assert wanted <= set(tags["scalars"])
    assert "reconstructions" in tags["images"]
    assert [event.step for event in events.Histograms("code_usage")] == [1, 2]
    assert events.Histograms("code_usage")[0].histogram_value.num == 32
    assert 0.05 < events.Scalars("timing/peak_memory_gb")[-1].value < 64
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("second" in name or "memory" in name for line in lines for name in line)


def test_a_priors_pictures_have_the_same_seeds(prior_config, tmp_path):
    run = train_prior(prior_config(tmp_path / "run", **SHORT, num_samples=6))
    first, second = sorted((run / "pictures").glob("samples-*.png"))
    assert np.asarray(Image.open(first)).shape == np.asarray(Image.open(second)).shape
    again = train_prior(prior_config(tmp_path / "again", **SHORT, num_samples=6))
    assert (again / "pictures" / first.name).read_bytes() == first.read_bytes()
    none = train_prior(prior_config(tmp_path / "none", **SHORT, num_samples=0))
    assert not (none / "pictures").exists()
    assert (none / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()  # samples change no training


def test_a_prior_without_its_tokenizer_trains_without_pictures(prior_config, codes, tmp_path, capsys, monkeypatch):
    moved = tmp_path / "codes"
    moved.mkdir()
    for path in codes.rglob("*"):
        if path.is_file():
            (moved / path.relative_to(codes)).parent.mkdir(parents=True, exist_ok=True)
            (moved / path.relative_to(codes)).write_bytes(path.read_bytes())
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "tokenizer": "someone/tokenizer"}))
    run = train_prior(prior_config(tmp_path / "run", codes=str(moved), max_steps=1))
    assert "No samples while training" in capsys.readouterr().out
    assert not (run / "pictures").exists()


def test_wandb_offline(tokenizer_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train_tokenizer(tokenizer_config(tmp_path / "run", **SHORT, tracking=("wandb",)))
    (offline,) = (run / "wandb").glob("offline-run-*")
    (file,) = offline.glob("*.wandb")
    deadline = time.monotonic() + 60  # a process of W&B's own writes the file, on a busy machine after the run's end
    wanted = (b"train/l1", b"timing/images_per_second", b"code_usage", b"reconstructions")
    while not all(name in file.read_bytes() for name in wanted) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [name for name in wanted if name not in file.read_bytes()] == []
    assert list(offline.rglob("*.png"))


def test_trackio_offline(tokenizer_config, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    for module in (trackio.utils, trackio.sqlite_storage, trackio):
        for name in ("TRACKIO_DIR", "MEDIA_DIR"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / "trackio" / ("media" if name == "MEDIA_DIR" else ""))
    train_tokenizer(tokenizer_config(tmp_path / "run", **SHORT, tracking=("trackio",)))
    stored = [path for path in Path(tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in stored)
    assert any(path.suffix == ".png" for path in stored)

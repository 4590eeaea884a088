"""A run's folder: whom it belongs to, and what a resume makes of it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from codegrid.pipelines.artifacts.export import export
from codegrid.pipelines.system.console import guarded
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json
from codegrid.pipelines.training import run as run_module
from codegrid.pipelines.training.checkpoint import Checkpoint, save_checkpoint
from codegrid.pipelines.training.config import TrainingConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.run import Run


@pytest.fixture
def config(tmp_path):
    return TrainingConfig(output_dir=str(tmp_path / "run"), device="cpu", mixed_precision="no", tracking=())


def saved(config: TrainingConfig, stage: str = "tokenizer") -> None:
    """A run of `config` that has saved something."""
    with Run(config, stage) as run:
        save_checkpoint(run.checkpoints, Checkpoint(1, {"model": {"a": torch.ones(1)}}, {}), 1)


def test_the_config_is_written_and_the_same_one_goes_on(config, tmp_path):
    saved(config)
    written = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert (written["stage"], written["max_steps"], written["tracking"]) == ("tokenizer", 100_000, [])
    with Run(config, "tokenizer"):
        pass
    with Run(replace(config, num_workers=3, log_every=7, save_every=9, keep_last=5), "tokenizer"):
        pass  # no weight depends on these


def test_a_process_group_outlives_a_run_and_ends_with_the_command(config, tmp_path):
    """A command may train twice, as the quickstart does: a run that left the group left ranks without one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    there = []

    def command() -> None:
        for name in "ab":
            with Run(replace(config, output_dir=str(tmp_path / name)), "tokenizer"):
                pass
            there.append(torch.distributed.is_initialized())

    try:
        guarded(command)
        assert there == [True, True]
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_another_config_is_refused_and_the_difference_is_named(config, tokenizer_config, tmp_path):
    saved(config)
    with pytest.raises(OutputError, match=r"batch_size was 64, is 8; seed was 0, is 1\. Pass"):
        Run(replace(config, batch_size=8, seed=1), "tokenizer")
    with pytest.raises(OutputError, match="stage was 'tokenizer', is 'prior'"):
        Run(config, "prior")
    with Run(config, "tokenizer"):  # and nothing was written or left locked by the refusal
        pass
    nested = tokenizer_config(tmp_path / "nested")
    saved(nested)
    with pytest.raises(OutputError, match=r"Different are: optimizer\.learning_rate was 0\.001, is 0\.5\. Pass"):
        Run(replace(nested, optimizer=OptimizerConfig(learning_rate=0.5)), "tokenizer")


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".DS_Store").write_text("")
    with Run(config, "tokenizer"):  # hidden files do not count
        pass
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("all of it")
    with pytest.raises(OutputError, match="is not empty and holds no training run"):
        Run(replace(config, output_dir=str(thesis)), "tokenizer")
    with pytest.raises(OutputError, match="is a file"):
        Run(replace(config, output_dir=str(thesis / "thesis.tex")), "tokenizer")
    with pytest.raises(OutputError, match="Not a directory"):
        Run(replace(config, output_dir=str(thesis / "thesis.tex" / "run")), "tokenizer")
    with pytest.raises(ValueError, match="output_dir is empty"):
        Run(replace(config, output_dir=""), "tokenizer")
    assert [path.name for path in thesis.iterdir()] == ["thesis.tex"]


def test_a_config_that_cannot_be_read_is_refused(config, tmp_path):
    saved(config)
    (tmp_path / "run" / "training_config.json").write_text("{")
    with pytest.raises(OutputError, match=r"training_config\.json cannot be read"):
        Run(config, "tokenizer")


def test_two_runs_at_once_are_refused(config):
    with Run(config, "tokenizer"), pytest.raises(OutputError, match="Another process is training"):
        Run(config, "tokenizer")
    with Run(config, "tokenizer"):
        pass
    with pytest.raises(KeyError), Run(config, "tokenizer"):
        raise KeyError
    with Run(config, "tokenizer"):  # an error gives the folder back as well
        pass


def test_metrics_after_the_checkpoint_are_forgotten(config, tmp_path):
    with Run(config, "tokenizer") as run:
        for step in (1, 2, 3):
            run.metrics(step, "train", {"loss": step / 2})
        path = tmp_path / "run" / "metrics.jsonl"
        with path.open("ab") as file:
            file.write(b'{"step": 4, "kind": "tra')  # torn
        run.forget_metrics_after(2)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
        run.metrics(3, "train", {"loss": 9.0})
        assert [json.loads(line) for line in path.read_text().splitlines()][-1] == {
            "step": 3,
            "kind": "train",
            "loss": 9.0,
        }
        for torn in (bytes(20), b"\xff\xfe", b"12", b'{"kind": "train"}'):
            with path.open("ab") as file:
                file.write(torn)
            run.forget_metrics_after(3)
            assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
        run.forget_metrics_after(0)
        assert path.read_text() == ""


def test_a_second_signal_leaves_at_once_but_not_the_same_one_passed_on(config, monkeypatch):
    left = []
    monkeypatch.setattr(run_module.os, "_exit", left.append)
    before = signal.getsignal(signal.SIGINT)
    with Run(config, "tokenizer") as run:
        run.listen_for_signals()
        assert not run.should_stop()
        for _ in range(2):  # the terminal's, and torchrun's
            os.kill(os.getpid(), signal.SIGINT)
            assert run.should_stop()
        assert left == []
        monkeypatch.setattr(run_module, "_ONE_REQUEST", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]
    assert signal.getsignal(signal.SIGINT) is before


def test_pictures(config, tmp_path):
    with Run(config, "tokenizer") as run:
        run.picture("reconstructions", 12, torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert (tmp_path / "run" / "pictures" / "reconstructions-000000012.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_steps", 0, "max_steps is 0"),
        ("seed", -1, "seed is -1"),
        ("ema_decay", 1.0, r"ema_decay is 1\.0"),
        ("keep_last", 0, "keep_last is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(config, field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **{field: value})


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_an_export_that_fails_changes_nothing(tmp_path, error):
    export(tmp_path, lambda aside: write_json(aside / "config.json", {"old": True}))

    def fail(aside):
        write_json(aside / "config.json", {"old": False})
        raise error

    with pytest.raises(OutputError, match="Could not write the model"):
        export(tmp_path, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text()) == {"old": True}


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, lambda aside: aside.write_text("old") and None)

    def fail(aside):
        aside.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        write_atomically(path, fail)
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
    with pytest.raises(OutputError, match="File exists"):
        write_atomically(path / "below", lambda aside: None)

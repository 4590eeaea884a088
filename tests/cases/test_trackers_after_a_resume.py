"""Row "trackers after a resume": one run of W&B, trackio and TensorBoard, however often it was stopped.

W&B and trackio are stand-ins that record what Accelerate's own trackers call.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import tokenizer_run, write_pictures

from codegrid.pipelines.training.tokenizer import train
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.pipelines.training.tracking import TrackerError


class StandIn(ModuleType):
    """A module with `init`, `config.update`, `Image` and `Histogram`; `started` has the arguments of each `init`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.started: list[dict] = []
        self.logged: list[tuple[int | None, tuple[str, ...]]] = []
        self.config = SimpleNamespace(update=lambda *args, **kwargs: None)
        self.Image = self.Histogram = lambda *args, **kwargs: "picture"

    def init(self, **arguments):
        self.started.append(arguments)
        run = SimpleNamespace(finish=lambda: None)
        run.log = lambda values, step=None, **kwargs: self.logged.append((step, tuple(values)))
        return run


@pytest.fixture
def tracker(monkeypatch):
    def make(name: str) -> StandIn:
        module = StandIn(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    for name in ("PROJECT", "RUN_ID", "RESUME", "NAME", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


class CrashError(Exception):
    pass


def crash_at(step: int, config, monkeypatch) -> None:
    """Train until the process would die in the middle of `step`."""
    original, calls = train.train_step, iter(range(100))

    def dying(*args, **kwargs):
        if next(calls) == step:
            raise CrashError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", dying)
        with pytest.raises(CrashError):
            train_tokenizer(config)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("crashes", [(), (1,), (3, 1), 6])
def test_a_run_is_one_run_with_its_config(name, crashes, tracker, pictures, tmp_path, monkeypatch):
    if isinstance(crashes, int):
        draw = random.Random(crashes)
        crashes = tuple(draw.randint(0, 2) for _ in range(draw.randint(1, 3)))
    module = tracker(name)
    config = tokenizer_run(tmp_path / "run", pictures, max_steps=8, log_every=1, save_every=2, tracking=(name,))
    for step in crashes:
        crash_at(step, config, monkeypatch)
    train_tokenizer(config)
    other = tokenizer_run(tmp_path / "again" / "run", pictures, max_steps=1, tracking=(name,))
    train_tokenizer(other)
    *starts, new = module.started
    key = "id" if name == "wandb" else "name"
    assert len(starts) == len(crashes) + 1
    assert len({start[key] for start in starts}) == 1, crashes
    assert new[key] != starts[0][key]
    for start in starts:
        assert (start["resume"], start["project"]) == ("allow", "codegrid")
        assert start["config"]["quantizer"]["codebook_size"] == 16
        assert start["config"]["stage"] == "tokenizer"


def test_the_environment_decides_where_it_says_something(tracker, pictures, tmp_path, monkeypatch):
    """Arguments of wandb.init override W&B's variables, so that none may be given beside one."""
    module = tracker("wandb")
    variables = {"PROJECT": "birds", "RUN_ID": "mine", "NAME": "first", "RESUME": "must", "DIR": str(tmp_path)}
    for key, value in variables.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    train_tokenizer(tokenizer_run(tmp_path / "run", pictures, max_steps=1, tracking=("wandb",)))
    (start,) = module.started
    assert start["project"] == "birds"
    assert not {"id", "name", "resume", "dir"} & set(start)


@pytest.mark.parametrize("seed", [2])
def test_tensorboard_shows_each_step_once(seed, pictures, tmp_path, monkeypatch):
    draw = random.Random(seed)
    config = tokenizer_run(
        tmp_path / "run", pictures, max_steps=9, log_every=1, save_every=3, eval_every=9, tracking=("tensorboard",)
    )
    crash_at(draw.choice([4, 5]), config, monkeypatch)  # steps 4 and 5 were written, the checkpoint is of step 3
    crash_at(2, config, monkeypatch)
    train_tokenizer(config)
    train_tokenizer(replace(config, max_steps=10))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    steps = [event.step for event in events.Scalars("train/grad_norm")]
    assert steps == list(range(1, 11)), f"seed {seed}"


def test_a_tracker_that_does_not_start_is_a_sentence(tracker, pictures, tmp_path):
    module = tracker("wandb")
    module.init = lambda **arguments: (_ for _ in ()).throw(RuntimeError("api_key not configured (no-tty)"))
    config = tokenizer_run(tmp_path / "run", pictures, max_steps=1, tracking=("wandb",))
    with pytest.raises(TrackerError, match=r"wandb does not start: api_key not configured \(no-tty\)\. Log in"):
        train_tokenizer(config)
    train_tokenizer(replace(config, tracking=()))

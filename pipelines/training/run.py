"""One training run: its folder, its devices, and what it reports."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torchvision.io import encode_png
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import (
    GO_ON,
    OutputError,
    describe,
    write_atomically,
    write_text,
)
from codegrid.pipelines.training.claim import Identity, claim_folder
from codegrid.pipelines.training.config import TrainingConfig
from codegrid.pipelines.training.tracking import peak_memory_gb, show_histogram, show_picture

METRICS_NAME = "metrics.jsonl"
# Exit status of a run that SIGTERM or Ctrl-C stopped and that saved a checkpoint. It is that of SIGTERM.
EXIT_STOPPED = 143
# Signals within this many seconds count as one: torchrun forwards a Ctrl-C that its ranks have received already.
_ONE_REQUEST = 5.0
# This many steps in a row without finite gradients end a run: its weights are intact, but it learns nothing.
_MOST_BAD_STEPS = 20


class TrainingError(CodegridError):
    """Training cannot continue. The message says why and what to change."""


class Run:
    """A run's folder, Accelerator, log, metrics and progress bar.

    training_config.json   the resolved config; the same command resumes, a different one is refused
    made_from.json         the identity of the pictures or codes; they may grow, different ones are refused
    metrics.jsonl          a line every `log_every` and `eval_every` steps, without wall-clock time, so that a resumed
                           run's file equals that of an uninterrupted run
    tensorboard/, pictures/, checkpoints/
    config.json, *.safetensors, README.md   the exported model, once the run is finished
    """

    def __init__(self, config: TrainingConfig, stage: str, identity: Identity | None = None) -> None:
        require(bool(config.output_dir), "output_dir is empty: say where the run goes with --output-dir RUN.")
        self.config, self.folder = config, Path(config.output_dir)
        self.accelerator: Accelerator = make_accelerator(
            config.device, config.mixed_precision, training=True, deterministic=config.deterministic
        )
        self.is_main = self.accelerator.is_main_process
        # An uneven split fails here, before any rank starts to compute.
        self.micro_batch_size = config.micro_batch_size(self.accelerator.num_processes)
        self._lock: IO[str] | None = None
        self.identity = identity
        self._claim(stage)
        self.trackers = [start_tracker(name, self.folder) for name in config.tracking]
        self.peak_flops = 0.0  # operations per second of a matrix product on this device; 0 if not measured
        self.stop_requested = False
        self._bar: tqdm | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def devices(self) -> str:
        """The number of devices and how they compute, as text for people."""
        return f"{self.num_ranks} x {self.accelerator.policy}"

    def log(self, message: str) -> None:
        """Print a line for the user, on the main process, without breaking the progress bar."""
        if self.is_main:
            tqdm.write(message)

    def metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and pass the values to the trackers."""
        if not self.is_main:
            return
        path = self.folder / METRICS_NAME
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        except OSError as error:  # resuming removes a torn line
            raise OutputError(f"Could not write {path}: {error.strerror}. {GO_ON}") from error
        for tracker in self.trackers:
            tracker.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def timing(self, step: int, values: dict[str, float]) -> None:
        """Log rates and peak memory to the trackers only, because they differ between runs."""
        if self.is_main:
            values = {**values, "peak_memory_gb": peak_memory_gb()}
            for tracker in self.trackers:
                tracker.log({f"timing/{name}": value for name, value in values.items()}, step=step)

    def picture(self, name: str, step: int, grid: Tensor) -> None:
        """Save a picture, uint8 [3, H, W], under pictures/ and pass it to the trackers."""
        if self.is_main:
            path = self.folder / "pictures" / f"{name}-{step:09d}.png"
            write_atomically(path, lambda aside: aside.write_bytes(encode_png(grid).numpy().tobytes()) and None)
            for tracker in self.trackers:
                show_picture(tracker, name, step, grid)

    def histogram(self, name: str, step: int, values: Tensor) -> None:
        """Log the distribution of `values` [N] to the trackers only."""
        if self.is_main:
            for tracker in self.trackers:
                show_histogram(tracker, name, step, values)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines written after the checkpoint to resume from, and a torn last line."""
        path = self.folder / METRICS_NAME
        if not self.is_main or not path.exists():
            return
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(path, "".join(kept))

    def earlier_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl on the main process; none on other ranks, which write none either."""
        return read_metrics(self.folder) if self.is_main else []

    def was_evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has the scores after `step`. All ranks return the same."""
        found = any(line["step"] == step and line["kind"] == "validation" for line in self.earlier_metrics())
        return broadcast_object_list([found])[0]

    @property
    def num_ranks(self) -> int:
        return self.accelerator.num_processes

    def progress(self, start: int, unit: str = "step") -> tqdm:
        """A progress bar over optimizer steps, with rate and time left."""
        self._bar = tqdm(
            initial=start,
            total=self.config.max_steps,
            unit=unit,
            disable=not self.is_main,
            dynamic_ncols=True,
            mininterval=1.0,
        )
        return self._bar

    def listen_for_signals(self) -> None:
        """Make SIGTERM and Ctrl-C request a checkpoint after the current step; a second signal exits at once."""

        asked_at = 0.0

        def request(number: int, frame: Any) -> None:
            nonlocal asked_at
            if self.stop_requested:
                if time.monotonic() - asked_at > _ONE_REQUEST:
                    os._exit(128 + number)
                return
            self.stop_requested, asked_at = True, time.monotonic()
            self.log("Asked to stop: saving a checkpoint after this step (again: leave at once).")

        self._handlers = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop. All ranks return the same."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        asked = torch.tensor(float(self.stop_requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: Any) -> None:
        """Restore the signal handlers and release the folder's lock, also after an error.

        The process group stays, because another run in the same process may follow. The command destroys it.
        """
        if self._bar is not None:
            self._bar.close()
        for tracker in self.trackers:
            tracker.finish()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._lock is not None:
            self._lock.close()

    def _claim(self, stage: str) -> None:
        """Claim the folder for this run, or check that this run owns it. The main process decides for all ranks."""
        problem = ""
        if self.is_main:
            try:
                self._lock, told = claim_folder(self.folder, stage, self.config, self.identity)
                for sentence in told:
                    self.log(sentence)
            except (OutputError, OSError) as error:
                problem = describe(error)
        if self.accelerator.num_processes > 1:
            box = [problem]
            torch.distributed.broadcast_object_list(box)
            problem = box[0]
        if problem:
            raise OutputError(problem)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl; none if the file does not exist."""
    path, lines = folder / METRICS_NAME, []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            if isinstance(line["step"], int):
                lines.append(line)
        except (ValueError, KeyError, TypeError):  # a torn line
            continue
    return lines


def start_tracker(name: str, folder: Path) -> GeneralTracker:
    """One of Accelerate's trackers. Only the main process writes to it.

    Raises:
        TrainingError: its package is not installed.
    """
    try:
        if name == "tensorboard":
            tracker = TensorBoardTracker("tensorboard", folder)
        elif name == "wandb":
            tracker = WandBTracker("codegrid", name=folder.name, dir=str(folder))
        else:
            tracker = TrackioTracker("codegrid", name=folder.name)
        tracker.start()
    except ImportError as error:
        raise TrainingError(f'{name} is not installed: pip install "codegrid[tracking]", or leave it out.') from error
    return tracker


def stop_run(run: Run, step: int) -> None:
    """End a run that was asked to stop, after its checkpoint is saved."""
    run.log(f"Stopped after step {step}; the checkpoint is in {run.checkpoints}. Run the same command to go on.")
    raise SystemExit(EXIT_STOPPED)


def check_bad_steps(bad_steps: int, step: int, batch: str) -> None:
    """End a run whose gradients stay infinite or NaN.

    Raises:
        TrainingError: `bad_steps` in a row are too many. `batch` describes the last batch.
    """
    if bad_steps >= _MOST_BAD_STEPS:
        raise TrainingError(
            f"{bad_steps} steps in a row up to step {step} had gradients that are not finite; no weight was changed by "
            f"them. The last batch began with {batch}. Lower optimizer.learning_rate or look at these inputs."
        )

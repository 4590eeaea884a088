"""One training run: its folder, its devices, and what it reports."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor
from torchvision.io import encode_png
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.system.console import RESUME
from codegrid.pipelines.system.devices import looks, make_accelerator, wait_patiently
from codegrid.pipelines.system.files import GO_ON, OutputError, said_twice, write_atomically, write_text
from codegrid.pipelines.system.machine import handle_signals, keep_freed_memory
from codegrid.pipelines.training.claim import Identity, check_folder, claim_folder
from codegrid.pipelines.training.config import TrainingConfig
from codegrid.pipelines.training.tracking import (
    check_trackers,
    peak_memory_gb,
    show_histogram,
    show_picture,
    start_tracker,
)

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

    Making one checks the folder and writes nothing. As a context it claims the folder: what can fail without it, such
    as building the model, is done before, so that a command that fails leaves no folder.

    training_config.json   the resolved config; the same command resumes, a different one is refused
    made_from.json         the identity of the pictures or codes; they may grow, different ones are refused
    metrics.jsonl          a line every `log_every` and `eval_every` steps, without wall-clock time, so that a resumed
                           run's file equals that of an uninterrupted run
    tensorboard/, pictures/, checkpoints/
    config.json, *.safetensors, README.md   the exported model, once the run is finished
    """

    def __init__(self, config: TrainingConfig, stage: str, identity: Identity | None = None) -> None:
        require(bool(config.output_dir), "output_dir is empty.", "Say where the run goes with --output-dir RUN.")
        check_trackers(config.tracking)
        self.config, self.folder = config, Path(config.output_dir)
        self.accelerator: Accelerator = make_accelerator(
            config.device, config.mixed_precision, training=True, deterministic=config.deterministic
        )
        check_distribution(self.accelerator)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.is_main = self.accelerator.is_main_process
        # An uneven split fails here, before any rank starts to compute.
        self.micro_batch_size = config.micro_batch_size(self.accelerator.num_processes)
        self._lock: IO[str] | None = None
        self.stage, self.identity = stage, identity
        self.trackers: list[GeneralTracker] = []
        self.peak_flops = 0.0  # operations per second of a matrix product on this device; 0 if not measured
        self.stop_requested = False
        self._bar: tqdm | None = None
        self._stop_listening: Callable[[], None] | None = None
        self.on_main(lambda: check_folder(self.folder, stage, config, identity))

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def devices(self) -> str:
        """The number of devices and how they compute, as text for people."""
        return f"{self.num_ranks} x {self.accelerator.policy}"

    def start_trackers(self, step: int) -> None:
        """Start the trackers of a run that goes on after `step`.

        Raises:
            TrackerError: one does not start.
        """
        if self.is_main:
            config = json.loads(json.dumps({"stage": self.stage, **asdict(self.config)}))
            self.trackers = [start_tracker(name, self.folder, step, config) for name in self.config.tracking]

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
            raise OutputError(f"Could not write {shown(path)}: {error.strerror or error}.", GO_ON) from error
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
        """Make SIGTERM and Ctrl-C request a checkpoint after the current step; a second signal exits at once.

        In a thread other than the main one, a line says that this run does not listen.
        """

        asked_at = 0.0

        def request(number: int, frame: Any) -> None:
            nonlocal asked_at
            if self.stop_requested:
                if time.monotonic() - asked_at > _ONE_REQUEST:
                    os._exit(128 + number)
                return
            self.stop_requested, asked_at = True, time.monotonic()
            self.log("Asked to stop: saving a checkpoint after this step (again: leave at once).")

        self._stop_listening = handle_signals(request)
        if self._stop_listening is None:
            self.log(
                "This run is not in the main thread and does not listen for Ctrl-C and SIGTERM: what stops the process "
                f"loses the steps since the last checkpoint (every {self.config.save_every} steps)."
            )

    def should_stop(self, step: int = 0) -> bool:
        """Whether any rank was asked to stop. All ranks return the same. Several GPUs ask at every tenth step."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        if not looks(step, self.accelerator.device):
            return False
        asked = torch.tensor(float(self.stop_requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    def __enter__(self) -> Run:
        """Claim the folder. The main process decides for all ranks.

        Raises:
            OutputError: it holds something else, or is in use by now.
        """
        self.on_main(self._claim)
        return self

    def __exit__(self, *_: Any) -> None:
        """Restore the signal handlers and release the folder's lock, also after an error.

        The process group stays, because another run in the same process may follow. The command destroys it.
        """
        if self._bar is not None:
            self._bar.close()
        for tracker in self.trackers:
            tracker.finish()
        if self._stop_listening is not None:
            self._stop_listening()
        if self._lock is not None:
            self._lock.close()

    def _claim(self) -> None:
        self._lock, told = claim_folder(self.folder, self.stage, self.config, self.identity)
        for sentence in told:
            self.log(sentence)

    def on_main(self, act: Callable[[], Any]) -> Any:
        """Call `act` on the main process. All ranks get what it returns, and an error of it ends all of them."""
        problem, given = None, None
        if self.is_main:
            try:
                given = act()
            except (OutputError, OSError) as error:
                problem = said_twice(error)
        if self.accelerator.num_processes > 1:
            wait_patiently(self.accelerator)  # a broadcast waits for minutes at most
            box = [problem, given]
            torch.distributed.broadcast_object_list(box)
            problem, given = box
        if problem:
            raise OutputError(*problem)
        return given


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


def check_distribution(accelerator: Accelerator) -> None:
    """Refuse wrappers that replace or shard the parameters: the optimizer is made of the bare ones.

    Raises:
        TrainingError: Accelerate's config says FSDP, DeepSpeed or another of these.
    """
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise TrainingError(
            f"Accelerate's config says {kind.value}, and each rank here trains whole models, alone (NO) or as one of "
            "several (MULTI_GPU).",
            "Run `accelerate config` again without it, or start the ranks with torchrun. `codegrid train-prior "
            "--sharding fsdp2` divides a prior among them.",
        )


def stop_run(run: Run, step: int) -> None:
    """End a run that was asked to stop, after its checkpoint is saved."""
    run.log(f"Stopped after step {step}; the checkpoint is in {shown(run.checkpoints)}. {RESUME}")
    raise SystemExit(EXIT_STOPPED)


def check_bad_steps(bad_steps: int, step: int, batch: str) -> None:
    """End a run whose gradients stay infinite or NaN.

    Raises:
        TrainingError: `bad_steps` in a row are too many. `batch` describes the last batch.
    """
    if bad_steps >= _MOST_BAD_STEPS:
        raise TrainingError(
            f"{bad_steps} steps in a row up to step {step} had gradients that are not finite; no weight was changed by "
            f"them. The last batch began with {batch}.",
            "Lower optimizer.learning_rate, or look at these inputs.",
        )

"""The training loop of both stages: step, log, save, evaluate, stop. A `Stage` is what it trains."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from codegrid.names import shown
from codegrid.pipelines.system.devices import looks, wait_patiently
from codegrid.pipelines.system.numbers import duration, number
from codegrid.pipelines.training.checkpoint import (
    Checkpoint,
    Tensors,
    check_space,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from codegrid.pipelines.training.divided import gathered
from codegrid.pipelines.training.memory_estimate import MemoryEstimate
from codegrid.pipelines.training.out_of_memory import is_out_of_memory, out_of_memory
from codegrid.pipelines.training.profiling import profiling
from codegrid.pipelines.training.run import Run, check_bad_steps, stop_run
from codegrid.pipelines.training.window import Window, add_to_window, gather_windows, own_window, window_means

Scores = dict[str, float]


class Stage(ABC):
    """What a run trains, in five methods. `read` and `watch` are optional and add to a line of metrics.

    Attributes:
        optimizers: the optimizers, by the names under which their learning rates are logged.
        last_batch: describes the content of the last batch, for the error that ends a run.
        shown: names of metrics that the progress bar shows, if they exist.
        flops_a_sample: operations of one sample's forward and backward pass, for the trackers' utilisation; 0 if
            unknown.
        tokens_a_sample: codes per sample, for the trackers' rate.
    """

    optimizers: dict[str, Optimizer]
    last_batch: str = ""
    shown: tuple[str, ...] = ()
    flops_a_sample: float = 0.0
    tokens_a_sample: int = 0

    @abstractmethod
    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step on this rank's share of the batch.

        Returns:
            scalars by name, on the device, of this rank alone. `skipped_steps` is 1 if the gradients were not finite
            and nothing was changed. Vectors [K] are summed over steps and ranks, and passed to `read`.
        """

    @abstractmethod
    def evaluate(self, done: int | None) -> Scores:
        """Scores of the averaged weights after `done` steps. The run reports them, unless `done` is None."""

    @abstractmethod
    def groups(self) -> dict[str, Tensors]:
        """The content of a checkpoint, by the names of its files; the inverse of `load`."""

    @abstractmethod
    def load(self, groups: dict[str, Tensors]) -> None:
        """Restore the state from a checkpoint's groups."""

    @abstractmethod
    def export(self, scores: Scores) -> None:
        """Write the finished model into the run's folder, on the main process. All ranks call it together."""

    def read(self, counts: dict[str, Tensor]) -> tuple[Scores, dict[str, Tensor]]:
        """Scores computed from the counts of a window, and histograms [N] for the trackers."""
        return {}, {}

    def memory(self) -> MemoryEstimate | None:
        """An estimate of a micro-batch's memory, for the advice to a run that has none left."""
        return None

    def watch(self, line: dict[str, Any]) -> list[str]:
        """Warnings about a line of metrics, which has its "step". Called on all ranks after each line."""
        return []


def check_stage(run: Run, stage: Stage) -> None:
    """Check that the first checkpoint fits on the disk. All ranks call this function together.

    Raises:
        OutputError: it does not.
    """
    stored = [tensor for group in stage.groups().values() for tensor in group.values()]
    run.on_main(lambda: check_space(run.folder, stored, stage.optimizers.values()))


def resume(run: Run, stage: Stage, window: Window) -> int:
    """Load the newest good checkpoint into the stage and return the number of finished steps."""
    # One rank reads all files to verify them: eight would read a large prior's 37 GB eight times before they load.
    path = run.on_main(lambda: newest_checkpoint(run.checkpoints, run.log))
    checkpoint = None if path is None else load_checkpoint(path)
    start = checkpoint.step if checkpoint else 0
    run.forget_metrics_after(start)
    run.start_trackers(start)
    if checkpoint is None:
        return 0
    groups = dict(checkpoint.groups)
    window.update(own_window(groups.pop("window", {}), run.accelerator))
    stage.load(groups)
    run.log(f"Resuming {shown(run.folder)} after step {checkpoint.step}.")
    return checkpoint.step


def fit(run: Run, stage: Stage, window: Window, start: int) -> None:
    """Train from step `start` to the end, and export.

    A checkpoint is saved before each evaluation, so that a failed evaluation costs no steps. A run that was
    interrupted between the two evaluates first when it resumes.
    """
    config, scores, bad_steps = run.config, {}, BadSteps()
    if start and _is_due(start, config.eval_every, config.max_steps) and not run.was_evaluated(start):
        scores = stage.evaluate(start)
    bar, began = run.progress(start), time.monotonic()
    clock, trace = Clock(config.max_steps), contextlib.ExitStack()
    traced = trace.enter_context(profiling(run, config.profile))
    for step in range(start, config.max_steps):
        metrics = _step(run, stage, step)
        traced()
        bad_steps.add(metrics["skipped_steps"], step, stage.last_batch)
        add_to_window(window, metrics)
        done = step + 1
        bar.update()
        if told := clock.tick(done):
            run.log(told)
        if _is_due(done, config.log_every, config.max_steps):
            _log(run, stage, window, done, bar, (done - start) / (time.monotonic() - began))
        stopping, evaluating = run.should_stop(step), _is_due(done, config.eval_every, config.max_steps)
        if stopping or evaluating or _is_due(done, config.save_every, config.max_steps):
            _save(run, stage, window, done)
        if stopping and done < config.max_steps:
            stop_run(run, done)
        if evaluating:
            scores = stage.evaluate(done)
            wait_patiently(run.accelerator)  # the main process alone draws pictures
    trace.close()
    scores = scores or stage.evaluate(None)
    stage.export(scores)
    if done := config.max_steps - start:
        run.log(f"{done:,} steps took {duration(time.monotonic() - began)}.")
    wait_patiently(run.accelerator)


def _step(run: Run, stage: Stage, step: int) -> dict[str, Tensor]:
    """`stage.step`.

    Raises:
        TrainingError: it does not fit into memory; the remedy is the settings that fit.
    """
    try:
        return stage.step(step)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(run, stage.memory(), step) from error


class BadSteps:
    """Ends a run that skips too many steps in a row. The count is on the device; the host reads it where it `looks`."""

    def __init__(self) -> None:
        self.in_a_row: Tensor | None = None

    def add(self, skipped: Tensor, step: int, batch: str) -> None:
        """Count a step; `skipped` is 1 or 0.

        Raises:
            TrainingError: there are too many in a row.
        """
        self.in_a_row = skipped if self.in_a_row is None else (self.in_a_row + skipped) * skipped
        if looks(step, skipped.device):
            check_bad_steps(int(self.in_a_row), step, batch)


class Clock:
    """Says once, when some steps have passed, how long the others take."""

    def __init__(self, max_steps: int, steps: int = 10, seconds: float = 5.0) -> None:
        """It speaks after at least `steps` steps and `seconds` seconds; the first step, a warm-up, is not counted."""
        self.max_steps, self.steps, self.seconds = max_steps, steps, seconds
        self.began: tuple[int, float] | None = None
        self.has_spoken = False

    def tick(self, done: int) -> str:
        """To be called after each step, `done` in all; the sentence, or ""."""
        now = time.monotonic()
        if self.began is None:
            self.began = done, now
            return ""
        steps, seconds = done - self.began[0], now - self.began[1]
        if self.has_spoken or steps < self.steps or seconds < self.seconds:
            return ""
        self.has_spoken = True
        each, left = seconds / steps, self.max_steps - done
        if not left:
            return ""
        return f"{duration(each)} a step: about {duration(each * left)} for the {left:,} steps left, and evaluations."


def _is_due(done: int, every: int, last: int) -> bool:
    return done % every == 0 or done == last


def _log(run: Run, stage: Stage, window: Window, done: int, bar: tqdm, rate: float) -> None:
    """Write a line of metrics: means over all ranks since the last line. Skipped steps are only counted."""
    values, counts = window_means(window, run.accelerator)
    read, histograms = stage.read(counts) if counts else ({}, {})
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in stage.optimizers.items()}
    values = {**values, **read, **rates}
    run.metrics(done, "train", values)
    for name, numbers in histograms.items():
        run.histogram(name, done, numbers)
    run.timing(done, _rates(run, stage, rate))
    bar.set_postfix({name: number(values[name]) for name in stage.shown if name in values})
    window.clear()
    for warning in stage.watch({"step": done, **values}):
        run.log(warning)


def _rates(run: Run, stage: Stage, rate: float) -> Scores:
    """Steps, images and tokens per second and, if the device's peak is known, the share of it that was used."""
    samples = rate * run.config.batch_size
    rates = {"steps_per_second": rate, "images_per_second": samples}
    if stage.tokens_a_sample:
        rates["tokens_per_second"] = samples * stage.tokens_a_sample
    if stage.flops_a_sample and run.peak_flops:
        rates["model_flops_utilisation"] = samples * stage.flops_a_sample / (run.peak_flops * run.num_ranks)
    return rates


def _save(run: Run, stage: Stage, window: Window, done: int) -> None:
    windows = gather_windows(window, run.accelerator)
    groups = {name: gathered(tensors, run.is_main) for name, tensors in stage.groups().items()}
    if run.is_main:
        groups = {name: tensors for name, tensors in {**groups, "window": windows}.items() if tensors}
        made_from = {} if run.identity is None else {"made_from": run.identity.description, **run.identity.fixed}
        checkpoint = Checkpoint(done, groups, made_from)
        save_checkpoint(run.checkpoints, checkpoint, run.config.keep_last, run.config.keep_every)
    wait_patiently(run.accelerator)

"""A trace of some steps, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from codegrid.names import shown
from codegrid.pipelines.system.files import write_atomically
from codegrid.pipelines.training.run import Run

TRACE_NAME = "trace.json"
_BEFORE = 3  # steps that are not recorded: the first ones allocate, and choose kernels; the last of them warms up


@contextlib.contextmanager
def profiling(run: Run, steps: int) -> Iterator[Callable[[], None]]:
    """Context that traces `steps` steps of the main process after the first three; it gives what to call after each.

    The trace is `trace.json` in the run's folder, and a run that goes on replaces it.
    """
    if not steps or not run.is_main:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        path = run.folder / TRACE_NAME
        write_atomically(path, lambda aside: profiler.export_chrome_trace(str(aside)))
        run.log(f"The trace of {steps} steps is {shown(path)}: open it at https://ui.perfetto.dev.")

    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    plan = schedule(wait=_BEFORE - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step

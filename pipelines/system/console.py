"""Console output of the commands: silences libraries and prints errors as one sentence instead of a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from codegrid.errors import CodegridError
from codegrid.pipelines.system.files import describe


def guarded(run: Callable[[], Any]) -> None:
    """Call `run`. A known error prints its sentence and exits with its status, 1 or 2 (a wrong command line).

    CODEGRID_TRACEBACK=1 shows the traceback instead.
    SIGTERM and Ctrl-C print a sentence and exit with status 143 or 130; training saves a checkpoint first (see `Run`).
    """
    _quiet()
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _run_and_part(run)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("CODEGRID_TRACEBACK"):
            raise
        tqdm.write(f"error: {sentence}", file=sys.stderr)  # tqdm.write keeps it off the line of a progress bar
        raise SystemExit(getattr(error, "exit_status", 1)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_and_part(run: Callable[[], Any]) -> None:
    """Call `run`, then leave the process group. Not after an error: the other ranks may never reach the end."""
    try:
        run()
    except SystemExit:
        _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _quiet() -> None:
    """Turn off the libraries' progress bars for small files: they only flicker beside our own."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # for when datasets is imported later
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()


def _stop(number: int, frame: Any) -> None:
    print("Stopped. Run the same command to go on.", file=sys.stderr)
    raise SystemExit(128 + number)


def _sentence(error: Exception) -> str | None:
    """The sentence for the user, or None for a bug, which shows its traceback."""
    text = str(error)
    # An OSError with a file name is about the user's disk or paths, not a bug.
    if isinstance(error, CodegridError) or (isinstance(error, OSError) and error.filename is not None):
        return describe(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return (
            "A process that loads images was killed. Run the same command again: it goes on where it stopped. If "
            f"memory ran out, lower --num-workers. ({text.splitlines()[0]})"
        )
    torch = sys.modules.get("torch")
    if isinstance(error, RuntimeError) and (
        "gloo" in text or (torch and isinstance(error, torch.distributed.DistError))
    ):
        return (
            "Another process of this job has died or does not answer. Run the same command again: it goes on where it "
            f"stopped. ({text.splitlines()[0]})"
        )
    return None

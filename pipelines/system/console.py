"""Console output of the commands: silences libraries and prints errors as one sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from codegrid.errors import CodegridError
from codegrid.names import printable
from codegrid.pipelines.system.files import describe
from codegrid.pipelines.system.machine import handle_signals

# What `guarded` says after a stop inside of a job that can be gone on with.
RESUME = "Run the same command to go on."


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C ended the command. `code` is its status."""


@contextlib.contextmanager
def resumable(sentence: str = RESUME) -> Iterator[None]:
    """Context of a job whose finished part is on the disk, where the same command finds it: a stop says `sentence`."""
    try:
        yield
    except BaseException as error:
        vars(error).setdefault("resume", sentence)  # of several jobs, one inside the other, the innermost speaks
        raise


def guarded(run: Callable[[], Any]) -> None:
    """Call `run`. A known error prints its sentence and exits with its status, 1 or 2 (a wrong command line).

    CODEGRID_TRACEBACK=1 shows the traceback instead.
    SIGTERM and Ctrl-C print a sentence and exit with status 143 or 130; training saves a checkpoint first (see `Run`).
    The sentence says whether the same command goes on (`resumable`). In a thread, signals are left to the main one.
    """
    _quiet()
    restore = handle_signals(_stop)
    try:
        _run_and_part(run)
    except Stopped as stopped:
        _say(f"Stopped. {getattr(stopped, 'resume', '')}".rstrip())
        raise
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("CODEGRID_TRACEBACK"):
            raise
        _say(f"error: {printable(' '.join(sentence.splitlines()))}")
        raise SystemExit(getattr(error, "exit_status", 1)) from None
    finally:
        if restore is not None:
            restore()


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # it keeps the line off that of a progress bar


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
    # `guarded` says it: the signal may have come in the middle of a write to the same stream.
    raise Stopped(128 + number)


def _sentence(error: Exception) -> str | None:
    """The sentence for the user, or None for a bug, which shows its traceback."""
    text = str(error)
    # An OSError with a file name is about the user's disk or paths, not a bug.
    if isinstance(error, CodegridError) or (isinstance(error, OSError) and error.filename is not None):
        return describe(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return (
            f"A process that loads images was killed. {_again(error)} If memory ran out, lower --num-workers. "
            f"({text.splitlines()[0]})"
        )
    torch = sys.modules.get("torch")
    if isinstance(error, RuntimeError) and (
        "gloo" in text or (torch and isinstance(error, torch.distributed.DistError))
    ):
        return f"Another process of this job has died or does not answer. {_again(error)} ({text.splitlines()[0]})"
    return None


def _again(error: Exception) -> str:
    return "Run the same command again" + (": it goes on where it stopped." if hasattr(error, "resume") else ".")

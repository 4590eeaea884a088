"""Worker processes that load samples: signals are left to the main process, errors come back as they were raised."""

from __future__ import annotations

import atexit
import contextlib
import copy
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
# Workers are forked from a process of their own that has imported what they need and done nothing else: the first
# pool waits for that import once, later ones start at once, and the workers share its memory. Elsewhere than on Linux
# a fork is not safe beside the system's libraries.
_START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
_IMPORTED = ["codegrid.pipelines.data.batches", "codegrid.pipelines.data.sources"]


def load(dataset: Dataset, num_workers: int, **options: Any) -> Iterator[Any]:
    """What torch's DataLoader gives; `num_workers` 0 loads in this process. The workers end with the iterator.

    Raises:
        Exception: what the dataset raised, as it was raised: torch would put words and a traceback into its message.
        RuntimeError: a worker was killed; or its error cannot be sent to this process.
    """
    if not num_workers:
        yield from DataLoader(dataset, **options)
        return
    batches, workers, end = _start(dataset, num_workers, options)
    try:
        for batch in _received(batches, workers):
            if isinstance(batch, _Failed):
                raise batch.error from RuntimeError(batch.traceback)
            yield batch
    finally:
        end()


def _received(batches: Iterator[Any], workers: set[BaseProcess]) -> Iterator[Any]:
    """`batches`. Of a worker that was killed, torch says so only if it does not ask it for a batch's memory first."""
    try:
        yield from batches
    except (OSError, EOFError) as error:
        # Its end is told by another process, which may come later than the error.
        if not wait([worker.sentinel for worker in workers], timeout=2):
            raise
        raise RuntimeError("A DataLoader worker was killed.") from error


class _Failed(NamedTuple):
    """What a worker gives instead of a sample or a batch."""

    error: Exception
    traceback: str


class _Carrying(Dataset):
    """`dataset`, and the collation of its samples, with a `_Failed` for what raised an error."""

    def __init__(self, dataset: Dataset, collate: Callable[[Any], Any]) -> None:
        self.dataset, self._collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except Exception as error:
            return _Failed(_sendable(error), traceback.format_exc())

    def collate(self, samples: Any) -> Any:
        """`samples`: a list, or one sample where the loader makes no batches."""
        several = samples if isinstance(samples, list) else [samples]
        failed = [sample for sample in several if isinstance(sample, _Failed)]
        return failed[0] if failed else self._collate(samples)


def _sendable(error: Exception) -> Exception:
    try:
        again = copy.deepcopy(error)  # made as it will be made out of the queue
        return error if type(again) is type(error) and str(again) == str(error) else RuntimeError(str(error))
    except Exception:  # whatever the error's class raises
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Context in which this thread receives none of `_SIGNALS`. Windows has no such thing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting the tracker of shared memory, which the first worker would do, takes both out of what is blocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(_worker: int) -> None:
    """What a worker does first: other code may have started the process that it is forked from, with no mask."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _start(
    dataset: Dataset, num_workers: int, options: dict[str, Any]
) -> tuple[Iterator[Any], set[BaseProcess], Callable[[], None]]:
    """The batches of new workers, these, and what ends them."""
    single = options.get("batch_size", 1) is None
    carrying = _Carrying(dataset, options.pop("collate_fn", default_convert if single else default_collate))
    context = multiprocessing.get_context(_START_METHOD)
    context.set_forkserver_preload(_IMPORTED)
    options |= {"collate_fn": carrying.collate, "multiprocessing_context": context, "worker_init_fn": _leave_signals}
    loader = DataLoader(carrying, num_workers=num_workers, **options)
    # Ctrl-C in a terminal, or SLURM, asks every process to stop; the main process needs its batches until it has
    # saved. The workers inherit what is blocked here, from their first instruction on.
    others = set(multiprocessing.active_children())
    with _blocked_signals():
        batches = iter(loader)
    workers = set(multiprocessing.active_children()) - others

    def end() -> None:
        if not workers:
            return
        batches.__del__()  # torch's way: they are told, and waited for
        for worker in workers:
            if worker.is_alive():
                worker.kill()
        workers.clear()
        atexit.unregister(end)

    # For an iterator that is left half-way and kept, as a traceback does: multiprocessing waits at the exit for every
    # process that it started, after asking with a signal that these do not take.
    atexit.register(end)
    return batches, workers, end

"""Worker processes that load samples: signals are left to the main process, errors come back as they were raised."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

from torch.utils.data import DataLoader, Dataset

from codegrid.pipelines.data.records import DataError

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def load(dataset: Dataset, num_workers: int, **options: Any) -> Iterator[Any]:
    """What torch's DataLoader gives; `num_workers` 0 loads in this process. The workers end with the iterator.

    Raises:
        DataError: as a worker raised it.
        RuntimeError: a worker was killed.
    """
    if not num_workers:
        yield from DataLoader(dataset, **options)
        return
    batches, end = _start(dataset, num_workers, options)
    try:
        yield from batches
    except DataError as error:
        # torch puts its own words and the worker's traceback around the message.
        raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error
    finally:
        end()


def _start(dataset: Dataset, num_workers: int, options: dict[str, Any]) -> tuple[Iterator[Any], Callable[[], None]]:
    """The batches of new workers, and what ends these."""
    loader = DataLoader(dataset, num_workers=num_workers, multiprocessing_context="spawn", **options)
    # Ctrl-C in a terminal, or SLURM, asks every process to stop; the main process needs its batches until it has
    # saved. The workers inherit what is blocked here, from their first instruction on. Starting the tracker of
    # shared memory, which the first worker would do, takes both signals out of what is blocked.
    resource_tracker.ensure_running()
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
    return batches, end

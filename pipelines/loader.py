"""Worker processes that load samples: signals are left to the main process, errors come back as they were raised."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from pipelines.data import DataError

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def load(dataset: Dataset, num_workers: int, **options: Any) -> Iterator[Any]:
    """What torch's DataLoader gives; `num_workers` 0 loads in this process.

    Raises:
        DataError: as a worker raised it.
        RuntimeError: a worker was killed.
    """
    context = "spawn" if num_workers else None
    loader = DataLoader(dataset, num_workers=num_workers, multiprocessing_context=context, **options)
    # Ctrl-C in a terminal, or SLURM, asks every process to stop; the main process needs its batches until it has
    # saved. The workers inherit what is blocked here, from their first instruction on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from batches
    except DataError as error:
        # torch puts its own words and the worker's traceback around the message.
        raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error

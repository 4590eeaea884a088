"""The sums since the last line of metrics, of every rank: a resumed run writes the line that it would have written."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

Window = dict[str, Tensor]


def gather_windows(window: Window, accelerator: Accelerator) -> Window:
    """The windows of all ranks as one group of a checkpoint, `<rank>/<name>`; all ranks have to call it."""
    windows = gather_object([{name: value.cpu() for name, value in window.items()}])
    return {f"{rank}/{name}": value for rank, part in enumerate(windows) for name, value in part.items()}


def own_window(gathered: Window, accelerator: Accelerator) -> Window:
    """This rank's window out of `gather_windows`; after a change of the number of ranks, the mean of all for each."""
    windows: dict[str, Window] = {}
    for key, value in gathered.items():
        rank, _, name = key.rpartition("/")  # checkpoints of one window for all have bare names
        windows.setdefault(rank, {})[name] = value
    if len(windows) == accelerator.num_processes or not windows:
        return windows.get(str(accelerator.process_index), windows.get("", {}))
    parts = list(windows.values())
    names = set.intersection(*map(set, parts))
    return {name: torch.stack([part[name].double() for part in parts]).mean(0) for name in sorted(names)}

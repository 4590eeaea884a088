"""Sums of all ranks since the last line of metrics. They are saved, so that a resumed run writes the same line."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from codegrid.pipelines.system.ranks import counts_of_all_ranks
from codegrid.tokenizer.metrics import add_counts

Window = dict[str, Tensor]


def add_to_window(window: Window, metrics: dict[str, Tensor]) -> None:
    """Add a step's metrics, on their device. Only count a step whose `skipped_steps` is 1: its terms are not finite and
    would spoil the window's means.
    """
    skipped = metrics["skipped_steps"] > 0
    for name, value in {**metrics, "steps": 1.0 - metrics["skipped_steps"]}.items():
        if value.dim() == 2:  # a table of counts, whose length the host has to know
            value = value[: 0 if skipped else None]
        elif name != "skipped_steps":
            value = torch.where(skipped, torch.zeros_like(value), value)
        before = window.get(name)
        if before is None:
            window[name] = value.clone()
        else:
            before = before.to(value.device)
            window[name] = add_counts(before, value) if value.dim() else before + value


def window_means(window: Window, accelerator: Accelerator) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means per step over all ranks, the number `skipped_steps`, and the sums of the vectors, by name."""
    sums = {name: value.to(accelerator.device) for name, value in window.items()}
    values: dict[str, float] = {"skipped_steps": int(sums.pop("skipped_steps", 0))}
    steps = sums.pop("steps", torch.zeros(()))
    if not steps:  # all steps were skipped
        return values, {}
    counts = {name: counts_of_all_ranks(value, accelerator) for name, value in sums.items() if value.dim()}
    names = sorted(name for name, value in sums.items() if not value.dim())
    means = accelerator.reduce(torch.stack([sums[name].float() for name in names]) / steps, "mean")
    return {**values, **dict(zip(names, means.tolist(), strict=True))}, counts


def gather_windows(window: Window, accelerator: Accelerator) -> Window:
    """The windows of all ranks as one group of a checkpoint, `<rank>/<name>`. All ranks must call it."""
    windows = gather_object([{name: value.cpu() for name, value in window.items()}])
    return {f"{rank}/{name}": value for rank, part in enumerate(windows) for name, value in part.items()}


def own_window(gathered: Window, accelerator: Accelerator) -> Window:
    """This rank's window from `gather_windows`. If the number of ranks changed, each gets the mean of all."""
    windows: dict[str, Window] = {}
    for key, value in gathered.items():
        rank, _, name = key.rpartition("/")  # checkpoints with one window for all ranks have bare names
        windows.setdefault(rank, {})[name] = value
    if len(windows) == accelerator.num_processes or not windows:
        return windows.get(str(accelerator.process_index), windows.get("", {}))
    parts = list(windows.values())
    names = set.intersection(*map(set, parts))
    return {name: _mean([part[name].double() for part in parts]) for name in sorted(names)}


def _mean(values: list[Tensor]) -> Tensor:
    if values[0].dim() < 2:
        return torch.stack(values).mean(0)
    table = add_counts(*values)  # [M, 2], code numbers and their counts
    return torch.stack([table[:, 0], table[:, 1] / len(values)], 1)

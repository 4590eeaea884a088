"""The sums since the last line of metrics, of every rank: a resumed run writes the line that it would have written."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from codegrid.pipelines.system.ranks import counts_of_all_ranks
from codegrid.tokenizer.metrics import add_counts

Window = dict[str, Tensor]


def add_to_window(window: Window, metrics: dict[str, Tensor], skipped: bool) -> None:
    """Add up a step; of a skipped one only that it was: its terms, not finite, would make the window's means so."""
    step = {"skipped_steps": torch.ones(())} if skipped else {**metrics, "steps": torch.ones(())}
    for name, value in step.items():
        before, value = window.get(name), value.cpu()
        window[name] = value.clone() if before is None else add_counts(before, value) if value.dim() else before + value


def window_means(window: Window, accelerator: Accelerator) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means a step over all ranks, with `skipped_steps`, their number; and the sums of what is no scalar, by name."""
    sums = {name: value.to(accelerator.device) for name, value in window.items()}
    values: dict[str, float] = {"skipped_steps": int(sums.pop("skipped_steps", 0))}
    if "steps" not in sums:  # all of them were skipped
        return values, {}
    steps = sums.pop("steps")
    counts = {name: counts_of_all_ranks(value, accelerator) for name, value in sums.items() if value.dim()}
    names = sorted(name for name, value in sums.items() if not value.dim())
    means = accelerator.reduce(torch.stack([sums[name].float() for name in names]) / steps, "mean")
    return {**values, **dict(zip(names, means.tolist(), strict=True))}, counts


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
    return {name: _mean([part[name].double() for part in parts]) for name in sorted(names)}


def _mean(values: list[Tensor]) -> Tensor:
    if values[0].dim() < 2:
        return torch.stack(values).mean(0)
    table = add_counts(*values)  # [M, 2], numbers of codes and their counts
    return torch.stack([table[:, 0], table[:, 1] / len(values)], 1)

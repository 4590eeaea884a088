"""How a benchmark times, and what it leaves behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codegrid.pipelines.system.files import write_json
from codegrid.pipelines.system.numbers import number

Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Attributes:
    seconds: the median of the rounds.
    ratio: the median over the rounds of the first one's seconds by these.
    spread: how far the middle half of the rounds' seconds reaches, as a share of the median: the machine's noise.
    """

    seconds: float
    ratio: float
    spread: float = 0.0

    def columns(self) -> Row:
        """The columns that every table of times has."""
        return {"ms": self.seconds * 1e3, "spread": f"{self.spread:.0%}", "ratio": self.ratio}


def in_turn(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Time all runs `repeats` times, one after the other in every round; the first is what the others compare with.

    Each is run once beforehand, so that no compiling, no start of a GPU and no first touch of memory is timed.
    """
    for run in runs.values():
        _seconds(run)
    rounds = [{name: _seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    first = next(iter(runs))
    return {
        name: Timing(
            statistics.median(seconds[name] for seconds in rounds),
            statistics.median(seconds[first] / seconds[name] for seconds in rounds),
            _spread([seconds[name] for seconds in rounds]),
        )
        for name in runs
    }


def _spread(seconds: list[float]) -> float:
    if len(seconds) < 2:
        return 0.0
    lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return (upper - lower) / middle


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.accelerator.is_available():  # also where the run was on the CPU: then there is nothing to wait for
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def print_row(row: Row, widths: Mapping[str, int], header: bool = False) -> None:
    """One line of a table: the columns that `widths` names, as wide as it says."""
    shown = {name: name if header else _shown(row.get(name)) for name in widths}
    print("  ".join(f"{shown[name]:>{width}}" for name, width in widths.items()), flush=True)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return number(value) if isinstance(value, float) else str(value)


def write_report(path: str, machine: str, settings: Mapping[str, Any], rows: list[Row]) -> None:
    """The machine, the settings and the rows as JSON."""
    write_json(Path(path), {"machine": machine, "settings": dict(settings), "rows": rows})
    print(f"The figures are in {path}.")

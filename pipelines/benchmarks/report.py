"""What a benchmark is told, how it times, and what it leaves behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from codegrid.errors import require
from codegrid.pipelines.system.devices import machine
from codegrid.pipelines.system.files import write_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Args:
    what: the benchmark's name.
    taming: folder of a clone of taming-transformers; None leaves it out.
    llamagen: folder of a clone of LlamaGen; None leaves it out.
    compile: whether ours is timed compiled as well.
    repeats: rounds.
    prior: folder of a prior, where the benchmark is of one.
    codes: folder of the codes that it was trained on.
    """

    what: str
    taming: str | None = None
    llamagen: str | None = None
    compile: bool = False
    repeats: int = 9
    prior: str | None = None
    codes: str | None = None

    def __post_init__(self) -> None:
        require(self.repeats >= 1, f"repeats is {self.repeats}: it must be at least 1.")


@dataclass(frozen=True)
class Timing:
    """seconds: the median of the rounds; ratio: the median over rounds of the first one's seconds by these."""

    seconds: float
    ratio: float


def in_turn(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Time all runs `repeats` times, one after the other in every round; the first is what the others compare with.

    Each is run once beforehand, so that no compiling and no first touch of memory is timed.
    """
    for run in runs.values():
        run()
    rounds = [{name: _seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    first = next(iter(runs))
    return {
        name: Timing(
            statistics.median(seconds[name] for seconds in rounds),
            statistics.median(seconds[first] / seconds[name] for seconds in rounds),
        )
        for name in runs
    }


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def print_row(row: Row, widths: Mapping[str, int], header: bool = False) -> None:
    """One line of a table: the columns that `widths` names, as wide as it says."""
    shown = {name: name if header else _shown(row.get(name)) for name in widths}
    print("  ".join(f"{shown[name]:>{width}}" for name, width in widths.items()), flush=True)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(path: str, settings: Settings, rows: list[Row]) -> None:
    """The machine, the settings and the rows as JSON."""
    write_json(Path(path), {"machine": machine(), "settings": asdict(settings), "rows": rows})
    print(f"The figures are in {path}.")

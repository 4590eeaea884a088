"""What a search found, on disk, as a table and as a chart."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codegrid.pipelines.pictures.charts import Chart, Series, png
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json, write_text

REPORT_NAME, TABLE_NAME, CHART_NAME = "search.json", "search.md", "search.png"


@dataclass
class Trial:
    """A candidate.

    Attributes:
        changes: fields of the preset, as paths with dots, and the values in their place.
        steps: steps of the first rung, where its seconds are given.
        results: by "RUNG.SEED", both from 0: steps, seconds of the last call, and the scores of the held-out pictures.
        error: why it was given up.
    """

    changes: dict[str, Any]
    steps: int | None = None
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        return ", ".join(f"{path} {value}" for path, value in self.changes.items()) or "the preset"

    def scores(self, rung: int, metric: str) -> list[float]:
        """Of all seeds that are done."""
        return [values[metric] for key, values in self.results.items() if key.startswith(f"{rung}.")]


@dataclass
class Findings:
    """A search: its settings, the machine of the last call, and the candidates in their order."""

    settings: dict[str, Any]
    machine: str
    trials: list[Trial]

    def save(self, folder: Path) -> None:
        write_json(folder / REPORT_NAME, asdict(self))

    def ranked(self, numbers: list[int], rung: int) -> list[int]:
        """Those of the candidates that have a score in this rung, the best first; of equal ones the earlier."""
        means = {number: mean for number in numbers if (mean := self.mean(number, rung)) is not None}
        return sorted(means, key=lambda number: -means[number])

    def mean(self, number: int, rung: int) -> float | None:
        scores = self.trials[number].scores(rung, self.settings["metric"])
        return statistics.fmean(scores) if scores and not self.trials[number].error else None


def read_findings(folder: Path) -> Findings | None:
    """The findings of a folder; None if there are none yet.

    Raises:
        OutputError: they are damaged.
    """
    path = folder / REPORT_NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Findings(**{**values, "trials": [Trial(**trial) for trial in values["trials"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{path} is no report of a search ({error}).", "Choose another --output-dir, or move the file."
        ) from error


def write_findings(folder: Path, findings: Findings) -> str:
    """Write the table and the chart; return the table."""
    table = markdown(findings)
    write_text(folder / TABLE_NAME, table)
    picture = png([chart(findings)], columns=1)
    write_atomically(folder / CHART_NAME, lambda aside: picture.save(aside, format="PNG"))
    return table


def markdown(findings: Findings) -> str:
    """A sentence about the search, and a row for each candidate: those that went furthest first."""
    settings, rungs = findings.settings, findings.settings["rungs"]
    budget = f"{settings['steps']} steps" if settings["seconds"] is None else f"{settings['seconds']:g} seconds"
    head = ["candidate", *(f"{settings['metric']}, rung {rung + 1}" for rung in range(rungs)), "steps", "seconds"]
    lines = [
        f"Preset `{settings['preset']}`; the first rung takes {budget}, each further one {1 / settings['keep']:g} "
        f"times as much; {findings.machine}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for trial in (findings.trials[number] for number in _order(findings)):
        cells = [_cell(trial.scores(rung, settings["metric"])) for rung in range(rungs)]
        last = max(trial.results.items(), default=("", {"steps": 0, "seconds": 0.0}))[1]
        if trial.error:
            cells[0] = "failed: " + " ".join(trial.error.replace("|", "\\|").split())
        lines.append(f"| {trial.name} | {' | '.join(cells)} | {last['steps']:,} | {last['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _order(findings: Findings) -> list[int]:
    """The candidates by the last rung that each reached, then by its score there."""
    left, order = list(range(len(findings.trials))), []
    for rung in reversed(range(findings.settings["rungs"])):
        best = findings.ranked(left, rung)
        order += best
        left = [number for number in left if number not in best]
    return order + left


def _cell(scores: list[float]) -> str:
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.3f}{spread}"


def chart(findings: Findings, most: int = 8) -> Chart:
    """The score over the steps of the rungs, a line for each of the best candidates."""
    lines = []
    for number in _order(findings)[:most]:
        trial, points = findings.trials[number], []
        for rung in range(findings.settings["rungs"]):
            mean = findings.mean(number, rung)
            if mean is not None:
                points.append((trial.results[f"{rung}.0"]["steps"], mean))
        lines.append(Series(trial.name, points))
    return Chart(f"held-out {findings.settings['metric']}", "steps of the training", lines)

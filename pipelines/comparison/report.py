"""Results of a comparison, on disk and as a table. The table needs no run: comparison.json suffices."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codegrid.pipelines.comparison.twins import compared
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json, write_text

REPORT_NAME, TABLE_NAME, SHEET_NAME = "comparison.json", "comparison.md", "reconstructions.png"


def marks(name: str) -> tuple[str, str]:
    """The lines of a page around the table of that name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


BEGIN, END = marks("comparison")


@dataclass
class Row:
    """One quantizer's results.

    Attributes:
        name: name in `compared`.
        quantizer: config of the quantizer, as JSON.
        steps: steps of the whole training; None until known.
        seconds: duration of training with its final evaluation, over all calls.
        bits: bits of an image's codes.
        parameters: number of the whole tokenizer's trainable parameters.
        scores: scores on the validation images, as in `ReconstructionScores`; None until training is done.
        feature_net: net of `scores["feature_distance"]`, or None.
        error: why there are no scores.
    """

    name: str
    quantizer: dict[str, Any]
    steps: int | None = None
    seconds: float = 0.0
    bits: float | None = None
    parameters: int | None = None
    scores: dict[str, Any] | None = None
    feature_net: str | None = None
    error: str | None = None


@dataclass
class Report:
    """A comparison: the settings shared by all its runs, and their rows by name.

    Attributes:
        settings: the training config without the fields that differ between the runs, and `seconds` of each training
            or None.
        preset: name of the preset with these settings.
        images: description of the data, with the number of validation images.
        machine: machine of the last run.
    """

    settings: dict[str, Any]
    preset: str
    images: str
    machine: str
    rows: dict[str, Row]

    def in_order(self) -> list[Row]:
        """The rows in the order of `compared`, whatever the order of the trainings."""
        return [self.rows[name] for name in compared() if name in self.rows]

    def save(self, folder: Path) -> None:
        write_json(folder / REPORT_NAME, {**asdict(self), "rows": [asdict(row) for row in self.in_order()]})


def read_report(folder: Path) -> Report | None:
    """The report of a folder; None if there is none yet.

    Raises:
        OutputError: the report is damaged.
    """
    path = folder / REPORT_NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Report(**{**values, "rows": {row["name"]: Row(**row) for row in values["rows"]}})
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{path} is no report of a comparison ({error}).", "Choose another --output-dir, or move the file."
        ) from error


def markdown(report: Report) -> str:
    """A sentence about the comparison, and the table: a row per quantizer, in the order of `compared`."""
    nets = sorted({row.feature_net for row in report.in_order() if row.feature_net})
    budget = f"{report.settings['seconds']:g} seconds" if report.settings["seconds"] else "the same steps"
    head = ["quantizer", "PSNR, dB", "SSIM", *(f"distance ({net})" for net in nets), "codes in use", "perplexity"]
    head += ["bits an image", "parameters", "steps", "seconds"]
    lines = [
        f"{report.images} Preset `{report.preset}`, batch {report.settings['batch_size']}, {budget} for each; "
        f"{report.machine}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    lines += ["| " + " | ".join(_cells(row, nets)) + " |" for row in report.in_order()]
    return "\n".join(lines) + "\n"


def _cells(row: Row, nets: list[str]) -> list[str]:
    """The cells of a row, as many as the table's head has."""
    scores = row.scores or {}
    distances = [scores.get("feature_distance") if row.feature_net == net else None for net in nets]
    reached = [
        _number(scores.get("psnr"), ".2f"),
        _number(scores.get("ssim"), ".3f"),
        *(_number(distance, ".4f") for distance in distances),
        _number(scores.get("code_usage"), ".1%"),
        _number(scores.get("code_perplexity"), ".0f"),
    ]
    if row.error:
        reached[0] = "failed: " + " ".join(row.error.replace("|", "\\|").split())
    elif not scores:
        reached[0] = "not finished"
    sizes = [_number(row.bits, ".0f"), _number(row.parameters, ",d"), _number(row.steps, ",d")]
    return [f"`{row.name}`", *reached, *sizes, _number(row.seconds, ".0f")]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write_page(comparison: str, page: str = "docs/quantizers.md", mark: str = "comparison") -> None:
    """Insert a comparison's table and sheet into a Markdown page; they replace the text between the page's two marks.

    Args:
        comparison: folder that `codegrid dev compare-quantizers` wrote.
        page: the page; the sheet is saved beside it, under the page's name with .png.
        mark: name of the page's two marks. A name of one's own puts a second table on the page, without a sheet.

    Raises:
        OutputError: there is no comparison, or the page lacks the marks.
    """
    folder, path = Path(comparison), Path(page)
    begin, end = marks(mark)
    report = read_report(folder)
    if report is None:
        raise OutputError(f"{folder} holds no {REPORT_NAME}.", "Run `codegrid dev compare-quantizers` first.")
    text = path.read_text(encoding="utf-8")
    if text.find(begin) < 0 or text.find(end) < text.find(begin):
        raise OutputError(f"{path} lacks the lines {begin} and {end}.", "Put them where the table is to stand.")
    content = markdown(report)
    if mark == "comparison" and (folder / SHEET_NAME).exists():
        picture = path.with_suffix(".png")
        write_atomically(picture, lambda aside: shutil.copyfile(folder / SHEET_NAME, aside))
        content += f"\n![Originals in the first row, each quantizer's reconstructions below]({picture.name})\n"
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    write_text(path, between.sub(lambda _: f"{begin}\n{content}{end}", text, count=1))
    print(f"{path} has the table of {folder / REPORT_NAME}.")

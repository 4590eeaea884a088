"""A search over a preset's fields at equal seconds or steps, by successive halving (https://arxiv.org/abs/1502.07943).

Every candidate is trained for a small budget, the better ones again from the start for a larger one, and so on. A trial
is a normal run: its folder resumes, reports and loads as any other.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.comparison.findings import REPORT_NAME, Findings, Trial, read_findings, write_findings
from codegrid.pipelines.comparison.rows import steps_within
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES, split_images
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import machine
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.system.randomness import numpy_generator
from codegrid.pipelines.training.claim import differences
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.run import read_metrics
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer.fields import from_dict

_EMBEDDED = DataConfig(str(EMBEDDED_IMAGES))
_MOST_CANDIDATES = 1_000


@resumable()
def search_recipe(
    data: DataConfig = _EMBEDDED,
    output_dir: str = "runs/search-recipe",
    preset: str = "small64",
    vary: tuple[str, ...] = (),
    candidates: tuple[str, ...] = (),
    trials: int = 16,
    steps: int = 100,
    seconds: float | None = None,
    keep: float = 0.5,
    rungs: int = 3,
    seeds: int = 1,
    seed: int = 0,
    metric: Literal["psnr", "ssim"] = "psnr",
) -> Path:
    """Search a preset's fields for what is best on held-out pictures after equal time; write a table and a chart.

    The preset itself is always the first candidate. To resume after a stop, run it again.

    Args:
        data: the pictures; those held out choose. Report the winner on others.
        output_dir: folder for search.json, search.md, search.png, and a run's folder for every trial.
        preset: preset of `codegrid train-tokenizer` that gives all fields that do not vary.
        vary: fields with the values to try, such as optimizer.learning_rate=0.003,0.005 or
            backbone.ch_mult=[1,1],[1,2]. All combinations are candidates.
        candidates: further candidates, each with its fields, such as "backbone.ch=64 backbone.norm_groups=16".
        trials: candidates at most; of more combinations, so many are drawn.
        steps: steps of a trial of the first rung.
        seconds: duration of a trial of the first rung, instead of steps; short trials of each candidate find its steps.
        keep: share of the candidates that goes on to the next rung; its budget is 1 / keep times as large.
        rungs: rungs of the search.
        seeds: trainings of each candidate in the last rung, which is compared by their means.
        seed: seed of the choice of candidates, and of the trainings.
        metric: the score that decides.

    Raises:
        CodegridError: a field is unknown, or a number out of its range.
        DataError: the pictures cannot be read, or none are held out.
        OutputError: the folder holds another search.
    """
    _check(preset, trials, steps, seconds, keep, rungs, seeds)
    if split_images(data)[1] is None:
        raise DataError(
            "No pictures are held out.", "Give data.validation_split or a data.validation_fraction above 0."
        )
    base = replace(TOKENIZER_PRESETS[preset](data.source, ""), data=data, seed=seed, num_pictures=0)
    drawn = _drawn(vary, candidates, trials, seed)
    for changes in drawn:  # an unknown field is refused before anything is trained; what contradicts itself is a row
        _changed(base, {path: _value_of(base, path) for path in changes})
    folder = Path(output_dir)
    budget = {"seconds": seconds, "steps": steps if seconds is None else None, "keep": keep, "rungs": rungs}
    settings = {"preset": preset, "metric": metric, **budget, "seeds": seeds, "base": _plain(base)}
    findings = _opened(folder, settings, drawn)
    going = list(range(len(drawn)))
    for rung in range(rungs):
        for place, number in enumerate(going, start=1):
            tqdm.write(f"\n== rung {rung + 1} of {rungs}, candidate {number} ({place} of {len(going)}) ==")
            for offset in range(seeds if rung == rungs - 1 else 1):
                _complete(folder, findings, base, number, rung, offset)
        ranked = findings.ranked(going, rung)
        going = ranked[: max(1, math.ceil(len(going) * keep))]
        if not ranked:
            raise CodegridError("No candidate could be trained.", f"See {shown(folder / REPORT_NAME)} for each error.")
    table = write_findings(folder, findings)
    print(f"\n{table}\nThe table, the chart and the runs are in {shown(folder)}.")
    return folder


def _check(preset: str, trials: int, steps: int, seconds: float | None, keep: float, rungs: int, seeds: int) -> None:
    require(preset in TOKENIZER_PRESETS, f"preset is {preset!r}.", f"There are {', '.join(TOKENIZER_PRESETS)}.")
    for name, value in {"trials": trials, "steps": steps, "rungs": rungs, "seeds": seeds}.items():
        require(value >= 1, f"{name} is {value}.", "Give at least 1.")
    require(seconds is None or 0 < seconds < math.inf, f"seconds is {seconds}.", "Give a positive number.")
    require(0 < keep < 1, f"keep is {keep}.", "Give a share between 0 and 1.")


def _drawn(vary: tuple[str, ...], candidates: tuple[str, ...], trials: int, seed: int) -> list[dict[str, Any]]:
    """The candidates: what each changes of the preset. The first changes nothing."""
    axes = dict(_assigned(text) for text in vary)
    every = math.prod(map(len, axes.values()))
    require(
        every <= _MOST_CANDIDATES, f"vary has {every:,} combinations.", f"Give at most {_MOST_CANDIDATES:,}, by parts."
    )
    found: list[dict[str, Any]] = [{}]
    for text in candidates:
        changes = dict(_assigned(word) for word in text.split())
        several = [path for path, values in changes.items() if len(values) != 1]
        require(not several, f"The candidate {text!r} has several values of {several}.", "Give such fields by --vary.")
        found.append({path: values[0] for path, values in changes.items()})
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    order = numpy_generator(seed, "candidates").permutation(len(grid)) if len(grid) + len(found) > trials else grid
    found += [grid[index] for index in sorted(order[: max(0, trials - len(found))])] if order is not grid else grid
    require(len(found) > 1, "There is nothing to try beside the preset.", "Give fields by --vary or --candidates.")
    return found


def _assigned(text: str) -> tuple[str, list[Any]]:
    """`path=value,value` -> the path and its values."""
    path, equals, values = text.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]") if equals else []
    except yaml.YAMLError:
        found = []
    require(bool(found), f"{text!r} gives no field its values.", "Write FIELD=VALUE,VALUE.")
    return path.removeprefix("--").replace("-", "_"), [_number(value) for value in found]


def _number(value: Any) -> Any:
    """YAML takes 5e-3 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _value_of(base: TokenizerTrainingConfig, path: str) -> Any:
    value: Any = _plain(base)
    for name in path.split("."):
        require(isinstance(value, dict) and name in value, f"The preset has no field {path}.", "See its --help.")
        value = value[name]
    return value


def _changed(base: TokenizerTrainingConfig, changes: dict[str, Any]) -> TokenizerTrainingConfig:
    values = _plain(base)
    for path, value in changes.items():
        *outer, last = path.split(".")
        part = values
        for name in outer:
            part = part[name]
        part[last] = value
    return from_dict(TokenizerTrainingConfig, values, where="the candidate")


def _plain(config: TokenizerTrainingConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def _opened(folder: Path, settings: dict[str, Any], drawn: list[dict[str, Any]]) -> Findings:
    """The folder's findings, or new ones.

    Raises:
        OutputError: they are of other settings or candidates.
    """
    findings = read_findings(folder) or Findings(settings, machine(), [Trial(changes) for changes in drawn])
    found = differences(findings.settings, settings)
    found += ["candidates"] if [trial.changes for trial in findings.trials] != drawn else []
    if found:
        raise OutputError(
            f"{shown(folder)} holds another search. Different are: {'; '.join(found)}.",
            "Pass its settings to go on with it, or choose another --output-dir.",
        )
    findings.machine = machine()
    return findings


def _complete(
    folder: Path, findings: Findings, base: TokenizerTrainingConfig, number: int, rung: int, offset: int
) -> None:
    """Train a candidate for a rung's budget unless this is done already. Its errors are recorded: others go on."""
    trial, settings = findings.trials[number], findings.settings
    key = f"{rung}.{offset}"
    if key in trial.results or trial.error:
        return
    try:
        config = _changed(base, trial.changes)
        larger = settings["keep"] ** -rung
        if settings["seconds"] is not None and trial.steps is None:
            trial.steps = steps_within(settings["seconds"], config)
            findings.save(folder)
        steps = max(1, round((trial.steps or settings["steps"]) * larger))
        config = replace(config, max_steps=steps, eval_every=steps, seed=base.seed + offset)
        config = replace(config, output_dir=str(folder / f"candidate-{number:03}" / f"rung-{rung + 1}-{config.seed}"))
        began = time.monotonic()
        train_tokenizer(config)
        *_, scores = (line for line in read_metrics(Path(config.output_dir)) if line["kind"] == "validation")
        taken = time.monotonic() - began
        trial.results[key] = {"steps": steps, "seconds": taken, **{name: scores[name] for name in ("psnr", "ssim")}}
    except (CodegridError, ValueError, RuntimeError) as error:
        trial.error = f"{type(error).__name__}: {error}"
        tqdm.write(f"Candidate {number} failed: {trial.error}")
    findings.save(folder)

"""Guards that detect failing training from a tokenizer's metrics: pure functions of the logged lines.

A guard's memory follows from the lines of metrics.jsonl, so that a resumed run warns like an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.tokenizer.losses import RECONSTRUCTION_WEIGHTS, ObjectiveConfig

Line = dict[str, Any]

# Codes are placed and first compete in these windows: their usage says nothing yet.
_FIRST_WINDOWS = 2


@dataclass(frozen=True)
class Watched:
    """The guards' memory of the lines so far.

    Attributes:
        windows: number of lines.
        last_step: step of the last line.
        before_onset: the terms of the last window that ended before the discriminator's start.
        onset_told: whether the rise after the start was reported.
        usage_is_low: whether the last window's usage was too low.
    """

    windows: int = 0
    last_step: int = 0
    before_onset: dict[str, float] = field(default_factory=dict)
    onset_told: bool = False
    usage_is_low: bool = False


def watch(
    watched: Watched, line: Line, config: TokenizerTrainingConfig, codes_per_image: int
) -> tuple[Watched, list[str]]:
    """Process a line of kind "train".

    Args:
        line: "step" and the values logged at it.
        codes_per_image: positions of the code grid, h * w.

    Returns:
        the new memory, and messages for the user (usually none).
    """
    messages = []
    if config.objective.adversarial_weight:
        if line["step"] <= config.objective.adversarial_start:
            values = reconstruction_values(line)
            # The mean of a term that started within the window includes steps without it: do not compare with it.
            whole = {name: values[name] for name in values if _start(config.objective, name) <= watched.last_step}
            watched = replace(watched, before_onset=whole)
        elif not watched.onset_told:
            rise, name = largest_rise(watched.before_onset, reconstruction_values(line), config.objective)
            if rise > config.onset_bound:
                messages.append(_onset_message(line["step"], rise, name, config.objective))
                watched = replace(watched, onset_told=True)
    if "code_usage" in line:
        steps = line["step"] - watched.last_step - line.get("skipped_steps", 0)
        possible = possible_usage(steps * config.batch_size * codes_per_image, config.quantizer.codebook_size)
        low = watched.windows >= _FIRST_WINDOWS and line["code_usage"] < config.usage_warning * possible
        if low and not watched.usage_is_low:
            messages.append(_usage_message(line, possible, config))
        watched = replace(watched, usage_is_low=low)
    return replace(watched, windows=watched.windows + 1, last_step=line["step"]), messages


def replay(lines: Iterable[Line], config: TokenizerTrainingConfig, codes_per_image: int) -> Watched:
    """The memory after the lines of an earlier command. Only lines of kind "train" count."""
    watched = Watched()
    for line in lines:
        if line.get("kind") == "train":
            watched, _ = watch(watched, line, config, codes_per_image)
    return watched


def reconstruction_values(line: Line) -> dict[str, float]:
    """The weighted reconstruction terms of a line, by name."""
    names = [weight.removesuffix("_weight") for weight in RECONSTRUCTION_WEIGHTS]
    return {name: line[name] for name in names if name in line}


def largest_rise(before: dict[str, float], now: dict[str, float], objective: ObjectiveConfig) -> tuple[float, str]:
    """The largest ratio of a term to its former value, and the term's name; (0, "") if there is none to compare.

    A ratio does not depend on the term's weight. The log-Laplace term is a logarithm of the error, log 2b + 1: its
    difference, divided by the weight, is the logarithm of the ratio.
    """
    rises = {}
    for name in before.keys() & now.keys():
        if name == "log_laplace":
            rises[name] = math.exp((now[name] - before[name]) / objective.log_laplace_weight)
        elif before[name] > 0:
            rises[name] = now[name] / before[name]
    name = max(sorted(rises), key=rises.__getitem__, default="")
    return rises.get(name, 0.0), name


def _start(objective: ObjectiveConfig, term: str) -> int:
    return getattr(objective, f"{term}_start")


def possible_usage(codes_seen: int, codebook_size: int) -> float:
    """The largest share of the codebook that this many codes can use, in [0, 1]."""
    return min(1.0, max(0, codes_seen) / codebook_size)


def _onset_message(step: int, rise: float, name: str, objective: ObjectiveConfig) -> str:
    return (
        f"Warning at step {step}: {name} is {rise:.2f} times what it was before the discriminator started at step "
        f"{objective.adversarial_start}: its verdict outweighs the reconstruction. Lower objective.adversarial_weight "
        f"({objective.adversarial_weight:g}), start later (objective.adversarial_start) or let its weight rise over "
        f"more steps (objective.adversarial_warmup {objective.adversarial_warmup})."
    )


def _usage_message(line: Line, possible: float, config: TokenizerTrainingConfig) -> str:
    quantizer = config.quantizer
    advice = {
        "revive_below": "raise quantizer.{} ({:g}; dead codes are moved onto the data up to the share revive_until of "
        "the run)",
        "isotropy_weight": "raise quantizer.{} ({:g}; it keeps all dimensions of a plain codebook in use)",
        "commitment_weight": "change quantizer.{} ({:g})",
    }
    known = [text.format(name, getattr(quantizer, name)) for name, text in advice.items() if hasattr(quantizer, name)]
    options = [
        *known,
        f"lower optimizer.learning_rate ({config.optimizer.learning_rate:g})",
        f"take a smaller codebook than {quantizer.codebook_size}",
    ]
    bound = "" if possible == 1 else f", of {possible:.1%} that a window of so few codes could use"
    return (
        f"Warning at step {line['step']}: only {line['code_usage']:.1%} of the codes are in use{bound}; the others "
        f"carry nothing. What can help: {'; '.join(options)}."
    )

"""Codes of a prior of any order, in few steps and a code a step, beside a prior of raster order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from codegrid.errors import require
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, local_folder
from codegrid.pipelines.benchmarks.options import OnDevice
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.prior import sample_codes

_SCALE, _BATCHES = 3.0, (1, 16)
_WIDTHS = {"batch": 5, "steps": 13, "ms": 9, "spread": 6, "images/s": 8, "ratio": 6}


@dataclass(frozen=True, kw_only=True)
class FewSteps(OnDevice):
    """Codes of a prior of any order in steps of several codes.

    A row for each batch and number of steps, with guidance where the prior has it, without decoding; a ratio is to the
    first row of the batch.

    Args:
        prior: folder of a prior of any order, or a masked one.
        raster: folder of a prior of raster order of the same codes, which then is the first row; none leaves it out.
        steps: numbers of steps.
    """

    name = "few-steps"
    parts = (tuple(map(str, _BATCHES)),)
    prior: str
    raster: str | None = None
    steps: tuple[int, ...] = (64, 8, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.steps) and min(self.steps) >= 1, f"steps are {list(self.steps)}.", "Give some of at least 1 each."
        )

    def measure(self) -> list[Row]:
        device = self.accelerator().device
        draws: dict[str, Callable[..., torch.Tensor]] = {}
        if self.raster:
            draws["raster"] = _sampler(self.raster, device)
        draw = _sampler(self.prior, device)
        draws |= {str(number): partial(draw, num_steps=number) for number in self.steps}
        print_row({}, _WIDTHS, header=True)
        rows = []
        for batch in (batch for batch in _BATCHES if self.wants(str(batch))):
            runs = {name: partial(one, seeds=range(batch), batch_size=batch) for name, one in draws.items()}
            for name, timing in in_turn(runs, self.repeats).items():
                rows.append({"batch": batch, "steps": name, "images/s": batch / timing.seconds, **timing.columns()})
                print_row(rows[-1], _WIDTHS)
        return rows


def _sampler(folder: str, device: torch.device) -> Callable[..., torch.Tensor]:
    """`sample_codes` of a prior, whose images go through the classes."""
    model, sequence = load_prior_and_sequence(local_folder(folder, "prior"))
    model, classes = model.eval().to(device), sequence.class_names

    def draw(seeds: range, **options: int) -> torch.Tensor:
        labels = None if classes is None else torch.arange(len(seeds)) % len(classes)
        scale = _SCALE if labels is not None and sequence.can_be_guided else 1.0
        return sample_codes(model, sequence, labels, seeds=seeds, guidance_scale=scale, **options)

    return draw

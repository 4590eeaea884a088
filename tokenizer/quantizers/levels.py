"""Shared by residual and grouped quantization: several inner quantizers, one for each code of a position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantizer, QuantizerConfig


def check_inner(inner: QuantizerConfig) -> None:
    """Raises CodegridError if `inner` has more than one code per position."""
    require(
        inner.depth == inner.stride == 1,
        f"quantizer.inner.type is {inner.type!r}, which gives several codes a position.",
        "Take one that gives one.",
    )


def make_levels(configs: Sequence[QuantizerConfig]) -> nn.ModuleList:
    return nn.ModuleList(config.build() for config in configs)


def mean_losses(losses: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each named term's mean over the levels that have it."""
    names = dict.fromkeys(name for terms in losses for name in terms)
    return {name: torch.stack([terms[name] for terms in losses if name in terms]).mean() for name in names}


def of_level(level: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The named results of one level (`revive`, `statistics`), with the names of the whole quantizer."""
    return {f"levels.{level}.{name}": value for name, value in values.items()}


class LevelsQuantizer(Quantizer):
    """A quantizer whose state is the state of its inner quantizers."""

    levels: nn.ModuleList

    @torch.no_grad()
    def init_weights(self) -> None:
        for level in self.levels:
            level.init_weights()

    @property
    def training_buffers(self) -> tuple[str, ...]:
        return tuple(f"levels.{i}.{name}" for i, level in enumerate(self.levels) for name in level.training_buffers)

    @property
    def revival_candidates(self) -> int:
        """The largest number that a level wants, for every level: levels take different features."""
        return self.config.depth * max(level.revival_candidates for level in self.levels)

    def codes_of_levels(self, codes: Tensor) -> Sequence[Tensor]:
        """The codes that each inner quantizer gave: [..., depth] -> a tensor for each of `levels`."""
        return codes.unbind(-1)

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        for level, mine in zip(self.levels, self.codes_of_levels(codes), strict=True):
            level.count(mine)

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        """Update each level by its part of the `statistics`."""
        for index, level in enumerate(self.levels):
            prefix = f"levels.{index}."
            mine = {name.removeprefix(prefix): sums for name, sums in statistics.items() if name.startswith(prefix)}
            level.update(mine)

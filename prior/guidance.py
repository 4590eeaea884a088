"""Classifier-free guidance: which branches are decoded for an image, and how their logits are mixed at each code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.prior.conditions import parts_of
from codegrid.prior.distribution import SamplingConfig
from codegrid.prior.sequence_config import SequenceConfig


@dataclass(frozen=True)
class Guidance:
    """Args:
    keeps: for each branch, which parts of the condition it has; the first branch has all.
    mixes: for each code, the scale of two branches (all parts and none), or the weights of all branches; 1.0 is the
        first branch alone.
    """

    keeps: tuple[tuple[bool, ...], ...]
    mixes: tuple[float | tuple[float, ...], ...]

    @property
    def branches(self) -> int:
        return len(self.keeps)

    @property
    def guided(self) -> list[int]:
        """The codes whose logits are mixed."""
        return [place for place, mix in enumerate(self.mixes) if mix != 1]

    def prefixes(self, prefixes: Tensor, rows: int, sequence: SequenceConfig) -> Tensor:
        """Prefixes [n, P] of some images -> those of `rows` rows: branch after branch, then padding. [rows, P]"""
        images = len(prefixes)
        found = prefixes[torch.arange(rows, device=prefixes.device) % images]
        for branch, keeps in enumerate(self.keeps[1:], start=1):
            found[branch * images : (branch + 1) * images] = sequence.without(prefixes, [not keep for keep in keeps])
        return found


def guidance_of(settings: SamplingConfig, sequence: SequenceConfig) -> Guidance:
    """The guidance of a call of sampling.

    Raises:
        CodegridError: `part_guidance` has not one scale for each part of the condition, or there is guidance and the
            prior has no null class.
    """
    if settings.is_guided and not sequence.can_be_guided:
        each = settings.part_guidance
        said = f"guidance_scale is {settings.guidance_scale}" if each is None else f"part_guidance is {each}"
        lack = "is unconditional" if sequence.conditioning.vocab_size == 0 else "has no null class to lead away from"
        raise CodegridError(f"{said}, but this prior {lack}.", "Leave it at 1.")
    parts, length = len(parts_of(sequence.conditioning)), sequence.length
    everything, nothing = (True,) * parts, (False,) * parts
    each = settings.part_guidance
    if each is None or len(set(each)) == 1:
        _check_number(each, parts, sequence)
        scales = settings.guidance_scales(length, None if each is None else each[0])
        both = any(scale != 1 for scale in scales)
        return Guidance((everything, nothing) if both else (everything,), tuple(scales))
    _check_number(each, parts, sequence)
    subsets = sorted(itertools.product((True, False), repeat=parts), reverse=True)  # all parts first, none last
    by_part = [settings.guidance_scales(length, scale) for scale in each]
    mixes = []
    for scales in zip(*by_part, strict=True):
        mixes.append(1.0 if all(scale == 1 for scale in scales) else branch_weights(subsets, scales))
    return Guidance(tuple(subsets), tuple(mixes))


def branch_weights(subsets: Sequence[tuple[bool, ...]], scales: Sequence[float]) -> tuple[float, ...]:
    """The weight of each branch's logits, where every part of the condition has a scale of its own.

    With l(S) the logits given the parts S, a part's effect is the mean of l(S with it) - l(S) over the orders in which
    the parts can be added (Shapley's value); the effects add up to l(all) - l(none). The logits are l(none) + the sum
    of scale * effect: equal scales are classifier-free guidance (arXiv:2207.12598), all 1 is l(all). For two parts
    this is arXiv:2211.09800's sum, in the mean of its two orders.
    """
    number = len(scales)
    weights = []
    for subset in subsets:
        size = sum(subset)
        with_it = math.factorial(max(size - 1, 0)) * math.factorial(number - size) / math.factorial(number)
        without = math.factorial(size) * math.factorial(max(number - size - 1, 0)) / math.factorial(number)
        weight = float(size == 0)
        weight += sum(scale * (with_it if has else -without) for has, scale in zip(subset, scales, strict=True))
        weights.append(weight)
    return tuple(weights)


def _check_number(each: tuple[float, ...] | None, parts: int, sequence: SequenceConfig) -> None:
    require(
        each is None or len(each) == parts,
        f"part_guidance has {len(each or ())} scales, and the prior follows {sequence.conditioning.describe()}.",
        f"Give {parts}: one for each part of the condition.",
    )

"""From logits to a code: classifier-free guidance, temperature, top-k, top-p, min-p, and the draw."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from codegrid.errors import require

GuidanceSchedule = Literal["constant", "linear", "cosine", "power"]


@dataclass(frozen=True)
class SamplingConfig:
    """How a code is drawn from the logits: guidance first, then temperature, top-k, top-p and min-p.

    Args:
        guidance_scale: scale s of classifier-free guidance, u + s (c - u), with the class's logits c and the null
            class's u (arXiv:2207.12598, whose weight w is s - 1). At least 0; 1 is no guidance, at half the cost.
        temperature: divides the logits. At least 0; 0 takes the most likely code (greedy).
        top_k: keep the k most likely codes, and all that are as likely as the last of them. At least 0; 0 keeps all.
        top_p: keep the fewest most likely codes whose probabilities sum to at least top_p. In (0, 1]; 1 keeps all.
        min_p: keep the codes at least min_p times as likely as the most likely one (arXiv:2407.01082). In [0, 1]; 0
            keeps all.
        guidance_schedule: how the scale changes along the guided positions, with t from 0 to 1. "constant" is
            guidance_scale everywhere. The others grow from 1 to it, as 1 + (guidance_scale - 1) f(t): "linear" f = t,
            "cosine" f = (1 - cos(pi t)) / 2, "power" f = (1 - cos(pi t^guidance_power)) / 2 (arXiv:2303.14389).
        guidance_power: exponent of the "power" schedule, above 0. A higher value starts guidance later.
        guidance_range: the guided positions, as fractions of the sequence (first included, last not). The others have
            scale 1 (arXiv:2404.07724). Decoding costs half after the last guided position.
        part_guidance: a scale for each part of a combined condition, in place of guidance_scale (`guidance.py`). Where
            they differ, two parts cost four branches, three parts eight.

    Raises:
        CodegridError: a value is out of its range. The message names it.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance_schedule: GuidanceSchedule = "constant"
    guidance_power: float = 2.0
    guidance_range: tuple[float, float] = (0.0, 1.0)
    part_guidance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} is {value}.", "It must be a number of at least 0.")
        require(
            isinstance(self.top_k, int) and not isinstance(self.top_k, bool) and self.top_k >= 0,
            f"top_k is {self.top_k!r}.",
            "It must be a whole number of at least 0 (0 keeps all codes).",
        )
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}.", "It must lie in (0, 1] (1 keeps all codes).")
        require(0 <= self.min_p <= 1, f"min_p is {self.min_p}.", "It must lie in [0, 1] (0 keeps all codes).")
        schedules = get_args(GuidanceSchedule)
        require(
            self.guidance_schedule in schedules,
            f"guidance_schedule is {self.guidance_schedule!r}.",
            f"It must be one of {', '.join(schedules)}.",
        )
        power = self.guidance_power
        require(math.isfinite(power) and power > 0, f"guidance_power is {power}.", "It must be a number above 0.")
        parts = tuple(self.guidance_range)
        require(
            len(parts) == 2 and 0 <= parts[0] < parts[1] <= 1,
            f"guidance_range is {self.guidance_range}.",
            "It must be two fractions with 0 <= first < last <= 1.",
        )
        object.__setattr__(self, "guidance_range", parts)
        each = None if self.part_guidance is None else tuple(self.part_guidance)
        require(
            each is None or (bool(each) and all(math.isfinite(scale) and scale >= 0 for scale in each)),
            f"part_guidance is {each}.",
            "Give a number of at least 0 for each part of the condition.",
        )
        object.__setattr__(self, "part_guidance", each)

    @property
    def is_guided(self) -> bool:
        """Whether anything but the condition's own logits is needed."""
        return any(scale != 1 for scale in self.part_guidance or (self.guidance_scale,))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values. Without `part_guidance` it has no such key, as in older files."""
        values = asdict(self)
        return values if self.part_guidance is not None else {k: v for k, v in values.items() if k != "part_guidance"}

    def guidance_scales(self, length: int, scale: float | None = None) -> list[float]:
        """The scale at each of `length` positions; `scale` takes the place of `guidance_scale`."""
        scale = self.guidance_scale if scale is None else scale
        first, last = (math.ceil(part * length) for part in self.guidance_range)
        scales = [1.0] * length
        for position in range(first, last):
            way = (position - first) / max(1, last - first - 1)
            scales[position] = 1 + (scale - 1) * self._share(way)
        # A constant scale stays exact: 1 + (s - 1) would round it.
        if self.guidance_schedule == "constant":
            scales[first:last] = [scale] * (last - first)
        return scales

    def _share(self, way: float) -> float:
        if self.guidance_schedule == "linear":
            return way
        power = self.guidance_power if self.guidance_schedule == "power" else 1.0
        return (1 - math.cos(math.pi * way**power)) / 2


def guided_logits(logits: Tensor, images: int, guidance_scale: float | tuple[float, ...]) -> Tensor:
    """Logits [R, K] of the class branch, then (if guided) the null branch, then padding -> [images, K] float64.

    With a tuple they are of as many branches, and it has their weights (`Guidance.mixes`).
    """
    conditional = logits[:images].double()
    if guidance_scale == 1:
        return conditional
    if isinstance(guidance_scale, tuple):
        branches = logits[: images * len(guidance_scale)].double().unflatten(0, (-1, images))  # [b, images, ...]
        weights = torch.tensor(guidance_scale, dtype=torch.float64).to(logits.device, non_blocking=True)
        return torch.einsum("b,b...->...", weights, branches)
    unconditional = logits[images : 2 * images].double()
    return unconditional + guidance_scale * (conditional - unconditional)


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    rank_all: bool = False,
) -> Tensor:
    """Logits [B, K] -> log-probabilities up to a constant, -inf for the codes left out. temperature is above 0.

    `rank_all` ranks all codes for top_p also on a CPU: the same, slower, and without a look at the numbers.
    """
    # Subtract the largest logit first, so that a small temperature overflows to -inf and never to NaN.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]  # [B, 1]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        logits = logits.masked_fill(logits < _last_of_top_p(logits, top_p, rank_all), -math.inf)
    if min_p > 0:  # the largest is 0, so no softmax is needed
        logits = logits.masked_fill(logits < math.log(min_p), -math.inf)
    return logits


def _last_of_top_p(logits: Tensor, top_p: float, rank_all: bool, few: int = 1024) -> Tensor:
    """Logits [B, K] -> [B, 1]: the last of the fewest largest ones whose probabilities sum to at least top_p."""
    codes = logits.shape[-1]
    total = logits.logsumexp(-1, keepdim=True)
    # On a CPU, ranking a large codebook takes longer than all the rest, and a few codes mostly hold enough probability.
    # An accelerator ranks all codes at once; asking whether a few suffice would be a CPU-GPU sync point.
    asks = logits.device.type == "cpu" and not rank_all
    for count in (min(few, codes), codes) if asks else (codes,):
        ranked = logits.topk(count, dim=-1).values
        probabilities = (ranked - total).exp()
        collected = probabilities.cumsum(-1)
        if count == codes or bool((collected[:, -1] >= top_p).all()):
            break
    # A code is kept if the more likely ones sum to less than top_p. The first is always kept.
    kept = (collected - probabilities < top_p).sum(-1, keepdim=True)
    return ranked.gather(-1, kept - 1)


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Log-probabilities up to a constant [B, K] float64, uniforms in [0, 1) [B] float64 -> codes [B] int64."""
    cumulative = logits.softmax(-1).cumsum(-1)  # [B, K]
    total = cumulative[:, -1:]
    # u * total may round up to the total. Kept strictly below it, the first sum above it belongs to a code with a
    # probability above 0.
    wanted = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]

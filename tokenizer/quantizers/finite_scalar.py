"""Finite scalar quantization (FSQ): each channel is rounded to a few levels, and the codebook is their grid.

Mentzer et al. 2023, https://arxiv.org/abs/2309.15505. The symmetric grid for residual levels: Parker et al. 2024,
https://arxiv.org/abs/2411.19842. Levels are scaled as in vector-quantize-pytorch's ResidualFSQ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar, Literal

import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.tokenizer.moving import to_device
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig
from codegrid.tokenizer.quantizers.gradients import straight_through

# The bounded range is wider than the span of the levels by this share, as in vector-quantize-pytorch.
# (The paper's listing makes it narrower by this share: beyond 1,000 levels, features would not reach the outermost.)
_MARGIN = 1e-3


@dataclass(frozen=True)
class FiniteScalarQuantizerConfig(QuantizerConfig):
    """Config of `FiniteScalarQuantizer`: one channel per entry of `levels`; their product is the number of codes.

    Args:
        levels: number of levels of each channel, at least 3. The paper uses 5 and more: (8, 6, 5) for about 2^8 codes,
            (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.
    """

    has_residual_levels: ClassVar[bool] = True

    type: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        # With two levels the shift of `_bound` is 3.8, so tanh is flat around zero, where training starts.
        require(
            len(self.levels) >= 1 and min(self.levels) >= 3,
            f"quantizer.levels is {list(self.levels)}.",
            "Name at least one channel, and at least 3 levels for each (for channels of two levels, take the "
            "quantizers lfq or bsq).",
        )
        # This check comes first: a product of a million numbers would take long.
        require(
            len(self.levels) <= 19,
            f"quantizer.levels has {len(self.levels)} channels.",
            "Give at most 19: with 3 levels each they are 2^30 codes.",
        )
        require(
            self.codebook_size <= 2**31,
            f"quantizer.levels is {list(self.levels)}, whose product is {self.codebook_size}.",
            "Give levels whose product is at most 2^31.",
        )

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def code_dim(self) -> int:
        return len(self.levels)

    def build(self) -> Quantizer:
        return FiniteScalarQuantizer(self)

    def residual_level(self, index: int) -> Quantizer:
        return FiniteScalarLevel(self, index)

    def residual_entry(self, features: Tensor) -> Tensor:
        """Features bounded to the range of the first level."""
        return soft_bound(self, features)


class _LevelsOfChannels(Quantizer):
    """Buffers: `levels`, L of each channel; `place_values`, the value of each channel's digit: 1, L_1, L_1 L_2, ...

    Both are int64 [D, 1, 1]. They are buffers because copies in each forward pass would be CPU-GPU sync points.
    """

    def __init__(self, config: FiniteScalarQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("levels", "place_values"):
            self.register_buffer(name, torch.empty(config.code_dim, 1, 1, dtype=torch.int64), persistent=False)
        self.fill_constants()

    @torch.no_grad()
    def fill_constants(self) -> None:
        levels = self.config.levels
        self.levels.copy_(torch.tensor(levels, device=self.levels.device).view(-1, 1, 1))
        values = list(accumulate(levels[:-1], mul, initial=1))
        self.place_values.copy_(torch.tensor(values, device=self.levels.device).view(-1, 1, 1))

    @torch.no_grad()
    def init_weights(self) -> None:
        pass

    def _to_digits(self, codes: Tensor) -> Tensor:
        """[B, h, w] -> [B, D, h, w], from 0 to each channel's levels minus 1."""
        return codes[:, None] // self.place_values % self.levels

    def _to_codes(self, digits: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, h, w]."""
        # Beyond 1,000 levels the margin is more than half a level. A NaN must not give a code outside either.
        digits = digits.clamp(torch.zeros_like(self.levels), self.levels - 1)
        return (digits * self.place_values).sum(1)


class FiniteScalarQuantizer(_LevelsOfChannels):
    """No parameters and no losses; straight-through estimator to the bounded features.

    A code is a mixed-radix number whose digits are the channels' levels; the first channel is the least significant.
    Its features are multiples of 2 / L in [-1, 1) for an even number of levels L, and of 2 / (L - 1) in [-1, 1] for an
    odd one.
    """

    def forward(self, features: Tensor) -> Quantized:
        bounded = self._bound(features)  # [B, D, h, w]
        codes = self._codes(bounded)  # [B, h, w]
        quantized = self.codes_to_features(codes)  # [B, D, h, w]
        if self.training:
            quantized = straight_through(bounded / (self.levels // 2), quantized)
        return Quantized(quantized, codes, {})

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        return self._codes(self._bound(features))

    def codes_to_features(self, codes: Tensor) -> Tensor:
        half_width = self.levels // 2
        digits = self._to_digits(codes)  # [B, D, h, w]
        return (digits - half_width).float() / half_width

    def _bound(self, features: Tensor) -> Tensor:
        """Bound each channel to the span of its levels, -(L // 2) to (L - 1) // 2 (arXiv:2309.15505, appendix A.1).

        An even number of levels has none in the middle. The offset of a half puts the levels on integers, and the shift
        compensates it at zero, so that zero stays zero. (The paper's listing has tan for this shift; atanh is right.)
        """
        levels = self.levels
        half_span = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half_span)
        # float32 also under autocast, which does not change these operations.
        return torch.tanh(features.float() + shift) * half_span - offset

    def _codes(self, bounded: Tensor) -> Tensor:
        return self._to_codes(bounded.detach().round().long() + self.levels // 2)


class FiniteScalarLevel(_LevelsOfChannels):
    """Level `index` of residual FSQ: an even grid of L levels per channel over [-1, 1], scaled by L^-index.

    The residuals of a level lie within half a step of its grid, 1 / (L - 1), and therefore within half a step around
    the next level's grid. So n levels make one even grid of L^n steps. `soft_bound` brings the features into the first
    level's range. (For an even L, the grid of `FiniteScalarQuantizer` is not symmetric: scaled, it would leave gaps.)
    """

    def __init__(self, config: FiniteScalarQuantizerConfig, index: int) -> None:
        super().__init__(config)
        self.index = index

    def forward(self, features: Tensor) -> Quantized:
        codes = self.encode(features)
        e = self.codes_to_features(codes)
        return Quantized(straight_through(features, e) if self.training else e, codes, {}, e)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        z = (features.float() / self._scale()).clamp(-1, 1)  # [B, D, h, w]
        return self._to_codes(((self.levels - 1) * (z + 1) / 2 + 0.5).floor().long())

    def codes_to_features(self, codes: Tensor) -> Tensor:
        return (self._to_digits(codes) * (2 / (self.levels - 1)) - 1) * self._scale()

    def _scale(self) -> Tensor:
        return self.levels.float() ** -self.index  # [D, 1, 1]


def soft_bound(config: FiniteScalarQuantizerConfig, features: Tensor) -> Tensor:
    """Bound each channel of [B, D, h, w] to [-1, 1] and half a step around, the range of residual FSQ's first level."""
    levels = to_device(torch.tensor(config.levels), features.device).view(-1, 1, 1)  # [D, 1, 1]
    bound = 1 + 1 / (levels - 1)
    return torch.tanh(features.float() / bound) * bound

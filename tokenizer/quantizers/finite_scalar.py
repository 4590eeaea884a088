"""Finite scalar quantization (FSQ): each channel is rounded to a few levels, and the codebook is their grid.

Mentzer et al. 2023, https://arxiv.org/abs/2309.15505.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

import torch
from torch import Tensor

from tokenizer.fields import require
from tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig

# The bounded range is wider than the span of the levels by this share, as in vector-quantize-pytorch.
# (The paper's listing makes it narrower by as much: beyond 1,000 levels the outermost would not be reached.)
_MARGIN = 1e-3


@dataclass(frozen=True)
class FiniteScalarQuantizerConfig(QuantizerConfig):
    """Config of `FiniteScalarQuantizer`; the codes are as many as the levels' product, the channels as the levels.

    Args:
        levels: of each channel, at least 3. The paper takes 5 and more: (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5)
            for 2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.
    """

    type: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        # With two levels the shift of `_bound` is 3.8: around zero, where training starts, tanh is flat.
        require(
            len(self.levels) >= 1 and min(self.levels) >= 3,
            f"quantizer.levels is {list(self.levels)}: it must name at least one channel, and each must have at least "
            "3 levels (for channels of two levels, take the quantizers lfq or bsq).",
        )
        require(
            self.codebook_size <= 2**31,
            f"quantizer.levels is {list(self.levels)}: their product, {self.codebook_size}, must be at most 2^31.",
        )

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def code_dim(self) -> int:
        return len(self.levels)


class FiniteScalarQuantizer(Quantizer):
    """No parameters and no losses; straight-through gradient to the bounded features.

    A code is a number in mixed radix, whose digits are the channels' levels; the first channel is the least
    significant. Its features are multiples of 2 / L in [-1, 1) for an even number of levels L, of 2 / (L - 1) in
    [-1, 1] for an odd one.
    """

    def __init__(self, config: FiniteScalarQuantizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Quantized:
        bounded = self._bound(features)  # [B, D, h, w]
        codes = self._codes(bounded)  # [B, h, w]
        quantized = self.codes_to_features(codes)  # [B, D, h, w]
        if self.training:
            z = bounded / (self._levels(bounded) // 2)
            quantized = z + (quantized - z).detach()
        return Quantized(quantized, codes, {})

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        return self._codes(self._bound(features))

    def codes_to_features(self, codes: Tensor) -> Tensor:
        levels = self._levels(codes)
        half_width = levels // 2
        digits = codes[:, None] // self._place_values(codes) % levels  # [B, D, h, w]
        return (digits - half_width).float() / half_width

    @torch.no_grad()
    def init_weights(self) -> None:
        pass

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.levels, device=like.device).view(-1, 1, 1)  # [D, 1, 1]

    def _place_values(self, like: Tensor) -> Tensor:
        """What a step of each channel adds to the code: 1, L_1, L_1 L_2, ..."""
        values = list(accumulate(self.config.levels[:-1], mul, initial=1))
        return torch.tensor(values, device=like.device).view(-1, 1, 1)  # [D, 1, 1]

    def _bound(self, features: Tensor) -> Tensor:
        """Squeeze each channel into the span of its levels, -(L // 2) to (L - 1) // 2 (arXiv:2309.15505, appendix A.1).

        An even number of levels has none in the middle: the offset of a half puts them on integers, and the shift
        undoes it at zero, which stays zero. (The paper's listing has tan for this shift; only atanh does it.)
        """
        levels = self._levels(features)
        half_span = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half_span)
        # In float32 also under autocast, which leaves these operations alone.
        return torch.tanh(features.float() + shift) * half_span - offset

    def _codes(self, bounded: Tensor) -> Tensor:
        levels = self._levels(bounded)
        digits = bounded.detach().round().long() + levels // 2  # [B, D, h, w]
        # Beyond 1,000 levels the margin is more than half a level; and what is NaN must not be a code outside either.
        digits = digits.clamp(torch.zeros_like(levels), levels - 1)
        return (digits * self._place_values(bounded)).sum(1)

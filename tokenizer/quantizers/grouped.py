"""Grouped quantization: the channels are cut into groups, and each group is quantized by itself.

This is product quantization, Jegou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57. With groups on the sphere it is
grouped spherical quantization (GSQ), Wang et al. 2024, https://arxiv.org/abs/2412.02632.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig
from codegrid.tokenizer.quantizers.levels import LevelsQuantizer, check_inner, make_levels, mean_losses, of_level
from codegrid.tokenizer.quantizers.vector import VectorQuantizerConfig


@dataclass(frozen=True)
class GroupedQuantizerConfig(QuantizerConfig):
    """Config of `GroupedQuantizer`.

    Args:
        groups: codes at each position, one per group of channels; at least 2.
        inner: the quantizer of a group, any with one code per position. Its `code_dim` is the number of channels of one
            group. Its loss terms are averaged over the groups: the default has a commitment weight of 1 for each of two
            groups, since 0.25 reconstructs worse (docs/quantizers.md). (GSQ is vq with `l2_normalize`.)
    """

    type: Literal["grouped"] = "grouped"
    groups: int = 2
    inner: QuantizerConfig = field(default_factory=lambda: VectorQuantizerConfig(commitment_weight=2.0))

    def __post_init__(self) -> None:
        check_inner(self.inner)
        require(
            self.groups >= 2,
            f"quantizer.groups is {self.groups}.",
            f"Give at least 2; one group is its inner quantizer, type {self.inner.type!r}.",
        )

    @property
    def depth(self) -> int:
        return self.groups

    @property
    def codebook_size(self) -> int:
        """Codes of one group."""
        return self.inner.codebook_size

    @property
    def code_dim(self) -> int:
        """Channels of all groups."""
        return self.groups * self.inner.code_dim

    def build(self) -> Quantizer:
        return GroupedQuantizer(self)


class GroupedQuantizer(LevelsQuantizer):
    """Groups `levels.0`, ...: group g quantizes the channels [g * inner.code_dim, (g + 1) * inner.code_dim)."""

    def __init__(self, config: GroupedQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = make_levels([config.inner] * config.groups)

    def forward(self, features: Tensor) -> Quantized:
        parts = [level(part) for level, part in zip(self.levels, self._split(features), strict=True)]
        return Quantized(
            torch.cat([part.features for part in parts], 1),  # [B, D, h, w]
            torch.stack([part.codes for part in parts], -1),  # [B, h, w, groups]
            mean_losses([part.losses for part in parts]),
        )

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        codes = [level.encode(part) for level, part in zip(self.levels, self._split(features), strict=True)]
        return torch.stack(codes, -1)

    def codes_to_features(self, codes: Tensor) -> Tensor:
        parts = [level.codes_to_features(part) for level, part in zip(self.levels, codes.unbind(-1), strict=True)]
        return torch.cat(parts, 1)

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        found = {}
        for index, part in enumerate(self._split(features)):
            found |= of_level(index, self.levels[index].statistics(codes[..., index], part))
        return found

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        moved = {}
        for index, part in enumerate(self._split(features)):
            moved |= of_level(index, self.levels[index].revive(codes[..., index], part, generator))
        return moved

    def _split(self, features: Tensor) -> tuple[Tensor, ...]:
        """[B, D, h, w] or [N, D] -> one tensor per group, each with inner.code_dim channels."""
        return features.split(self.config.inner.code_dim, dim=1)

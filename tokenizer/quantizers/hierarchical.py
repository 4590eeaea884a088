"""Hierarchical quantization: a top grid of half the resolution for large structures, a bottom grid for the details.

VQ-VAE-2, Razavi et al. 2019, https://arxiv.org/abs/1906.00446.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.layers import Downsample, ResnetBlock, Upsample
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig, spread, to_rows
from codegrid.tokenizer.quantizers.levels import LevelsQuantizer, check_inner, make_levels, mean_losses, of_level
from codegrid.tokenizer.quantizers.vector import VectorQuantizerConfig

# Side of a top position, in positions of the bottom grid.
_SIDE = 2


@dataclass(frozen=True)
class HierarchicalQuantizerConfig(QuantizerConfig):
    """Config of `HierarchicalQuantizer`.

    Args:
        channels: channels of the input features, of those between the grids, and of the decoder's input.
        norm_groups: groups of the group norms in the residual blocks between the grids.
        inner: the quantizer of each grid, any with one code per position. Each grid has its own codebook. Its loss
            terms are averaged over the two grids.
    """

    type: Literal["hierarchical"] = "hierarchical"
    channels: int = 64
    norm_groups: int = 8
    inner: QuantizerConfig = field(default_factory=VectorQuantizerConfig)

    def __post_init__(self) -> None:
        check_inner(self.inner)
        for name in ("channels", "norm_groups"):
            require(getattr(self, name) >= 1, f"quantizer.{name} is {getattr(self, name)}.", "Give at least 1.")
        require(
            self.channels % self.norm_groups == 0,
            f"quantizer.channels {self.channels} cannot be split into quantizer.norm_groups {self.norm_groups}.",
            "Give a divisor of quantizer.channels.",
        )

    @property
    def depth(self) -> int:
        """Codes per position: the top code and its block of the bottom grid."""
        return 1 + _SIDE**2

    @property
    def stride(self) -> int:
        return _SIDE

    @property
    def codebook_size(self) -> int:
        """Codes of one grid."""
        return self.inner.codebook_size

    @property
    def code_dim(self) -> int:
        return self.channels

    def build(self) -> Quantizer:
        return HierarchicalQuantizer(self)


class HierarchicalQuantizer(LevelsQuantizer):
    """`levels.0` quantizes the top grid, `levels.1` the bottom grid, which depends on the top's codes.

    Positions are those of the top grid. A position's codes are the top code and then the codes of the 2 x 2 block that
    it covers in the bottom grid, row by row. Between the grids are one residual block each way and 1x1 convolutions:

        top = down(features),  said = up(code of top),  bottom = narrow(features, said),  out = said + widen(its code)
    """

    def __init__(self, config: HierarchicalQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        channels, groups, code_dim = config.channels, config.norm_groups, config.inner.code_dim
        self.down = nn.Sequential(
            ResnetBlock(channels, channels, groups, 0.0), Downsample(channels), nn.Conv2d(channels, code_dim, 1)
        )
        self.up = nn.Sequential(
            nn.Conv2d(code_dim, channels, 1), ResnetBlock(channels, channels, groups, 0.0), Upsample(channels)
        )
        self.narrow = nn.Conv2d(2 * channels, code_dim, 1)
        self.widen = nn.Conv2d(code_dim, channels, 1)
        self.levels = make_levels([config.inner] * 2)

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            features = self._enter(features)  # [B, C, h, w]
            top = self.levels[0](self.down(features))  # [B, D, h/2, w/2]
            said = self._say(top.features)  # [B, C, h, w]
            bottom = self.levels[1](self._narrow(features, said))  # [B, D, h, w]
            out = self._add(said, bottom.features)
        return Quantized(out, pack(top.codes, bottom.codes), mean_losses([top.losses, bottom.losses]))

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        _, top, bottom = self._walk(features)
        return pack(top, self.levels[1].encode(bottom))

    def codes_to_features(self, codes: Tensor) -> Tensor:
        top, bottom = (level.codes_to_features(part) for level, part in zip(self.levels, unpack(codes), strict=True))
        with torch.autocast(codes.device.type, enabled=False):
            return self._add(self._say(top), bottom)

    @property
    def revival_candidates(self) -> int:
        """The same number for each grid."""
        return max(level.revival_candidates for level in self.levels)

    @torch.no_grad()
    def candidates(self, features: Tensor) -> Tensor:
        """Input rows of both grids, side by side: [N, C, h, w] -> [M, 2 D]. Rows of the smaller grid repeat."""
        top, _, bottom = self._walk(features)
        rows = [spread(to_rows(part).float(), self.revival_candidates) for part in (top, bottom)]
        numbers = torch.arange(max(map(len, rows)), device=features.device)  # [M]
        return torch.cat([part[numbers % len(part)] for part in rows], 1)

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        if not self.levels[0].moving_means:
            return {}
        chosen, found = unpack(codes), {}
        top, _, bottom = self._walk(features, chosen[0])
        for index, part in enumerate((top, bottom)):
            found |= of_level(index, self.levels[index].statistics(chosen[index], part))
        return found

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        moved = {}
        parts = zip(self.levels, self.codes_of_levels(codes), features.chunk(2, dim=1), strict=True)
        for index, (level, chosen, rows) in enumerate(parts):
            moved |= of_level(index, level.revive(chosen, rows, generator))
        return moved

    def codes_of_levels(self, codes: Tensor) -> Sequence[Tensor]:
        return codes[..., 0], codes[..., 1:]

    def _walk(self, features: Tensor, top_codes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The top's input [B, D, h/2, w/2], its codes (computed if not given), and the bottom's input [B, D, h, w]."""
        with torch.autocast(features.device.type, enabled=False):
            features = self._enter(features)
            top = self.down(features)
            top_codes = self.levels[0].encode(top) if top_codes is None else top_codes
            return top, top_codes, self._narrow(features, self._say(self.levels[0].codes_to_features(top_codes)))

    def _enter(self, features: Tensor) -> Tensor:
        """Enter in the weights' precision, float32 unless the model was cast, so that autocast changes no code."""
        return features.to(self.widen.weight.dtype)

    def _say(self, top: Tensor) -> Tensor:
        """Features of the top's codes [B, D, h/2, w/2] -> [B, C, h, w]."""
        return self.up(self._enter(top))

    def _narrow(self, features: Tensor, said: Tensor) -> Tensor:
        return self.narrow(torch.cat([features, said], 1))

    def _add(self, said: Tensor, bottom: Tensor) -> Tensor:
        return (said + self.widen(self._enter(bottom))).float()


def pack(top: Tensor, bottom: Tensor) -> Tensor:
    """Codes of both grids, [B, h/2, w/2] and [B, h, w] -> [B, h/2, w/2, 5]: the top's, then its block row by row."""
    blocks = bottom.unflatten(2, (-1, _SIDE)).unflatten(1, (-1, _SIDE))  # [B, h/2, 2, w/2, 2]
    return torch.cat([top[..., None], blocks.transpose(2, 3).flatten(3)], 3)


def unpack(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`."""
    blocks = codes[..., 1:].unflatten(3, (_SIDE, _SIDE)).transpose(2, 3)  # [B, h/2, 2, w/2, 2]
    return codes[..., 0], blocks.flatten(3, 4).flatten(1, 2)

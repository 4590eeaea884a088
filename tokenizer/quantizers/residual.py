"""Residual quantization: each level quantizes the residual of the levels before it.

RQ-VAE, Lee et al. 2022, https://arxiv.org/abs/2203.01941. For quantizers without a learned codebook, each level has a
finer grid, as in vector-quantize-pytorch's ResidualFSQ and ResidualLFQ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig
from codegrid.tokenizer.quantizers.gradients import rotation, straight_through
from codegrid.tokenizer.quantizers.levels import LevelsQuantizer, mean_losses, of_level
from codegrid.tokenizer.quantizers.vector import VectorQuantizerConfig


@dataclass(frozen=True)
class ResidualQuantizerConfig(QuantizerConfig):
    """Config of `ResidualQuantizer`.

    Args:
        depth: codes at each position, coarse to fine; at least 2.
        shared: one codebook for all levels, as in RQ-VAE; False gives each level its own.
        inner: the quantizer of a level: vq, simvq, fsq, lfq, or another that `has_residual_levels`. Its loss terms are
            averaged over the levels, so that a weight means the same at any depth. `isotropy_weight` acts on the
            features only, not on residuals. Level n of an fsq has steps of 1 / L^n, over features bounded to the first
            level's range; the codes of level n of an lfq are +-1 / 2^n.
    """

    type: Literal["residual"] = "residual"
    depth: int = 4
    shared: bool = False
    inner: QuantizerConfig = field(default_factory=lambda: VectorQuantizerConfig(l2_normalize=False))

    def __post_init__(self) -> None:
        require(
            self.depth >= 2,
            f"quantizer.depth is {self.depth}.",
            f"Give at least 2; one level is its inner quantizer, type {self.inner.type!r}.",
        )
        known = [name for name, kind in self.registered.items() if kind.has_residual_levels]
        # The gradient of ibq and gumbel passes through the choice, and the sum of the codes would lose it. The codes of
        # bsq lie on the sphere.
        require(
            self.inner.has_residual_levels,
            f"quantizer.inner.type is {self.inner.type!r}, whose codes do not add up over levels.",
            f"Choose one of {', '.join(map(repr, known))}.",
        )
        self.inner.check_residual_levels(self.shared)

    @property
    def codebook_size(self) -> int:
        """Codes of one level."""
        return self.inner.codebook_size

    @property
    def code_dim(self) -> int:
        return self.inner.code_dim

    def build(self) -> Quantizer:
        return ResidualQuantizer(self)


class ResidualQuantizer(LevelsQuantizer):
    """Levels `levels.0`, ..., each an inner quantizer; only `levels.0` if the codebook is shared.

    r_0 = z, k_d = nearest(r_(d-1)), r_d = r_(d-1) - e(k_d); the features are the sum of the e(k_d)
    (arXiv:2203.01941). The gradient passes through the sum.
    """

    def __init__(self, config: ResidualQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        number = 1 if config.shared else config.depth
        self.levels = nn.ModuleList(map(config.inner.residual_level, range(number)))
        self.gradient = rotation if getattr(config.inner, "gradient", "") == "rotation" else straight_through

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            z = self.config.inner.residual_entry(features)  # [B, D, h, w]
            residual, codes, chosen, losses = z, [], [], []
            for level in self._levels():
                quantized = level(residual)
                codes.append(quantized.codes)
                e = quantized.chosen
                chosen.append(level.codes_to_features(quantized.codes) if e is None else e)
                losses.append(quantized.losses)
                # Detached, so that each level's commitment term is |z - sg[sum so far]|^2, as in arXiv:2203.01941.
                residual = residual - chosen[-1].detach()
            e = sum(chosen)  # [B, D, h, w], added up in the order of `codes_to_features`
            if self.training:
                e = self.gradient(z, e)
        return Quantized(e, torch.stack(codes, -1), mean_losses(losses))  # codes: [B, h, w, depth]

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            residual, codes = self.config.inner.residual_entry(features), []
            for level in self._levels():
                codes.append(level.encode(residual))
                residual = residual - level.codes_to_features(codes[-1])
        return torch.stack(codes, -1)  # [B, h, w, depth]

    def codes_to_features(self, codes: Tensor) -> Tensor:
        levels = zip(self._levels(), codes.unbind(-1), strict=True)
        # Added up in a fixed order, from the first level on, so that the bits are the same every time.
        return sum(level.codes_to_features(chosen) for level, chosen in levels)

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Each level's statistics of its own inputs; a shared codebook gets the sums over the levels."""
        residual, found = self.config.inner.residual_entry(features), {}
        for index, (level, chosen) in enumerate(zip(self._levels(), codes.unbind(-1), strict=True)):
            for name, sums in of_level(index % len(self.levels), level.statistics(chosen, residual)).items():
                found[name] = found[name] + sums if name in found else sums
            residual = residual - level.codes_to_features(chosen)
        return found

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Each level moves its dead codes onto the residuals that the levels before it leave of `features`.

        Levels with their own codebooks take different features, because a feature that became a code of one level
        leaves no residual to the next. Residuals are computed after the levels before have moved their codes.
        """
        if self.config.shared:
            return of_level(0, self.levels[0].revive(codes, torch.cat(self._residuals(features)), generator))
        number, moved = len(features), {}
        residual = features.float()[torch.randperm(number, generator=generator).to(features.device)]  # [N, D]
        for index, (level, chosen) in enumerate(zip(self.levels, codes.unbind(-1), strict=True)):
            candidates = residual[index % number :: self.config.depth]
            moved |= of_level(index, level.revive(chosen, candidates, generator))
            residual = _left_over(level, residual)
        return moved

    def codes_of_levels(self, codes: Tensor) -> Sequence[Tensor]:
        return [codes] if self.config.shared else codes.unbind(-1)

    def _levels(self) -> list[Quantizer]:
        return list(self.levels) * (self.config.depth // len(self.levels))

    def _residuals(self, features: Tensor) -> list[Tensor]:
        """The input of each level: rows [N, D] -> a list of depth tensors [N, D]."""
        residuals = [features.float()]
        for level in self._levels()[:-1]:
            residuals.append(_left_over(level, residuals[-1]))
        return residuals


def _left_over(level: Quantizer, rows: Tensor) -> Tensor:
    """The residual: rows [N, D] minus their codes' features."""
    grids = rows[:, :, None, None]  # [N, D, 1, 1]
    return (grids - level.codes_to_features(level.encode(grids))).flatten(1)

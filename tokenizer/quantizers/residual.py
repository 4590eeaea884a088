"""Residual quantization: each level quantizes what the levels before it left over.

RQ-VAE, Lee et al. 2022, https://arxiv.org/abs/2203.01941. Of quantizers without a codebook to learn, each level has a
finer grid, as in vector-quantize-pytorch's ResidualFSQ and ResidualLFQ.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig
from codegrid.tokenizer.quantizers.finite_scalar import FiniteScalarLevel, soft_bound
from codegrid.tokenizer.quantizers.gradients import rotation, straight_through
from codegrid.tokenizer.quantizers.levels import InnerConfig, LevelsQuantizer, make_levels, mean_losses, of_level
from codegrid.tokenizer.quantizers.vector import VectorQuantizerConfig

# What a level may be. The gradient of ibq and gumbel goes through the choice, and the sum of the codes would lose it;
# the codes of bsq lie on the sphere.
_INNER = ("vq", "simvq", "fsq", "lfq")
# Those whose levels are told apart by the size of their steps alone.
_FINER = ("fsq", "lfq")


@dataclass(frozen=True)
class ResidualQuantizerConfig(QuantizerConfig):
    """Config of `ResidualQuantizer`.

    Args:
        depth: codes at each position, coarse to fine; at least 2.
        shared: one codebook for all levels, as RQ-VAE has; False gives each level its own.
        inner: the quantizer of a level: vq, simvq, fsq or lfq. Its loss terms are averaged over the levels, so that a
            weight means the same at any depth; `isotropy_weight` acts on the features alone, not on what is left of
            them. Level n of an fsq has steps of 1 / L^n, over features squeezed into the first level's range; the
            codes of level n of an lfq are +-1 / 2^n.
    """

    type: Literal["residual"] = "residual"
    depth: int = 4
    shared: bool = False
    inner: InnerConfig = field(default_factory=lambda: VectorQuantizerConfig(l2_normalize=False))

    def __post_init__(self) -> None:
        require(
            self.depth >= 2,
            f"quantizer.depth is {self.depth}: it must be at least 2. One level is its inner quantizer: "
            f"type {self.inner.type!r}.",
        )
        require(
            self.inner.type in _INNER,
            f"quantizer.inner.type is {self.inner.type!r}: the levels of a residual quantizer must be one of "
            f"{', '.join(map(repr, _INNER))}.",
        )
        require(
            not (self.shared and self.inner.type in _FINER),
            f"quantizer.shared is True: {self.inner.type!r} has no codebook that levels could share. Turn it off.",
        )
        if isinstance(self.inner, VectorQuantizerConfig):
            self._check_vector_quantizer(self.inner)

    def _check_vector_quantizer(self, inner: VectorQuantizerConfig) -> None:
        require(
            not inner.l2_normalize,
            "quantizer.inner.l2_normalize is True: what a level leaves over does not lie on the sphere. Turn it off.",
        )
        require(
            not (self.shared and inner.isotropy_weight),
            f"quantizer.inner.isotropy_weight is {inner.isotropy_weight}: it would spread what the levels leave "
            "over as far as the features. Set it to 0, or quantizer.shared to False.",
        )

    @property
    def codebook_size(self) -> int:
        """Codes of one level."""
        return self.inner.codebook_size

    @property
    def code_dim(self) -> int:
        return self.inner.code_dim


class ResidualQuantizer(LevelsQuantizer):
    """Levels `levels.0`, ..., each an inner quantizer; only `levels.0` where the codebook is shared.

    r_0 = z, k_d = nearest(r_(d-1)), r_d = r_(d-1) - e(k_d); the features are the sum of the e(k_d)
    (arXiv:2203.01941). The gradient passes through the sum.
    """

    def __init__(self, config: ResidualQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        number = 1 if config.shared else config.depth
        self.levels = nn.ModuleList(_make_level(config.inner, index) for index in range(number))
        self.gradient = rotation if getattr(config.inner, "gradient", "") == "rotation" else straight_through

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            z = self._enter(features)  # [B, D, h, w]
            residual, codes, chosen, losses = z, [], [], []
            for level in self._levels():
                quantized = level(residual)
                codes.append(quantized.codes)
                chosen.append(level.codes_to_features(quantized.codes))
                losses.append(quantized.losses)
                # Detached: then each level's commitment term is |z - sg[sum so far]|^2, as in arXiv:2203.01941.
                residual = residual - chosen[-1].detach()
            e = sum(chosen)  # [B, D, h, w], added up in the order of `codes_to_features`
            if self.training:
                e = self.gradient(z, e)
        return Quantized(e, torch.stack(codes, -1), mean_losses(losses))  # codes: [B, h, w, depth]

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            residual, codes = self._enter(features), []
            for level in self._levels():
                codes.append(level.encode(residual))
                residual = residual - level.codes_to_features(codes[-1])
        return torch.stack(codes, -1)  # [B, h, w, depth]

    def codes_to_features(self, codes: Tensor) -> Tensor:
        levels = zip(self._levels(), codes.unbind(-1), strict=True)
        # One after the other, from the first: an order that gives the same bits every time.
        return sum(level.codes_to_features(chosen) for level, chosen in levels)

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Each level's, of what it quantized; a shared codebook's are the sums over the levels."""
        residual, found = self._enter(features), {}
        for index, (level, chosen) in enumerate(zip(self._levels(), codes.unbind(-1), strict=True)):
            for name, sums in of_level(index % len(self.levels), level.statistics(chosen, residual)).items():
                found[name] = found[name] + sums if name in found else sums
            residual = residual - level.codes_to_features(chosen)
        return found

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Each level moves its codes onto what the levels before it leave of `features`.

        Levels of their own codebooks take different features: one that has become a code of a level leaves nothing to
        the next, and what is left is counted after the levels before have moved.
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

    def _enter(self, features: Tensor) -> Tensor:
        """The features in float32, within the range of the first level where it has one."""
        inner = self.config.inner
        return soft_bound(inner, features) if inner.type == "fsq" else features.float()

    def _levels(self) -> list[Quantizer]:
        return list(self.levels) * (self.config.depth // len(self.levels))

    def _residuals(self, features: Tensor) -> list[Tensor]:
        """What each level gets to quantize: rows [N, D] -> depth times [N, D]."""
        residuals = [features.float()]
        for level in self._levels()[:-1]:
            residuals.append(_left_over(level, residuals[-1]))
        return residuals


def _make_level(inner: QuantizerConfig, index: int) -> Quantizer:
    if inner.type == "fsq":
        return FiniteScalarLevel(inner, index)
    if inner.type == "vq" and index:
        inner = replace(inner, isotropy_weight=0.0)
    (level,) = make_levels([inner])
    if inner.type == "lfq":
        level.scale *= 2.0**-index
    return level


def _left_over(level: Quantizer, rows: Tensor) -> Tensor:
    """Rows [N, D] less their codes' features."""
    grids = rows[:, :, None, None]  # [N, D, 1, 1]
    return (grids - level.codes_to_features(level.encode(grids))).flatten(1)

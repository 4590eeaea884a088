"""What every quantizer is: a config dataclass, and a module that turns features into codes and codes into features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from codegrid.errors import CodegridError

# Features that dead codes of a level may be moved onto, from each rank and step: enough, and little to send around.
REVIVAL_CANDIDATES = 1024


class Quantized(NamedTuple):
    """What a quantizer's forward pass gives.

    Attributes:
        features: [B, D, h, w] float32, what the decoder gets; in training the gradient passes to the input.
        codes: [B, h, w] int64 in [0, codebook_size), or [B, h, w, depth] where the depth is above 1.
        losses: named scalar terms, already weighted; training adds them up and logs each under its name.
        chosen: [B, D, h, w] float32, the same as `codes_to_features(codes)`, where the forward pass has it anyway:
            without the gradient's way to the input.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    chosen: Tensor | None = None


@dataclass(frozen=True)
class QuantizerConfig:
    """What every quantizer's config has: `type` and four numbers, which are fields of some and follow from others.

    Args:
        type: the quantizer's name in the registry.

    Attributes:
        codebook_size: number of codes K that a code is one of.
        code_dim: channels D of the features that are quantized.
        depth: codes at each position. Codes have an axis for them, the last, exactly where there are several.
        stride: features of a position along each side. Codes are [B, h / stride, w / stride] and depth.
    """

    # The configs that are told apart by their `type`; `register_quantizer` adds to them.
    # (In here `type` is the field, so that the values cannot be annotated as types.)
    registered: ClassVar[dict[str, Any]] = {}
    # Whether a residual quantizer may be made of it; it then has a `residual_level`.
    has_residual_levels: ClassVar[bool] = False

    type: str = ""

    @property
    def depth(self) -> int:
        return 1

    @property
    def stride(self) -> int:
        return 1

    def build(self) -> Quantizer:
        """The quantizer of this config, with its starting values."""
        raise NotImplementedError(f"{type(self).__name__} has no `build`.")

    def check_residual_levels(self, shared: bool) -> None:
        """Raises CodegridError where a residual quantizer cannot be made of this config.

        Args:
            shared: its levels are to be one and the same.
        """
        if shared:
            raise CodegridError(
                f"quantizer.shared is True: {self.type!r} has no codebook that levels could share. Turn it off."
            )

    def residual_level(self, index: int) -> Quantizer:
        """The quantizer of what the levels before number `index` leave over; only where `has_residual_levels`."""
        raise NotImplementedError(f"{type(self).__name__} has no `residual_level`.")

    def residual_entry(self, features: Tensor) -> Tensor:
        """What the first level of a residual quantizer gets for its features: [B, D, h, w] -> the same in float32."""
        return features.float()


class Quantizer(nn.Module):
    """Contract: `forward(features)` trains, `encode(features)` and `codes_to_features(codes)` are its two halves.

    `codes_to_features(forward(x).codes)` equals `forward(x).features` in evaluation, bit for bit. Distances run in
    float32 whatever the autocast; ties go to the lower code. Codes are [B, h, w], or [B, h, w, depth] where
    `config.depth` is above 1; h and w are `config.stride` times less than those of the features.
    """

    config: QuantizerConfig
    # Whether `statistics` has sums to give.
    moving_means: bool = False
    # Buffers that only training reads: they are saved, and codes do not depend on them.
    training_buffers: tuple[str, ...] = ()

    def forward(self, features: Tensor) -> Quantized:
        """features: [B, code_dim, h, w] -> `Quantized`."""
        raise NotImplementedError

    def encode(self, features: Tensor) -> Tensor:
        """features: [B, code_dim, h, w] -> codes: [B, h, w] or [B, h, w, depth] int64."""
        raise NotImplementedError

    def codes_to_features(self, codes: Tensor) -> Tensor:
        """codes: [B, h, w] or [B, h, w, depth] int64 -> features: [B, code_dim, h, w] float32."""
        raise NotImplementedError

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set the parameters to their starting values (transformers would overwrite what the constructor sets)."""
        raise NotImplementedError

    @torch.no_grad()
    def fill_constants(self) -> None:
        """Give the buffers that are not saved, if there are any, their values: `from_pretrained` leaves them empty."""

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        """What `update` has to know of a step: sums over this rank's features, to be added up over the ranks.

        It is asked for before the optimizer's step: the weights are still those that gave `codes`.

        Args:
            codes: [N, h, w] or [N, h, w, depth], the codes just used, of this rank.
            features: [N, code_dim, h, w], the inputs of the quantizer that got them.

        Returns:
            named sums; none where gradients alone change the quantizer.
        """
        return {}

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        """After an optimizer step: change what no gradient changes, by the `statistics` of all ranks."""

    @property
    def revival_candidates(self) -> int:
        """Features of each rank that the next `revive` has a use for."""
        return REVIVAL_CANDIDATES

    @torch.no_grad()
    def candidates(self, features: Tensor) -> Tensor:
        """What `revive` may move codes onto, of inputs [N, code_dim, h, w] of this rank: rows [M, code_dim]."""
        return spread(to_rows(features), self.revival_candidates)

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Count `codes`; move codes that lie unused onto `features` where the quantizer has a codebook to move.

        Args:
            codes: the codes just used, of all ranks, any shape; where the depth is above 1 it is the last axis.
            features: [N, code_dim], the `candidates` of all ranks, the same on each.
            generator: draws which features are taken; seeded alike on every rank.

        Returns:
            by the name of a parameter or buffer, the indices [M] of its rows that were moved; empty where none was.
        """
        return {}


def to_rows(grid: Tensor) -> Tensor:
    """[B, D, h, w] -> [B h w, D]."""
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


def spread(rows: Tensor, number: int) -> Tensor:
    """About `number` of the rows, spread over all: an odd stride does not keep to some columns of a grid."""
    return rows[:: max(1, len(rows) // number) | 1]

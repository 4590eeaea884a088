"""Base classes of quantizers: a config dataclass, and a module that maps features to codes and codes to features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from codegrid.errors import CodegridError

# Features per rank and step onto which dead-code restart may move a level's codes: enough, and cheap to exchange.
REVIVAL_CANDIDATES = 1024


class Quantized(NamedTuple):
    """The output of a quantizer's forward pass.

    Attributes:
        features: [B, D, h, w] float32, the decoder's input; in training the gradient passes to the quantizer's input.
        codes: [B, h, w] int64 in [0, codebook_size), or [B, h, w, depth] if the depth is above 1.
        losses: named scalar terms, already weighted; training adds them up and logs each under its name.
        chosen: [B, D, h, w] float32, the same as `codes_to_features(codes)`, if the forward pass has it anyway. It
            passes no gradient on to the input.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    chosen: Tensor | None = None


@dataclass(frozen=True)
class QuantizerConfig:
    """Base of every quantizer's config: `type` and four numbers, each a field or derived from other fields.

    Args:
        type: the quantizer's name in the registry.

    Attributes:
        codebook_size: number K of different codes.
        code_dim: channels D of the quantized features.
        depth: codes at each position. Above 1, codes have a last axis of this size.
        stride: features per position along each side. Codes are [B, h / stride, w / stride], with the axis for depth.
    """

    # Config classes by their `type`; `register_quantizer` adds to them.
    # (`type` is a field in this class, so the annotation cannot use the builtin.)
    registered: ClassVar[dict[str, Any]] = {}
    # Whether it can be the inner quantizer of a residual one; it then has a `residual_level`.
    has_residual_levels: ClassVar[bool] = False
    # Whether its quantizer has `distances`: a table of codes, of which each feature takes the nearest.
    has_distances: ClassVar[bool] = False

    type: str = ""

    @property
    def depth(self) -> int:
        return 1

    @property
    def stride(self) -> int:
        return 1

    def build(self) -> Quantizer:
        """A quantizer of this config, with initial weights."""
        raise NotImplementedError(f"{type(self).__name__} has no `build`.")

    def check_residual_levels(self, shared: bool) -> None:
        """Raises CodegridError if this config cannot be the inner one of a residual quantizer.

        Args:
            shared: all levels share one codebook.
        """
        if shared:
            raise CodegridError(
                f"quantizer.shared is True, and {self.type!r} has no codebook that levels could share.", "Turn it off."
            )

    def residual_level(self, index: int) -> Quantizer:
        """The quantizer of level `index`, for the residual of the levels before; only if `has_residual_levels`."""
        raise NotImplementedError(f"{type(self).__name__} has no `residual_level`.")

    def residual_entry(self, features: Tensor) -> Tensor:
        """Features -> the input of a residual quantizer's first level: [B, D, h, w] -> the same in float32."""
        return features.float()


class Quantizer(nn.Module):
    """Contract: training calls `forward(features)`; `encode(features)` and `codes_to_features(codes)` are its halves.

    `codes_to_features(forward(x).codes)` equals `forward(x).features` in evaluation, bit for bit. Distances are
    computed in float32 under any autocast; ties go to the lower code. Codes are [B, h, w], or [B, h, w, depth] if
    `config.depth` is above 1; h and w are those of the features divided by `config.stride`.
    """

    config: QuantizerConfig
    # Whether `statistics` returns sums.
    moving_means: bool = False
    # Buffers that only training reads. They are saved, but codes do not depend on them.
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

    def distances(self, features: Tensor) -> Tensor:
        """|z - e|^2 to every code, float32, with a gradient to features and codes; only if `config.has_distances`.

        [B, code_dim, h, w] -> [B h w, codebook_size]; the smallest of a row is its code's.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `distances`.")

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set the parameters to their initial values (transformers would overwrite those of the constructor)."""
        raise NotImplementedError

    @torch.no_grad()
    def fill_constants(self) -> None:
        """Fill the buffers that are not saved, if there are any: `from_pretrained` leaves them empty."""

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        """The input of `update` for one step: sums over this rank's features, which training adds up over the ranks.

        It is called before the optimizer's step, when the weights are still those that gave `codes`.

        Args:
            codes: [N, h, w] or [N, h, w, depth], this rank's codes of the step.
            features: [N, code_dim, h, w], the quantizer's inputs that got these codes.

        Returns:
            named sums; none if only gradients change the quantizer.
        """
        return {}

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        """Called after an optimizer step: updates, by the `statistics` of all ranks, what gradients do not train."""

    @property
    def revival_candidates(self) -> int:
        """Number of features per rank that the next `revive` can use."""
        return REVIVAL_CANDIDATES

    @torch.no_grad()
    def candidates(self, features: Tensor) -> Tensor:
        """Features onto which `revive` may move codes: this rank's inputs [N, code_dim, h, w] -> rows [M, code_dim]."""
        return spread(to_rows(features), self.revival_candidates)

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        """Count the codes of a step without a restart, and without the host waiting for the device.

        Args:
            codes: as in `revive`.
        """

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Dead-code restart: count `codes`, and move unused codes onto `features` if the quantizer has a codebook.

        Args:
            codes: the step's codes of all ranks, any shape; a depth above 1 is the last axis.
            features: [N, code_dim], the `candidates` of all ranks, the same on each rank.
            generator: draws the features; it has the same seed on every rank.

        Returns:
            the indices [M] of moved rows, by the name of their parameter or buffer; empty if no row moved.
        """
        return {}


def to_rows(grid: Tensor) -> Tensor:
    """[B, D, h, w] -> [B h w, D]."""
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


def spread(rows: Tensor, number: int) -> Tensor:
    """About `number` of the rows, evenly spread. The stride is odd, so that it does not stay in some grid columns."""
    return rows[:: max(1, len(rows) // number) | 1]

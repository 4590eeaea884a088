"""What every quantizer is: a config dataclass, and a module that turns features into codes and codes into features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer's forward pass gives.

    Attributes:
        features: [B, D, h, w] float32, what the decoder gets; in training the gradient passes to the input.
        codes: [B, h, w] int64 in [0, codebook_size).
        losses: named scalar terms, already weighted; training adds them up and logs each under its name.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class QuantizerConfig:
    """What every quantizer's config has: `type` and two numbers, which are fields of some and follow from others.

    Args:
        type: the quantizer's name in the registry.

    Attributes:
        codebook_size: number of codes K.
        code_dim: channels D of the features that are quantized.
    """

    type: str = ""


class Quantizer(nn.Module):
    """Contract: `forward(features)` trains, `encode(features)` and `codes_to_features(codes)` are its two halves.

    `codes_to_features(forward(x).codes)` equals `forward(x).features` in evaluation, bit for bit. Distances run in
    float32 whatever the autocast; ties go to the lower code.
    """

    config: QuantizerConfig
    # Buffers that only training reads: they are saved, and codes do not depend on them.
    training_buffers: tuple[str, ...] = ()

    def forward(self, features: Tensor) -> Quantized:
        """features: [B, code_dim, h, w] -> `Quantized`."""
        raise NotImplementedError

    def encode(self, features: Tensor) -> Tensor:
        """features: [B, code_dim, h, w] -> codes: [B, h, w] int64."""
        raise NotImplementedError

    def codes_to_features(self, codes: Tensor) -> Tensor:
        """codes: [B, h, w] int64 -> features: [B, code_dim, h, w] float32."""
        raise NotImplementedError

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set the parameters to their starting values (transformers would overwrite what the constructor sets)."""
        raise NotImplementedError

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        """What `update` has to know of a step: sums over this rank's features, to be added up over the ranks.

        Args:
            codes: [N, h, w], the codes just used, of this rank.
            features: [N, code_dim, h, w], the inputs of the quantizer that got them.

        Returns:
            named sums; none where gradients alone change the quantizer.
        """
        return {}

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        """After an optimizer step: change what no gradient changes, by the `statistics` of all ranks."""

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> Tensor | None:
        """Count `codes`; move codes that lie unused onto `features` where the quantizer has a codebook to move.

        Args:
            codes: the codes just used, of all ranks, any shape.
            features: [N, code_dim], inputs of the quantizer, of all ranks and the same on each.
            generator: draws which features are taken; seeded alike on every rank.

        Returns:
            indices [M] of the codes that were moved, or None.
        """
        return None

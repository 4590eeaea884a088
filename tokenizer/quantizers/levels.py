"""What residual and grouped quantization have in common: several inner quantizers, one for each code of a position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenizer.quantizers.base import Quantizer, QuantizerConfig
from tokenizer.quantizers.vector import VectorQuantizer, VectorQuantizerConfig

# What an inner quantizer may be, told apart by `type`. The registry itself imports those that have inner ones.
InnerConfig = VectorQuantizerConfig
_INNER: dict[str, type[Quantizer]] = {"vq": VectorQuantizer}


def make_levels(configs: Sequence[QuantizerConfig]) -> nn.ModuleList:
    return nn.ModuleList(_INNER[config.type](config) for config in configs)


def mean_losses(losses: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each named term's mean over the levels that have it."""
    names = dict.fromkeys(name for terms in losses for name in terms)
    return {name: torch.stack([terms[name] for terms in losses if name in terms]).mean() for name in names}


def moved_rows(level: int, moved: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `revive` of level number `level` gave, under the names that its parameters have in the whole."""
    return {f"levels.{level}.{name}": rows for name, rows in moved.items()}

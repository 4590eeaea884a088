"""Lookup-free quantization (LFQ): the sign of each channel is a bit of the code.

Yu et al. 2023, https://arxiv.org/abs/2310.05737 (MAGVIT-v2); Luo et al. 2024, https://arxiv.org/abs/2409.04410
(Open-MAGVIT2; the temperature).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from codegrid.tokenizer.quantizers.base import Quantizer
from codegrid.tokenizer.quantizers.binary import BinaryQuantizer, BinaryQuantizerConfig


@dataclass(frozen=True)
class LookupFreeQuantizerConfig(BinaryQuantizerConfig):
    """Config of `LookupFreeQuantizer`; `BinaryQuantizerConfig` documents the fields.

    The authors' entropy_weight is 0.1 and their inv_temperature 100, with a perceptual and an adversarial term. With
    only a pixel error this is too strong, and reconstructions get worse (docs/quantizers.md).
    """

    has_residual_levels: ClassVar[bool] = True

    type: Literal["lfq"] = "lfq"
    entropy_weight: float = 0.02
    inv_temperature: float = 10.0

    def build(self) -> Quantizer:
        return LookupFreeQuantizer(self)

    def residual_level(self, index: int) -> Quantizer:
        """Levels differ in the size of their steps: the codes of level `index` are +-1 / 2^index."""
        level = LookupFreeQuantizer(self)
        level.scale *= 2.0**-index
        return level


class LookupFreeQuantizer(BinaryQuantizer):
    """Codes are the corners of the cube {-1, 1}^D (arXiv:2310.05737)."""

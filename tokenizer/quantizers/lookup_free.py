"""Lookup-free quantization (LFQ): the sign of each channel is a bit of the code.

Yu et al. 2023, https://arxiv.org/abs/2310.05737 (MAGVIT-v2); Luo et al. 2024, https://arxiv.org/abs/2409.04410
(Open-MAGVIT2; the temperature).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codegrid.tokenizer.quantizers.binary import BinaryQuantizer, BinaryQuantizerConfig


@dataclass(frozen=True)
class LookupFreeQuantizerConfig(BinaryQuantizerConfig):
    """Config of `LookupFreeQuantizer`; `BinaryQuantizerConfig` says what the fields are."""

    type: Literal["lfq"] = "lfq"


class LookupFreeQuantizer(BinaryQuantizer):
    """Codes are the corners of the cube {-1, 1}^D (arXiv:2310.05737)."""

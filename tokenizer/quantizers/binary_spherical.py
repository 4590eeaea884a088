"""Binary spherical quantization (BSQ): features lie on the unit sphere, and each channel's sign is a bit of the code.

Zhao et al. 2024, https://arxiv.org/abs/2406.07548.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from codegrid.tokenizer.quantizers.base import Quantizer
from codegrid.tokenizer.quantizers.binary import BinaryQuantizer, BinaryQuantizerConfig


@dataclass(frozen=True)
class BinarySphericalQuantizerConfig(BinaryQuantizerConfig):
    """Config of `BinarySphericalQuantizer`; `BinaryQuantizerConfig` documents the fields.

    The sphere already bounds the error, so the commitment term is left out by default, as the authors do. Their inverse
    temperature is 1 too.
    """

    type: Literal["bsq"] = "bsq"
    commitment_weight: float = 0.0
    inv_temperature: float = 1.0

    def build(self) -> Quantizer:
        return BinarySphericalQuantizer(self)


class BinarySphericalQuantizer(BinaryQuantizer):
    """Codes are the corners of the cube inside the unit sphere, {-1, 1}^D / sqrt(D)."""

    joint_bits = 1  # as in the paper: the batch's entropy is that of a product of marginals

    def __init__(self, config: BinarySphericalQuantizerConfig) -> None:
        super().__init__(config)
        self.scale = config.num_bits**-0.5

    def _place(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1)

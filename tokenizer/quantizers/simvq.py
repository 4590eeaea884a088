"""SimVQ: a frozen random codebook behind one learned linear layer.

Zhu et al. 2024, https://arxiv.org/abs/2411.02038. The layer moves all codes at every step, so no code is left behind or
needs a dead-code restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_rows
from codegrid.tokenizer.quantizers.gradients import straight_through
from codegrid.tokenizer.quantizers.nearest import nearest_codes, squared_distances


@dataclass(frozen=True)
class SimVQConfig(QuantizerConfig):
    """Config of `SimVQ`.

    Args:
        codebook_size: number of codes.
        code_dim: channels of the quantized features.
        codebook_weight: weight of the codebook term |sg[z] - W c|^2, which moves the codes towards the features. Only
            this term trains the layer.
        commitment_weight: weight of the commitment term |z - sg[W c]|^2, which holds the features at their codes.
    """

    has_residual_levels: ClassVar[bool] = True
    has_distances: ClassVar[bool] = True

    type: Literal["simvq"] = "simvq"
    codebook_size: int = 8192
    code_dim: int = 32
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def __post_init__(self) -> None:
        for name in ("codebook_size", "code_dim"):
            require(getattr(self, name) >= 1, f"quantizer.{name} is {getattr(self, name)}.", "Give at least 1.")
        require(
            self.codebook_weight > 0,
            f"quantizer.codebook_weight is {self.codebook_weight}, and then nothing moves the codes.",
            "Give a number above 0.",
        )
        require(
            self.commitment_weight >= 0,
            f"quantizer.commitment_weight is {self.commitment_weight}.",
            "Give 0 or more.",
        )

    def build(self) -> Quantizer:
        return SimVQ(self)

    def check_residual_levels(self, shared: bool) -> None:
        """Any config fits: levels may share a codebook or have their own."""

    def residual_level(self, index: int) -> Quantizer:
        return self.build()


class SimVQ(Quantizer):
    """The codes are `projection(codebook)` [codebook_size, code_dim]; `codebook` is a buffer and never changes."""

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.empty(config.codebook_size, config.code_dim))
        self.projection = nn.Linear(config.code_dim, config.code_dim, bias=False)
        # The layer acts as the codebook: Muon's bounded steps would leave the codes far shorter than the features.
        self.projection.no_decay = True
        self.init_weights()

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            z = features.float()  # [B, D, h, w]
            embedding = self._embedding()  # [K, D]
            codes = _nearest(z, embedding)  # [B, h, w]
            e = F.embedding(codes, embedding).permute(0, 3, 1, 2)  # [B, D, h, w]
            losses = {
                "codebook": self.config.codebook_weight * F.mse_loss(e, z.detach()),
                "commitment": self.config.commitment_weight * F.mse_loss(z, e.detach()),
            }
        return Quantized(straight_through(z, e) if self.training else e, codes, losses, e)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return _nearest(features.float(), self._embedding())

    def codes_to_features(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            return F.embedding(codes, self._embedding()).permute(0, 3, 1, 2)

    def distances(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return squared_distances(to_rows(features.float()), self._embedding())

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.normal_(self.codebook, std=self.config.code_dim**-0.5)
        self.projection.reset_parameters()

    def _embedding(self) -> Tensor:
        return F.linear(self.codebook.float(), self.projection.weight.float())


def _nearest(z: Tensor, embedding: Tensor) -> Tensor:
    return nearest_codes(to_rows(z.detach()), embedding.detach()).view(z.shape[0], *z.shape[2:])

"""Index backpropagation quantization: the gradient passes through the choice of the code and so reaches every code.

Shi et al. 2024, https://arxiv.org/abs/2412.02692. The gradient passes through the [N, codebook_size] matrix of
similarities. Training holds this matrix for each micro-batch, several times over; encoding does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_rows
from codegrid.tokenizer.quantizers.entropy import entropy_loss
from codegrid.tokenizer.quantizers.gradients import straight_through
from codegrid.tokenizer.quantizers.nearest import nearest_codes


@dataclass(frozen=True)
class IBQConfig(QuantizerConfig):
    """Config of `IBQ`. The first three weights are 1, 1 and beta = 0.25 in the authors' runs.

    The authors' entropy_weight is 0.05, with a perceptual and an adversarial term. With only a pixel error, 0.02
    reconstructs better (docs/quantizers.md), and 0.005 lets the codes collapse.

    Args:
        codebook_size: number of codes.
        code_dim: channels of the quantized features.
        index_weight: weight of |z - e|^2 with the gradient through the choice, which moves the features and all codes.
        commitment_weight: weight of the commitment term |z - sg[e]|^2, which holds the features at their codes.
        codebook_weight: weight of the codebook term |sg[z] - e|^2, which moves the chosen codes towards the features.
        entropy_weight: weight of `entropy_loss` over softmax(z.e / temperature). 0 leaves it out.
        entropy_temperature: temperature of that softmax.
    """

    type: Literal["ibq"] = "ibq"
    codebook_size: int = 16384
    code_dim: int = 256
    index_weight: float = 1.0
    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    entropy_weight: float = 0.02
    entropy_temperature: float = 0.01

    def __post_init__(self) -> None:
        for name in ("codebook_size", "code_dim"):
            require(getattr(self, name) >= 1, f"quantizer.{name} is {getattr(self, name)}.", "Give at least 1.")
        for name in ("index_weight", "commitment_weight", "codebook_weight", "entropy_weight"):
            require(getattr(self, name) >= 0, f"quantizer.{name} is {getattr(self, name)}.", "Give 0 or more.")
        temperature = self.entropy_temperature
        require(temperature > 0, f"quantizer.entropy_temperature is {temperature}.", "Give a number above 0.")

    def build(self) -> Quantizer:
        return IBQ(self)


class IBQ(Quantizer):
    """Codebook `embedding.weight` [codebook_size, code_dim]; a feature's code is the one with the largest z.e."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
        self.init_weights()

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            z, codebook = features.float(), self.embedding.weight.float()  # [B, D, h, w], [K, D]
            codes = _most_similar(z, codebook)  # [B, h, w]
            e = F.embedding(codes, codebook).permute(0, 3, 1, 2)  # [B, D, h, w]
            losses = {
                "codebook": self.config.codebook_weight * F.mse_loss(e, z.detach()),
                "commitment": self.config.commitment_weight * F.mse_loss(z, e.detach()),
            }
            if self.training:
                logits = to_rows(z) @ codebook.t()  # [N, K]
                e = _through_the_index(logits, codes, codebook)
                losses["index"] = self.config.index_weight * F.mse_loss(e, z)
                if self.config.entropy_weight:
                    entropy = entropy_loss(logits / self.config.entropy_temperature)
                    losses["entropy"] = self.config.entropy_weight * entropy
        return Quantized(e, codes, losses)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return _most_similar(features.float(), self.embedding.weight.float())

    def codes_to_features(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embedding.weight.float()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def init_weights(self) -> None:
        # N(0, 1), as in the authors' IndexPropagationQuantize; their VectorQuantizer has U(-1/K, 1/K).
        nn.init.normal_(self.embedding.weight)


def _most_similar(z: Tensor, codebook: Tensor) -> Tensor:
    rows = to_rows(z.detach())
    return nearest_codes(rows, codebook.detach(), on_sphere=True).view(z.shape[0], *z.shape[2:])  # the largest z.e


def _through_the_index(logits: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """The codes' features: the forward pass uses the one-hot choice, the gradient the softmax (arXiv:2412.02692).

    Args:
        logits: [B h w, K], z.e.
        codes: [B, h, w], the choice.
        codebook: [K, D].

    Returns:
        [B, D, h, w].
    """
    one_hot = torch.zeros_like(logits).scatter_(1, codes.view(-1, 1), 1.0)
    chosen = straight_through(logits.softmax(1), one_hot) @ codebook  # [B h w, D]
    return chosen.view(*codes.shape, -1).permute(0, 3, 1, 2)

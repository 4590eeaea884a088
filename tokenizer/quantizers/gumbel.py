"""Gumbel-softmax quantization: training draws the code at random, and the draw has a gradient.

Jang et al. 2016, https://arxiv.org/abs/1611.01144. DALL-E's tokenizer uses it, with a term towards uniform codes
(Ramesh et al. 2021, https://arxiv.org/abs/2102.12092).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_rows


@dataclass(frozen=True)
class GumbelConfig(QuantizerConfig):
    """Config of `GumbelQuantizer`.

    Args:
        codebook_size: number of codes.
        code_dim: channels of the quantized features and of the codes.
        temperature: constant temperature of the draw. A low one is near one-hot, and its gradient has a large variance.
        straight_through: give the decoder the one drawn code, with the gradient of the relaxed draw. False gives it the
            relaxed draw itself, a mixture of codes, which evaluation never uses.
        kl_weight: weight of KL(q || uniform) of each feature's distribution q over the codes. 0 leaves it out.
    """

    type: Literal["gumbel"] = "gumbel"
    codebook_size: int = 8192
    code_dim: int = 256
    temperature: float = 1.0
    straight_through: bool = True
    kl_weight: float = 5e-4

    def __post_init__(self) -> None:
        for name in ("codebook_size", "code_dim"):
            require(getattr(self, name) >= 1, f"quantizer.{name} is {getattr(self, name)}.", "Give at least 1.")
        require(self.temperature > 0, f"quantizer.temperature is {self.temperature}.", "Give a number above 0.")
        require(self.kl_weight >= 0, f"quantizer.kl_weight is {self.kl_weight}.", "Give 0 or more.")

    def build(self) -> Quantizer:
        return GumbelQuantizer(self)


class GumbelQuantizer(Quantizer):
    """`logits` maps a feature to scores of all codes; `embedding.weight` [codebook_size, code_dim] holds the codes.

    In training, torch's generator draws the codes. Evaluation and `encode` take the most probable ones.
    """

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Linear(config.code_dim, config.codebook_size)
        self.logits.no_decay = True  # one row per code: the optimizer treats it as a table
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
        self.init_weights()

    def forward(self, features: Tensor) -> Quantized:
        shape = (len(features), *features.shape[2:])  # [B, h, w]
        with torch.autocast(features.device.type, enabled=False):
            scores = self._scores(features)  # [N, K]
            losses = {}
            if self.config.kl_weight:
                losses["kl"] = self.config.kl_weight * kl_to_uniform(scores)
            if not self.training:
                codes = scores.argmax(1).view(shape)
                return Quantized(self.codes_to_features(codes), codes, losses)
            draw = F.gumbel_softmax(scores, self.config.temperature, hard=self.config.straight_through)  # [N, K]
            mixed = draw @ self.embedding.weight.float()  # [N, D]
        return Quantized(mixed.view(*shape, -1).permute(0, 3, 1, 2), draw.argmax(1).view(shape), losses)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self._scores(features).argmax(1).view(features.shape[0], *features.shape[2:])

    def codes_to_features(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embedding.weight.float()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def init_weights(self) -> None:
        self.logits.reset_parameters()
        nn.init.normal_(self.embedding.weight)

    def _scores(self, features: Tensor) -> Tensor:
        return F.linear(to_rows(features.float()), self.logits.weight.float(), self.logits.bias.float())


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Mean over the rows of KL(q || uniform) = log K - H(q), q = softmax(logits): [N, K] -> scalar >= 0."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(1).mean()

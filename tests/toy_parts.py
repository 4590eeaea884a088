"""A quantizer and a discriminator as another package would have them: they are known by the public calls alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.tokenizer.discriminators import DiscriminatorConfig
from codegrid.tokenizer.quantizers import Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class ToyQuantizerConfig(QuantizerConfig):
    """Signs of the channels, times a size that is learned."""

    has_residual_levels: ClassVar[bool] = True

    type: Literal["toy"] = "toy"
    channels: int = 4
    size: float = 1.0

    @property
    def codebook_size(self) -> int:
        return 2**self.channels

    @property
    def code_dim(self) -> int:
        return self.channels

    def build(self) -> ToyQuantizer:
        return ToyQuantizer(self, self.size)

    def residual_level(self, index: int) -> ToyQuantizer:
        return ToyQuantizer(self, self.size * 2.0**-index)


class ToyQuantizer(Quantizer):
    def __init__(self, config: ToyQuantizerConfig, size: float) -> None:
        super().__init__()
        self.config, self.start = config, size
        self.sizes = nn.Parameter(torch.full((config.channels,), size))

    def forward(self, features: Tensor) -> Quantized:
        z, codes = features.float(), self.encode(features)
        e = self.codes_to_features(codes)
        return Quantized(z + (e - z).detach() if self.training else e, codes, {"codebook": F.mse_loss(e, z.detach())})

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        places = 2 ** torch.arange(self.config.channels)
        return ((features > 0) * places.view(-1, 1, 1)).sum(1)

    def codes_to_features(self, codes: Tensor) -> Tensor:
        bits = codes[:, None] >> torch.arange(self.config.channels).view(-1, 1, 1) & 1
        return (2.0 * bits - 1) * self.sizes.float().view(-1, 1, 1)

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.constant_(self.sizes, self.start)


@dataclass(frozen=True)
class ToyDiscriminatorConfig(DiscriminatorConfig):
    """One convolution."""

    type: Literal["toy"] = "toy"
    side: int = 4

    def build(self, in_channels: int, num_classes: int = 0) -> nn.Module:
        return ToyDiscriminator(self, in_channels)


class ToyDiscriminator(nn.Module):
    judges_alone = True

    def __init__(self, config: ToyDiscriminatorConfig, in_channels: int) -> None:
        super().__init__()
        self.config = config
        self.verdict = nn.Conv2d(in_channels, 1, config.side, stride=config.side)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.verdict(images)

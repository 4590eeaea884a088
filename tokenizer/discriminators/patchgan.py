"""PatchGAN: one logit for each patch of the image (Isola et al. 2017, https://arxiv.org/abs/1611.07004)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.discriminators.base import DiscriminatorConfig
from codegrid.tokenizer.discriminators.projection import Projection, check_labels
from codegrid.tokenizer.layers import GroupNorm, lay_out, not_hidden


@dataclass(frozen=True)
class PatchGANConfig(DiscriminatorConfig):
    """Config of `PatchGAN`; names as in taming-transformers.

    Args:
        ndf: channels after the first convolution.
        n_layers: number of stride-2 convolutions; each doubles the receptive field of a logit.
        norm: "group" judges every image by itself. "batch" is the published norm; its logits depend on the other images
            of the batch.
        conditional: each patch's logit also depends on the image's class (see `Projection`).
    """

    type: Literal["patchgan"] = "patchgan"
    ndf: int = 64
    n_layers: int = 3
    norm: Literal["group", "batch", "none"] = "group"
    conditional: bool = False

    def __post_init__(self) -> None:
        require(
            self.ndf >= 1 and self.n_layers >= 1,
            f"discriminator.ndf is {self.ndf} and discriminator.n_layers {self.n_layers}.",
            "Give at least 1 for each.",
        )

    def build(self, in_channels: int, num_classes: int = 0) -> nn.Module:
        return PatchGAN(self, in_channels, num_classes)


class PatchGAN(nn.Module):
    """Images [B, C, H, W] in [-1, 1] -> logits [B, 1, H', W'], one per patch; a large logit means real.

    If class-conditional, it takes labels int64 [B] besides the images.
    """

    def __init__(self, config: PatchGANConfig, in_channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.judges_alone = config.norm != "batch"
        widths = [config.ndf * min(2**index, 8) for index in range(config.n_layers + 1)]
        first = not_hidden(nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1))
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for index, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if index < config.n_layers else 1
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=config.norm == "none"),
                _norm(config.norm, after),
                nn.LeakyReLU(0.2),
            ]
        layers.append(not_hidden(nn.Conv2d(widths[-1], 1, 4, padding=1)))
        self.main = nn.Sequential(*layers)
        if config.conditional:
            self.projection = Projection(num_classes, widths[-1])
        self.apply(_init)
        lay_out(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(self.config.conditional, labels, len(images))
        features = self.main[:-1](images.contiguous(memory_format=self.memory_format))
        logits = self.main[-1](features)
        if self.config.conditional:
            # The mean over the 4x4 window of the last convolution, which computes the logit.
            logits = logits + self.projection(F.avg_pool2d(features, 4, stride=1, padding=1), labels)
        return logits


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        # A discriminator never runs in evaluation mode, so nothing would read running statistics.
        return nn.BatchNorm2d(channels, track_running_stats=False)
    return GroupNorm(min(32, channels), channels) if name == "group" else nn.Identity()


def _init(module: nn.Module) -> None:
    """pix2pix's initialisation: N(0, 0.02) for convolutions, N(1, 0.02) for norms."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)

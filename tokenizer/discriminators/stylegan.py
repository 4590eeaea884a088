"""StyleGAN2's discriminator: residual blocks, one logit per image (Karras 2020, https://arxiv.org/abs/1912.04958)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.discriminators.base import DiscriminatorConfig
from codegrid.tokenizer.discriminators.projection import Projection, check_labels
from codegrid.tokenizer.layers import lay_out, not_hidden


@dataclass(frozen=True)
class StyleGANConfig(DiscriminatorConfig):
    """Config of `StyleGANDiscriminator`.

    The published learning-rate equalisation is left out: AdamW's steps do not depend on the gradients' scale, and the
    weights have He's initialisation.

    Args:
        channels: channels at full resolution.
        max_channels: upper bound of the channels, which double with each halving of the side.
        num_blocks: number of halvings of the side.
        stddev_group: most images that minibatch-stddev compares; 1 judges every image by itself.
        conditional: the logit also depends on the image's class (see `Projection`).
    """

    type: Literal["stylegan"] = "stylegan"
    channels: int = 32
    max_channels: int = 256
    num_blocks: int = 4
    stddev_group: int = 4
    conditional: bool = False

    def __post_init__(self) -> None:
        for name in ("channels", "max_channels", "num_blocks", "stddev_group"):
            require(getattr(self, name) >= 1, f"discriminator.{name} is {getattr(self, name)}.", "Give at least 1.")

    def build(self, in_channels: int, num_classes: int = 0) -> nn.Module:
        return StyleGANDiscriminator(self, in_channels, num_classes)


class StyleGANDiscriminator(nn.Module):
    """Images [B, C, H, W] in [-1, 1] -> logits [B, 1, 1, 1]; a large one means real. H and W: at least 2^num_blocks.

    If class-conditional, it takes labels int64 [B] besides the images.
    """

    def __init__(self, config: StyleGANConfig, in_channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.judges_alone = config.stddev_group == 1
        widths = [min(config.channels * 2**index, config.max_channels) for index in range(config.num_blocks + 1)]
        self.stem = not_hidden(nn.Conv2d(in_channels, widths[0], 1))
        self.blocks = nn.Sequential(*(_Block(before, after) for before, after in itertools.pairwise(widths)))
        self.final = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden = nn.Conv2d(widths[-1], widths[-1], 1)
        self.verdict = not_hidden(nn.Conv2d(widths[-1], 1, 1))
        if config.conditional:
            self.projection = Projection(num_classes, widths[-1])
        self.apply(_init)
        lay_out(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(self.config.conditional, labels, len(images))
        features = F.leaky_relu(self.stem(images.contiguous(memory_format=self.memory_format)), 0.2)
        features = self.blocks(features)  # [B, D, h, w]
        deviation = minibatch_stddev(features, self.config.stddev_group)  # [B, 1, h, w]
        features = F.leaky_relu(self.final(torch.cat([features, deviation], dim=1)), 0.2)
        # The published net flattens [D, 4, 4] here; the mean works for any image size.
        features = features.mean((2, 3), keepdim=True)  # [B, D, 1, 1]
        features = F.leaky_relu(self.hidden(features), 0.2)
        logits = self.verdict(features)
        return logits + self.projection(features, labels) if self.config.conditional else logits


class _Block(nn.Module):
    """Two convolutions and a shortcut; both blur before they drop every second row and column."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, D', h // 2, w // 2]."""
        body = F.leaky_relu(self.conv1(features), 0.2)
        body = F.leaky_relu(self.conv2(blur_down(body)), 0.2)
        return (body + self.shortcut(blur_down(features))) / math.sqrt(2)  # keeps the variance


def blur_down(features: Tensor) -> Tensor:
    """Low-pass by [1, 3, 3, 1] / 8 along both sides, edges repeated, then every second place: [B, D, h // 2, w // 2].

    The kernel is three boxes of two, one of them with the stride. So there is no buffer that ranks would exchange.
    """
    features = F.pad(features, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(features, 2, stride=1), 2, stride=1), 2, stride=2, ceil_mode=True)


def minibatch_stddev(features: Tensor, group: int) -> Tensor:
    """How much the images of a group differ (Karras 2018, https://arxiv.org/abs/1710.10196, section 3): [B, 1, h, w].

    A group is a run of consecutive images; its size is the largest number up to `group` that divides the batch. The
    deviation over the group is averaged over channels and places, and repeated at each place.
    """
    batch, _, height, width = features.shape
    size = max(number for number in range(1, min(group, batch) + 1) if batch % number == 0)
    grouped = features.float().unflatten(0, (-1, size))  # [B / G, G, D, h, w]
    deviation = (grouped.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # [B / G]
    return deviation.repeat_interleave(size).to(features.dtype).view(batch, 1, 1, 1).expand(-1, 1, height, width)


def _init(module: nn.Module) -> None:
    """He's initialisation (https://arxiv.org/abs/1502.01852) for the leaky slope."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

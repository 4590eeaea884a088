"""Encoder and decoder of the VQGAN: images [B, C, H, W] <-> feature maps [B, z_channels, h, w].

The layout and the parameter names are those of taming-transformers (arXiv:2012.09841), so that its weights load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.tokenizer.configuration import BackboneConfig
from codegrid.tokenizer.layers import (
    AdaptiveGroupNorm,
    Downsample,
    Level,
    MidBlock,
    Upsample,
    group_norm,
    normalize,
    not_hidden,
    swish,
)


def _attention_at(config: BackboneConfig, level: int) -> bool:
    return config.resolution // config.patch_size // 2**level in config.attn_resolutions


def _mid(config: BackboneConfig, width: int, condition_dim: int = 0) -> MidBlock:
    attention, blocks = config.mid_attention, config.mid_res_blocks
    return MidBlock(width, config.norm_groups, config.dropout, attention, condition_dim, blocks, config.block)


def _level(config: BackboneConfig, index: int, channels: list[int], condition_dim: int = 0) -> Level:
    attention = _attention_at(config, index)
    return Level(channels, config.norm_groups, config.dropout, attention, condition_dim, config.shortcut, config.block)


class Encoder(nn.Module):
    """Images [B, in_channels, H, W] -> features [B, z_channels, H/f, W/f], f = `config.downsampling`."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        widths = [config.ch * multiplier for multiplier in config.ch_mult]
        before = [config.ch, *widths]  # the width that each level receives
        if config.downsample == "wide":
            before = [config.ch, *widths[1:]]
        self.patch_size = config.patch_size
        self.pixel_range = config.pixel_range
        self.conv_in = not_hidden(nn.Conv2d(config.in_channels * config.patch_size**2, config.ch, 3, padding=1))
        self.down = nn.ModuleList()
        for index, width in enumerate(widths):
            channels = [before[index]] + [width] * config.num_res_blocks
            level = _level(config, index, channels)
            if index < len(widths) - 1:
                level.downsample = Downsample(width, config.downsample, widths[index + 1])
            self.down.append(level)
        self.mid = _mid(config, widths[-1])
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        kernel = config.encoder_out_kernel
        self.conv_out = not_hidden(nn.Conv2d(widths[-1], config.z_channels, kernel, padding=kernel // 2))

    def forward(self, images: Tensor) -> Tensor:
        if self.pixel_range != (-1.0, 1.0):
            black, white = self.pixel_range
            images = (images + 1) / 2 * (white - black) + black
        h = self.conv_in(F.pixel_unshuffle(images, self.patch_size))
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        return self.conv_out(swish(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] -> images [B, in_channels, h*f, w*f]. `up` is indexed by level, as in taming.

    With a `condition_dim`, vectors [B, condition_dim] change scale and shift of the norms in residual blocks and at the
    end.
    """

    def __init__(self, config: BackboneConfig, condition_dim: int = 0) -> None:
        super().__init__()
        widths = [config.ch * multiplier for multiplier in config.ch_mult]
        self.patch_size = config.patch_size
        self.pixel_range = config.pixel_range
        self.conv_in = not_hidden(nn.Conv2d(config.z_channels, widths[-1], 3, padding=1))
        self.mid = _mid(config, widths[-1], condition_dim)
        after = [*widths[1:], widths[-1]]  # the width that each level receives from the level below it
        if config.upsample == "linear":
            after = widths
        blocks = config.decoder_res_blocks or config.num_res_blocks + 1
        self.up = nn.ModuleList()
        self.adaptive = nn.ModuleList()
        for index, width in enumerate(widths):
            channels = [after[index]] + [width] * blocks
            level = _level(config, index, channels, condition_dim)
            if index > 0:
                level.upsample = Upsample(width, config.upsample, widths[index - 1])
            self.up.append(level)
            if config.adaptive_norm:
                self.adaptive.append(AdaptiveGroupNorm(config.z_channels, after[index], config.norm_groups))
        self.norm_out = group_norm(widths[0], config.norm_groups, condition_dim)
        self.conv_out = not_hidden(nn.Conv2d(widths[0], config.in_channels * config.patch_size**2, 3, padding=1))

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.mid(self.conv_in(features), condition)
        for index in reversed(range(len(self.up))):
            level = self.up[index]
            h = level(self.adaptive[index](h, features) if self.adaptive else h, condition)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        h = self.conv_out(swish(normalize(self.norm_out, h, condition)))
        images = F.pixel_shuffle(h, self.patch_size)
        if self.pixel_range != (-1.0, 1.0):
            black, white = self.pixel_range
            images = (images - black) / (white - black) * 2 - 1
        return images

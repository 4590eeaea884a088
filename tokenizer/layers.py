"""The blocks of the backbone, with the numerics and parameter names of taming-transformers (arXiv:2012.09841)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


def not_hidden(layer: nn.Conv2d) -> nn.Conv2d:
    """Mark the layer as a net's first or last, which AdamW trains instead of Muon."""
    layer.not_hidden = True
    return layer


def group_norm(channels: int, groups: int, condition_dim: int = 0) -> GroupNorm:
    if condition_dim:
        return ConditionalGroupNorm(channels, groups, condition_dim)
    return GroupNorm(groups, channels, eps=1e-6)


class GroupNorm(nn.GroupNorm):
    """torch's, in the precision that is fast where a gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_slow(x):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def _is_slow(x: Tensor) -> bool:
    """Whether a norm of x computes in float32, as autocast has it on GPUs: a gradient is asked for on a CPU.

    torch's gradient of a bfloat16 map that lies channels-last takes two to five times as long (docs/experiments.md).
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled()


class ConditionalGroupNorm(GroupNorm):
    """(1 + scale) * norm(x) + shift, both linear in the class's vector [B, E]; it starts as the plain norm.

    The adaptive group norm of Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233.
    """

    def __init__(self, channels: int, groups: int, condition_dim: int) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.modulation = nn.Parameter(torch.zeros(2 * channels, condition_dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = F.linear(condition, self.modulation)[:, :, None, None].chunk(2, dim=1)  # each [B, C, 1, 1]
        return super().forward(x) * (1 + scale) + shift


def normalize(norm: nn.GroupNorm, x: Tensor, condition: Tensor | None) -> Tensor:
    return norm(x, condition) if isinstance(norm, ConditionalGroupNorm) else norm(x)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x), in place if no gradient needs x: on a CPU a new map costs more than the function."""
    return F.silu(x, inplace=not x.requires_grad)


def add_to(h: Tensor, x: Tensor) -> Tensor:
    """h + x, written into h, which must be a convolution's output: no gradient needs it."""
    return h.add_(x) if h.dtype == x.dtype else h + x  # under autocast x may have the wider dtype


class ResnetBlock(GradientCheckpointingLayer):
    """norm, swish, 3x3 convolution, twice, around a shortcut: [B, in, H, W] -> [B, out, H, W].

    With a `condition_dim`, the block also takes the class's vectors [B, condition_dim]. `shortcut` is "input" or
    "output", as in `BackboneConfig`; it matters only if the width changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        dropout: float,
        condition_dim: int = 0,
        shortcut: str = "input",
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.norm1 = group_norm(in_channels, groups, condition_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups, condition_dim)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels if shortcut == "input" else out_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.conv1(swish(normalize(self.norm1, x, condition)))
        h = self.conv2(self.dropout(swish(normalize(self.norm2, h, condition))))
        if not hasattr(self, "nin_shortcut"):
            return add_to(h, x)
        if self.shortcut == "input":
            return add_to(h, self.nin_shortcut(x))
        return add_to(self.nin_shortcut(h), h)


class FusedBlock(GradientCheckpointingLayer):
    """norm, 3x3 convolution to `expansion` times the width, swish, 1x1 convolution, around a shortcut.

    [B, in, H, W] -> [B, out, H, W]; the fused MBConv of EfficientNetV2 (https://arxiv.org/abs/2104.00298) without
    squeeze and excitation. Half as many norms and swishes for as many operations as a `ResnetBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        dropout: float,
        condition_dim: int = 0,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.norm = group_norm(in_channels, groups, condition_dim)
        self.conv1 = nn.Conv2d(in_channels, expansion * out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(expansion * out_channels, out_channels, 1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.conv2(self.dropout(swish(self.conv1(normalize(self.norm, x, condition)))))
        return add_to(h, self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


def make_block(
    kind: str,
    in_channels: int,
    out_channels: int,
    groups: int,
    dropout: float,
    condition_dim: int = 0,
    shortcut: str = "input",
) -> ResnetBlock | FusedBlock:
    """The block of `BackboneConfig.block`."""
    if kind == "fused":
        return FusedBlock(in_channels, out_channels, groups, dropout, condition_dim)
    return ResnetBlock(in_channels, out_channels, groups, dropout, condition_dim, shortcut)


class AttnBlock(GradientCheckpointingLayer):
    """Single-head self-attention over all positions, with 1x1 convolutions: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # each [B, H*W, C]
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # scale C^-1/2, as in taming
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))  # in the layout of x


class AdaptiveGroupNorm(nn.Module):
    """Group norm of x [B, C, H, W], scaled and shifted by the spread and mean of `style` [B, Z, h, w] over positions.

    In Open-MAGVIT2's decoder (https://arxiv.org/abs/2409.04410) the style is its own input. One position has no spread.
    """

    def __init__(self, style_channels: int, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        rows = style.flatten(2)  # [B, Z, h*w]
        scale = self.gamma((rows.var(2) + 1e-6).sqrt())[..., None, None]  # [B, C, 1, 1]
        normed = F.group_norm(x.float() if _is_slow(x) else x, self.groups, eps=1e-6).to(x.dtype)
        return scale * normed + self.beta(rows.mean(2))[..., None, None]


class Downsample(nn.Module):
    """Stride-2 convolution or mean, by `BackboneConfig.downsample`: [B, C, H, W] -> [B, C, H/2, W/2].

    "wide" gives the width of the next level, `after`.
    """

    def __init__(self, channels: int, kind: str = "asymmetric", after: int = 0) -> None:
        super().__init__()
        self.kind = kind
        if kind == "wide":
            self.conv = nn.Conv2d(channels, after, 4, stride=2, padding=1)
        elif kind != "average":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if kind == "symmetric" else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "average":
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.kind == "asymmetric" else x)


class Upsample(nn.Module):
    """Doubles the sides by `BackboneConfig.upsample`: [B, C, H, W] -> [B, C, 2H, 2W].

    "linear" gives the width of the next level, `after`.
    """

    def __init__(self, channels: int, kind: str = "nearest", after: int = 0) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.conv = nn.Conv2d(channels, 4 * after, 1)
        else:
            self.conv = nn.Conv2d(channels, channels if kind == "nearest" else 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "nearest":
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.conv(x), 2)


class MidBlock(nn.Module):
    """The bottleneck of encoder and decoder: residual block, self-attention, more residual blocks, all of one width."""

    def __init__(
        self,
        channels: int,
        groups: int,
        dropout: float,
        attention: bool,
        condition_dim: int = 0,
        blocks: int = 2,
        kind: str = "residual",
    ) -> None:
        super().__init__()
        for index in range(1, blocks + 1):
            block = make_block(kind, channels, channels, groups, dropout, condition_dim)
            self.add_module(f"block_{index}", block)
            if index == 1:
                self.attn_1 = AttnBlock(channels, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for name, part in self.named_children():
            x = part(x) if name == "attn_1" else part(x, condition)
        return x


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by self-attention if the config has it there."""

    def __init__(
        self,
        channels: list[int],
        groups: int,
        dropout: float,
        attention: bool,
        condition_dim: int = 0,
        shortcut: str = "input",
        kind: str = "residual",
    ) -> None:
        """`channels` are the widths: of the input, then of each block's output."""
        super().__init__()
        self.block = nn.ModuleList(
            make_block(kind, before, after, groups, dropout, condition_dim, shortcut)
            for before, after in itertools.pairwise(channels)
        )
        self.attn = nn.ModuleList(AttnBlock(after, groups) for after in channels[1:] if attention)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x, condition)
            if self.attn:
                x = self.attn[index](x)
        return x


def lay_out(module: nn.Module, channels_last: bool = True) -> nn.Module:
    """Set the memory format of the convolutions' weights, and of the module's images (`module.memory_format`).

    The fast kernels need channels-last. Results are the same except for rounding (docs/architecture.md).
    """
    module.memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module.to(memory_format=module.memory_format)
    if not channels_last:
        # `to` keeps the strides of 1x1 convolutions, which would spread channels-last.
        for weight in module.parameters():
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    return module

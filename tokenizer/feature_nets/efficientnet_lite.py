"""EfficientNet-Lite0, which torchvision lacks: MobileNetV2's blocks at EfficientNet-B0's widths, with ReLU6 and without
squeeze-and-excitation (Tan & Le 2019, https://arxiv.org/abs/1905.11946, for the widths; Lite is TensorFlow's variant).

Module names are those of the package efficientnet-lite-pytorch, without the leading underscores.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# A stage: blocks, stride of the first, factor of the inner width, side of the depthwise kernel, width.
_STAGES = (
    (1, 1, 1, 3, 16),
    (2, 2, 6, 3, 24),
    (2, 2, 6, 5, 40),
    (3, 2, 6, 3, 80),
    (3, 1, 6, 5, 112),
    (4, 2, 6, 5, 192),
    (1, 1, 6, 3, 320),
)
_STEM, _HEAD = 32, 1280


class _Convolution(nn.Conv2d):
    """No bias. With stride 2 it pads as TensorFlow's "same" does on even sides: one place more right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, 0 if stride == 2 else kernel // 2, groups=groups, bias=False)
        before = (kernel - 2) // 2
        self.margins = (before, kernel - 2 - before) * 2 if stride == 2 else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Widen, filter each channel, narrow: [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        self.expands, self.is_residual = factor > 1, stride == 1 and inputs == outputs
        if self.expands:
            self.expand_conv, self.bn0 = _Convolution(inputs, inner, 1), _norm(inner)
        self.depthwise_conv, self.bn1 = _Convolution(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self.project_conv, self.bn2 = _Convolution(inner, outputs, 1), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        h = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(h)))))
        return x + h if self.is_residual else h


class EfficientNetLite0(nn.Module):
    """RGB [B, 3, H, W], (value in 0 to 255 - 127) / 128, sides multiples of 32 -> logits [B, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _Convolution(3, _STEM, 3, 2), _norm(_STEM)
        self.blocks, width = nn.ModuleList(), _STEM
        for blocks, stride, factor, kernel, outputs in _STAGES:
            for index in range(blocks):
                self.blocks.append(_Block(width, outputs, kernel, stride if index == 0 else 1, factor))
                width = outputs
        self.conv_head, self.bn1 = _Convolution(width, _HEAD, 1), _norm(_HEAD)
        self.fc = nn.Linear(_HEAD, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pooled(x))

    def pooled(self, x: Tensor) -> Tensor:
        """The features before the classifier: [B, 1280]."""
        x = F.relu6(self.bn0(self.conv_stem(x)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.bn1(self.conv_head(x))).mean((2, 3))

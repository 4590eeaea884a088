"""`VQModel.encode` and `VQModel.decode` as programs of `torch.export`, for any number and size of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from codegrid.tokenizer.modeling import VQModel

# Sizes of the traced example: above 1, and all different, so that none is taken for a constant or for another.
_BATCH, _ROWS, _COLUMNS = 2, 3, 5


class _Encode(nn.Module):
    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


class _Decode(_Encode):
    def forward(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)


class _DecodeClasses(_Encode):
    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        return self.model.decode(codes, labels)


def export_encode(model: VQModel) -> ExportedProgram:
    """`VQModel.encode`: images float32 [B, C, H, W] in [-1, 1] -> codes [B, h, w] or [B, h, w, depth] int64.

    B is any number, H and W are any multiples of `config.pixels_per_position`. The program looks at no values: what
    `encode` refuses of them (NaN, pixels from 0 to 255), it takes.
    """
    factor, channels = model.config.pixels_per_position, model.config.backbone_config.in_channels
    images = torch.zeros(_BATCH, channels, _ROWS * factor, _COLUMNS * factor, device=model.device)
    return _program(_Encode(model), images=(images, {0: Dim("batch"), 2: factor * Dim("h"), 3: factor * Dim("w")}))


def export_decode(model: VQModel) -> ExportedProgram:
    """`VQModel.decode`: codes [B, h, w] or [B, h, w, depth] int64 -> images float32 [B, C, H, W], not clamped.

    A class-conditional decoder also takes `labels` [B] int64. B, h and w are any numbers. The program looks at no
    values: codes and labels have to lie in their ranges.
    """
    depth, batch = model.config.quantizer_config.depth, Dim("batch")
    codes = torch.zeros(_BATCH, _ROWS, _COLUMNS, *[depth] * (depth > 1), dtype=torch.int64, device=model.device)
    given = codes, {0: batch, 1: Dim("h"), 2: Dim("w")}
    if not model.config.num_classes:
        return _program(_Decode(model), codes=given)
    return _program(_DecodeClasses(model), codes=given, labels=(codes.new_zeros(_BATCH), {0: batch}))


def _program(half: nn.Module, **inputs: tuple[Tensor, dict[int, Any]]) -> ExportedProgram:
    examples = tuple(example for example, _ in inputs.values())
    with torch.no_grad():
        return torch.export.export(
            half.eval(), examples, dynamic_shapes={name: sizes for name, (_, sizes) in inputs.items()}
        )

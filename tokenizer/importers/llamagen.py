"""LlamaGen's VQ-16 and VQ-8 (Sun et al. 2024, https://arxiv.org/abs/2406.06525)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from codegrid.tokenizer.importers.layout import Converted, TokenizerFamily, Weights, backbone_of, drop, rename, shape_of
from codegrid.tokenizer.quantizers import VectorQuantizerConfig

_RULES = (
    (r"\.conv_blocks\.(\d+)\.res\.", r".conv_blocks.\1.block."),
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)


def convert(weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None) -> Converted:
    weights = rename(drop(weights, r"quantize\.codebook_used$"), _RULES)
    last = max((int(number) for key in weights for number in re.findall(r"^encoder\.down\.(\d+)\.", key)), default=0)
    # The decoder's levels are listed in the order of execution, from the lowest resolution up.
    weights = {
        re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda found: f"decoder.up.{last - int(found[1])}.", key): value
        for key, value in weights.items()
    }
    size, dim = shape_of(weights, "quantize.embedding.weight")
    return Converted(
        backbone_of(weights, pixel_range=pixel_range or (-1.0, 1.0)),
        VectorQuantizerConfig(codebook_size=size, code_dim=dim, l2_normalize=True, revive_below=0.0),
        weights,
    )


FAMILY = TokenizerFamily(
    title="LlamaGen's VQ-16 or VQ-8",
    signs=(r"encoder\.conv_blocks\.0\.res\.0\.", r"decoder\.conv_blocks\.0\.res\.0\.", r"quantize\.embedding\.weight"),
    classes=(),
    convert=convert,
    example="--checkpoint vq_ds16_c2i.pt",
    peer="FoundationVision/LlamaGen",
    averages=True,  # its reconstruction takes "ema" before "model"
)

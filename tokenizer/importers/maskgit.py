"""MaskGIT's VQGAN (Chang et al. 2022, https://arxiv.org/abs/2202.04200) in the files of open-muse, TiTok and RAR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegrid.tokenizer.importers.layout import (
    Converted,
    TokenizerFamily,
    Weights,
    backbone_of,
    plain_codebook,
    rename,
    shape_of,
    with_zero_biases,
)

_RULES = (
    (r"\.mid\.(\d+)\.", lambda found: f".mid.block_{int(found[1]) + 1}."),
    (r"\.upsample_conv\.", ".upsample.conv."),
)


def convert(weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None) -> Converted:
    weights = with_zero_biases(
        rename(weights, _RULES), r"\.conv[12]\.weight$", r"\.nin_shortcut\.weight$", r"^encoder\.conv_in\.weight$"
    )
    backbone = backbone_of(
        weights,
        resolution=settings.get("resolution", 256),
        downsample="average",
        shortcut="output",
        pixel_range=pixel_range or (0.0, 1.0),
    )
    size, dim = shape_of(weights, "quantize.embedding.weight")
    return Converted(backbone, plain_codebook(size, dim), weights)


FAMILY = TokenizerFamily(
    title="MaskGIT's VQGAN (open-muse, TiTok, RAR)",
    signs=(r"encoder\.down\.0\.block\.", r"encoder\.mid\.0\.conv1\.", r"quantize\.embedding\.weight"),
    classes=("MaskGitVQGAN",),
    convert=convert,
    example="--checkpoint maskgit-vqgan-imagenet-f16-256.bin",
    peer="bytedance/1d-tokenizer",
)

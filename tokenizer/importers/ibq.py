"""SEED-Voken's IBQ (Shi et al. 2024, https://arxiv.org/abs/2412.02692): taming's network; codes by the largest z.e."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegrid.tokenizer.importers import taming
from codegrid.tokenizer.importers.layout import Converted, TokenizerFamily, Weights, check_settings, shape_of
from codegrid.tokenizer.quantizers.index_backpropagation import IBQConfig


def convert(weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None) -> Converted:
    weights = taming.own_part(weights)
    backbone = taming.backbone_by(weights, settings, pixel_range)
    size, dim = shape_of(weights, "quantize.embedding.weight")
    check_settings(settings, {"n_embed": size, "embed_dim": dim})
    return Converted(backbone, IBQConfig(codebook_size=size, code_dim=dim), weights)


FAMILY = TokenizerFamily(
    title="SEED-Voken's IBQ tokenizer",
    signs=taming.FAMILY.signs,
    classes=("IBQ",),
    convert=convert,
    example="--checkpoint imagenet256_16384.ckpt",
    peer="TencentARC/SEED-Voken",
    averages=True,  # its evaluation runs in `ema_scope` where the settings say use_ema
)

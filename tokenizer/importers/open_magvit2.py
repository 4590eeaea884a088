"""Open-MAGVIT2's image tokenizer (Luo et al. 2024, https://arxiv.org/abs/2409.04410)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from codegrid.tokenizer.importers import taming
from codegrid.tokenizer.importers.layout import (
    Converted,
    TokenizerFamily,
    Weights,
    check_settings,
    rename,
    with_zero_biases,
)
from codegrid.tokenizer.quantizers import LookupFreeQuantizerConfig

_RULES = (
    (r"\.mid_block\.(\d+)\.", lambda found: f".mid.block_{int(found[1]) + 1}."),
    (r"\.downsample\.(weight|bias)$", r".downsample.conv.\1"),
    (r"\.upsample\.conv1\.", ".upsample.conv."),
)


def convert(weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None) -> Converted:
    weights = taming.own_part(weights)
    weights = with_zero_biases(
        rename(weights, _RULES), r"\.conv[12]\.weight$", r"\.nin_shortcut\.weight$", r"^encoder\.conv_in\.weight$"
    )
    for key in [key for key in weights if ".upsample.conv." in key]:
        weights[key] = _channels_first(weights[key])
    backbone = taming.backbone_by(
        weights, settings, pixel_range, downsample="symmetric", upsample="depth_to_space", adaptive_norm=True
    )
    bits = backbone.z_channels
    check_settings(settings, {"n_embed": 2**bits, "embed_dim": bits})
    return Converted(backbone, LookupFreeQuantizerConfig(num_bits=bits), weights)


def _channels_first(tensor: Tensor) -> Tensor:
    """[4 C, ...] in the order (pixel, channel) -> in the order (channel, pixel) of torch's `pixel_shuffle`."""
    return tensor.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1).contiguous()


FAMILY = TokenizerFamily(
    title="Open-MAGVIT2's tokenizer",
    signs=(r"encoder\.mid_block\.0\.", r"decoder\.adaptive\.0\.gamma\.", r"decoder\.up\.\d+\.upsample\.conv1\."),
    classes=("Open_MAGVIT2", "lfqgan"),
    convert=convert,
    example="--checkpoint imagenet_256_L.ckpt",
    peer="TencentARC/SEED-Voken",
    averages=True,  # its evaluation runs in `ema_scope` where the settings say use_ema
)

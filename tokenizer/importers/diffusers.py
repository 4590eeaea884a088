"""diffusers' VQModel, import and export: its Hub repositories hold the tokenizers of LDM and aMUSEd."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from codegrid.errors import require
from codegrid.tokenizer.configuration import BackboneConfig, VQModelConfig
from codegrid.tokenizer.importers.layout import (
    Converted,
    TokenizerFamily,
    Weights,
    backbone_of,
    check_settings,
    plain_codebook,
    shape_of,
)
from codegrid.tokenizer.importers.reading import ForeignCheckpointError
from codegrid.tokenizer.quantizers import VectorQuantizerConfig

# (theirs, ours) within a level or the bottleneck: the first matches the names, the second replaces them.
_PARTS = (
    (r"resnets", "block"),
    (r"attentions", "attn"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"downsamplers\.0", "downsample"),
    (r"upsamplers\.0", "upsample"),
    (r"conv_norm_out", "norm_out"),
)
_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))
# Names in files from before diffusers 0.17.
_OLD_ATTENTION = (("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "proj_out"))


def convert(weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None) -> Converted:
    if settings.get("norm_type", "group") != "group" or any(".norm1.conv_y." in key for key in weights):
        raise ForeignCheckpointError(
            "This is a MoVQ (Kandinsky's): its decoder's norms are modulated at each position (norm_type "
            "'spatial'), which is another architecture than a VQGAN's.",
            "It cannot be imported: take a VQModel whose norm_type is 'group'.",
        )
    ours = {_our_name(key): _our_shape(key, value) for key, value in weights.items()}
    last = max((int(number) for key in ours for number in re.findall(r"^encoder\.down\.(\d+)\.", key)), default=0)
    weights = {
        re.sub(r"^decoder\.up_blocks\.(\d+)\.", lambda found: f"decoder.up.{last - int(found[1])}.", key): value
        for key, value in ours.items()
    }
    muse = "encoder.mid.attn_1.q.weight" not in weights  # aMUSEd's tokenizer has none, and reads pixels in [0, 1]
    backbone = backbone_of(
        weights,
        resolution=settings.get("sample_size", 256),
        norm_groups=settings.get("norm_num_groups", 32),
        pixel_range=pixel_range or ((0.0, 1.0) if muse else (-1.0, 1.0)),
    )
    size, dim = shape_of(weights, "quantize.embedding.weight")
    told = {"latent_channels": backbone.z_channels, "num_vq_embeddings": size, "in_channels": backbone.in_channels}
    told["block_out_channels"] = tuple(backbone.ch * multiplier for multiplier in backbone.ch_mult)
    told["layers_per_block"] = backbone.num_res_blocks
    check_settings(settings, told)
    return Converted(backbone, plain_codebook(size, dim), weights)


def _our_name(key: str) -> str:
    for theirs, ours in _PARTS:
        key = re.sub(rf"\.{theirs}\.", f".{ours}.", key)
    for theirs, ours in (*_ATTENTION, *_OLD_ATTENTION):
        key = re.sub(rf"(\.attn\.\d+)\.{re.escape(theirs)}\.", rf"\1.{ours}.", key)
    key = re.sub(r"\.down_blocks\.", ".down.", key)
    return re.sub(r"\.mid_block\.(block|attn)\.(\d+)\.", lambda n: f".mid.{n[1]}_{int(n[2]) + 1}.", key)


def _our_shape(key: str, value: Tensor) -> Tensor:
    """Turn attention's linear layers [C, C] into 1x1 convolutions."""
    linear = ".attentions." in key and key.endswith(".weight") and value.dim() == 2
    return value[:, :, None, None] if linear else value


def to_diffusers(config: VQModelConfig, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], Weights]:
    """Convert a tokenizer into diffusers' VQModel: its config.json and its state dict.

    Raises:
        CodegridError: diffusers' VQModel cannot represent this tokenizer. The message names the field.
    """
    backbone, quantizer = config.backbone_config, config.quantizer_config
    _check_exportable(backbone, quantizer)
    levels = len(backbone.ch_mult)
    attention = [backbone.resolution // 2**index in backbone.attn_resolutions for index in range(levels)]
    settings = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [backbone.ch * multiplier for multiplier in backbone.ch_mult],
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attention],
        "in_channels": backbone.in_channels,
        "latent_channels": backbone.z_channels,
        "layers_per_block": backbone.num_res_blocks,
        "mid_block_add_attention": backbone.mid_attention,
        "norm_num_groups": backbone.norm_groups,
        "norm_type": "group",
        "num_vq_embeddings": quantizer.codebook_size,
        "out_channels": backbone.in_channels,
        "sample_size": backbone.resolution,
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attention)],
        "vq_embed_dim": quantizer.code_dim,
    }
    training_only = {f"quantize.{name}" for name in ("usage", "cluster_size", "cluster_sum")}
    theirs = {}
    for key, value in weights.items():
        if key not in training_only:
            linear = re.search(r"\.attn(\.\d+|_1)\.(q|k|v|proj_out)\.weight$", key)
            theirs[_their_name(key, levels - 1)] = (value.flatten(1) if linear else value).contiguous()
    return settings, theirs


def _their_name(key: str, last: int) -> str:
    for theirs, ours in _ATTENTION:
        key = re.sub(rf"(\.attn(?:\.\d+|_1))\.{ours}\.", rf"\1.{theirs}.", key)
    key = re.sub(r"\.mid\.(block|attn)_(\d+)\.", lambda n: f".mid_block.{n[1]}.{int(n[2]) - 1}.", key)
    for theirs, ours in _PARTS:
        key = re.sub(rf"\.{ours}\.", f".{theirs.replace(chr(92), '')}.", key)
    key = re.sub(r"^encoder\.down\.", "encoder.down_blocks.", key)
    return re.sub(r"^decoder\.up\.(\d+)\.", lambda n: f"decoder.up_blocks.{last - int(n[1])}.", key)


def _check_exportable(backbone: BackboneConfig, quantizer: Any) -> None:
    require(
        isinstance(quantizer, VectorQuantizerConfig) and not quantizer.l2_normalize,
        f"quantizer.type {quantizer.type!r}{' with l2_normalize' if getattr(quantizer, 'l2_normalize', False) else ''} "
        "cannot be exported to diffusers' VQModel, which looks up the nearest code of a plain codebook.",
        "Export a tokenizer with the quantizer vq and without l2_normalize.",
    )
    plain = BackboneConfig()
    names = ("patch_size", "decoder_res_blocks", "mid_res_blocks", "downsample", "upsample", "shortcut", "block")
    for name in (*names, "adaptive_norm", "encoder_out_kernel", "quant_conv"):
        value = getattr(backbone, name)
        require(
            value == getattr(plain, name),
            f"diffusers' VQModel has no backbone.{name} {value!r}.",
            f"Only tokenizers with {getattr(plain, name)!r} can be exported.",
        )


FAMILY = TokenizerFamily(
    title="diffusers' VQModel (aMUSEd's, LDM's)",
    signs=(r"encoder\.down_blocks\.0\.resnets\.", r"decoder\.up_blocks\.0\.resnets\.", r"quantize\.embedding\.weight"),
    classes=("VQModel",),
    convert=convert,
    example="--checkpoint vqvae/",
    peer="huggingface/diffusers",
)

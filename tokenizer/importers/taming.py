"""taming-transformers and latent-diffusion: VQModel and GumbelVQ (Esser et al. 2021, https://arxiv.org/abs/2012.09841).

Their names are this project's own. It also reads a first stage inside the file of a prior or a diffusion model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from codegrid.tokenizer.configuration import BackboneConfig
from codegrid.tokenizer.importers.layout import (
    Converted,
    TokenizerFamily,
    Weights,
    backbone_of,
    check_settings,
    drop,
    find_setting,
    of_submodule,
    plain_codebook,
    shape_of,
)
from codegrid.tokenizer.importers.reading import ForeignCheckpointError
from codegrid.tokenizer.quantizers.gumbel import GumbelConfig


def convert(weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None) -> Converted:
    # Settings of a GPT or a diffusion model contain those of the first stage, and perhaps those of another network.
    settings = find_setting(settings, "first_stage_config") or settings
    weights, notes = own_part(weights), dict[str, Any]()
    backbone = backbone_by(weights, settings, pixel_range)
    if "quantize.proj.weight" in weights:
        weights["quantize.logits.weight"] = weights.pop("quantize.proj.weight").flatten(1)  # [K, D, 1, 1] -> [K, D]
        weights["quantize.logits.bias"] = weights.pop("quantize.proj.bias")
        weights["quantize.embedding.weight"] = weights.pop("quantize.embed.weight")
    size, dim = shape_of(weights, "quantize.embedding.weight")
    check_settings(settings, {"n_embed": size, "embed_dim": dim})
    used = weights.pop("quantize.used", None)
    if used is not None:
        # taming keeps all codes and renumbers those listed here; an unlisted code becomes a random one. Here it becomes
        # the nearest listed code, a better guess. Where taming's codes are deterministic, the codes are the same.
        for name in ("embedding.weight", "logits.weight", "logits.bias"):
            if f"quantize.{name}" in weights:
                weights[f"quantize.{name}"] = weights[f"quantize.{name}"][used.long()]
        notes["remap"] = used.long().tolist()
        size = len(used)
    if "quantize.logits.weight" in weights:
        quantizer = GumbelConfig(
            codebook_size=size, code_dim=dim, kl_weight=float(find_setting(settings, "kl_weight") or 1e-8)
        )
    else:
        quantizer = plain_codebook(size, dim)
    return Converted(backbone, quantizer, weights, notes)


def own_part(weights: Weights) -> Weights:
    """The tokenizer's own weights, without those that only training used."""
    return drop(of_submodule(weights, "first_stage_model."), r"loss\.", r"colorize$", r"temperature_scheduler\.")


def backbone_by(
    weights: Weights, settings: Mapping[str, Any], pixel_range: tuple[float, float] | None, **fixed: Any
) -> BackboneConfig:
    """The backbone config from the weights and from taming's `ddconfig`, if given; they must agree.

    Raises:
        ForeignCheckpointError: they do not agree, or the ddconfig needs something that this backbone lacks.
    """
    ddconfig = find_setting(settings, "ddconfig") or {}
    for name, value in {"double_z": False, "tanh_out": False, "resamp_with_conv": True}.items():
        if ddconfig.get(name, value) != value:
            raise ForeignCheckpointError(
                f"ddconfig.{name} is {ddconfig[name]}.",
                f"Only networks with {value} can be imported: take another checkpoint.",
            )
    resolution = ddconfig.get("resolution", 256)
    backbone = backbone_of(weights, resolution=resolution, pixel_range=pixel_range or (-1.0, 1.0), **fixed)
    told = ("in_channels", "ch", "ch_mult", "num_res_blocks", "z_channels", "attn_resolutions")
    check_settings(ddconfig, {name: getattr(backbone, name) for name in told})
    return replace(backbone, dropout=float(ddconfig.get("dropout", 0.0)))


FAMILY = TokenizerFamily(
    title="taming-transformers' or latent-diffusion's VQModel or GumbelVQ",
    signs=(r"encoder\.down\.\d+\.block\.", r"encoder\.mid\.block_1\.", r"quantize\.(embedding|embed)\.weight"),
    classes=("taming", "ldm"),
    convert=convert,
    example="--checkpoint last.ckpt --config model.yaml",
    peer="CompVis/taming-transformers",
)

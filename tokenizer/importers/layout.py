"""Shared by the importers: renaming keys, and deriving a backbone's config from its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from codegrid.tokenizer.configuration import BackboneConfig
from codegrid.tokenizer.importers.reading import ForeignCheckpointError
from codegrid.tokenizer.quantizers import QuantizerConfig, VectorQuantizerConfig

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """A tokenizer in this project's layout.

    Attributes:
        notes: the importer's changes besides renaming, for the report and the provenance.
    """

    backbone: BackboneConfig
    quantizer: QuantizerConfig
    weights: Weights
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerFamily:
    """How the tokenizers of one foreign project become a `VQModel`.

    Args:
        title: a name for people.
        signs: regular expressions; weights are of the family if each expression finds a key.
        classes: words; if the settings name a class, its path must contain one of them.
        convert: (weights, settings, pixel_range or None) -> `Converted`; weights are in float32.
        example: arguments of `codegrid import-checkpoint NAME` besides --output-dir, for its help.
        peer: the repository with the project's own code; `codegrid dev import-parity` compares with it.
        averages: whether the family's own code takes averaged weights where a file has them beside trained ones.
    """

    title: str
    signs: tuple[str, ...]
    classes: tuple[str, ...]
    convert: Callable[[Weights, Mapping[str, Any], tuple[float, float] | None], Converted]
    example: str
    peer: str
    averages: bool = False

    def fits(self, keys: Iterable[str]) -> bool:
        keys = list(keys)
        return all(any(re.search(sign, key) for key in keys) for sign in self.signs)


def rename(weights: Mapping[str, Tensor], rules: Sequence[tuple[str, str | Callable[[re.Match], str]]]) -> Weights:
    """Apply each pair (regular expression, replacement of `re.sub`) to every key, in order."""
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def drop(weights: Mapping[str, Tensor], *patterns: str) -> Weights:
    """The weights without keys whose start matches one of the patterns."""
    return {key: value for key, value in weights.items() if not any(re.match(pattern, key) for pattern in patterns)}


def of_submodule(weights: Weights, prefix: str) -> Weights:
    """If keys have the `prefix` (a tokenizer inside a prior's file), only these, without the prefix."""
    inside = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    return inside or weights


def averaged(weights: Weights) -> Weights:
    """Take the EMA weights under `model_ema.` instead of the trained ones. Their names are the same without dots."""
    live = {key.replace(".", ""): key for key in weights if not key.startswith("model_ema.")}
    wraps = re.compile("_orig_mod|module")  # of a network that was wrapped: its averages' names keep the words
    chosen = {key: value for key, value in weights.items() if not key.startswith("model_ema.")}
    for key, value in weights.items():
        name = key.removeprefix("model_ema.")
        if name != key:
            name = name if name in live else wraps.sub("", name)
            chosen |= {live[name]: value} if name in live else {}
    return chosen


def with_zero_biases(weights: Weights, *patterns: str) -> Weights:
    """Add zero biases to convolutions without one: the function is the same, with fewer kinds of networks."""
    filled = dict(weights)
    for key, value in weights.items():
        bias = key.removesuffix("weight") + "bias"
        if any(re.search(pattern, key) for pattern in patterns) and bias not in weights:
            filled[bias] = torch.zeros(len(value))
    return filled


def backbone_of(weights: Weights, *, resolution: int = 256, **fixed: Any) -> BackboneConfig:
    """The config of a backbone whose weights have this project's (taming's) names.

    Args:
        resolution: the side from which attention's levels are counted; weights do not tell it.
        fixed: fields that the family knows and weights do not tell.

    Raises:
        ForeignCheckpointError: a weight that determines a field is missing. The message names it.
    """
    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    ch, in_channels = shape_of(weights, "encoder.conv_in.weight")[:2]
    widths = [shape_of(weights, f"encoder.down.{index}.block.0.conv1.weight")[0] for index in range(levels)]
    if any(width % ch for width in widths):
        raise ForeignCheckpointError(
            f"The levels' widths {widths} are no multiples of the first convolution's {ch}.",
            "Only networks whose widths are multiples can be imported: take another checkpoint.",
        )
    blocks = _count(weights, r"encoder\.down\.0\.block\.(\d+)\.")
    decoder_blocks = _count(weights, r"decoder\.up\.0\.block\.(\d+)\.")
    out = shape_of(weights, "encoder.conv_out.weight")
    attention = [index for index in range(levels) if f"encoder.down.{index}.attn.0.q.weight" in weights]
    fields = {
        "in_channels": in_channels,
        "resolution": resolution,
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": blocks,
        "attn_resolutions": tuple(resolution // 2**index for index in attention),
        "mid_attention": "encoder.mid.attn_1.q.weight" in weights,
        "mid_res_blocks": _count(weights, r"encoder\.mid\.block_(\d+)\.") - 1,
        "z_channels": out[0],
        "encoder_out_kernel": out[-1],
        "decoder_res_blocks": None if decoder_blocks == blocks + 1 else decoder_blocks,
        "quant_conv": "quant_conv.weight" in weights,
    }
    try:
        return BackboneConfig(**{**fields, **fixed})
    except ValueError as error:
        raise ForeignCheckpointError(
            f"The weights make no backbone of this project ({error}).", "Take a checkpoint of a published size."
        ) from error


def shape_of(weights: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Shape of the tensor `key`.

    Raises:
        ForeignCheckpointError: there is none.
    """
    if key not in weights:
        raise ForeignCheckpointError(
            f"The checkpoint lacks {key} (as taming-transformers names it).",
            "Download it again, whole, or choose the family that it is of.",
        )
    return tuple(weights[key].shape)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """The largest number that `pattern` finds, plus one."""
    numbers = [int(match[1]) for key in weights if (match := re.match(pattern, key))]
    if not numbers:
        raise ForeignCheckpointError(
            f"The checkpoint has no key like {pattern} (as taming-transformers names them).",
            "Download it again, whole, or choose the family that it is of.",
        )
    return max(numbers) + 1


def plain_codebook(size: int, dim: int) -> VectorQuantizerConfig:
    """taming's lookup and its "legacy" loss, with beta on the codebook term. As in taming, no dead-code restart."""
    return VectorQuantizerConfig(
        codebook_size=size,
        code_dim=dim,
        l2_normalize=False,
        codebook_weight=0.25,
        commitment_weight=1.0,
        revive_below=0.0,
    )


def find_setting(settings: Any, name: str) -> Any:
    """The first value called `name` in nested settings, outermost first; None if there is none."""
    layer = [settings]
    while layer:
        for item in layer:
            if isinstance(item, Mapping) and name in item:
                return item[name]
        layer = [value for item in layer if isinstance(item, Mapping) for value in item.values()]
    return None


def check_settings(settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """The settings' values must equal those of `found`, which come from the weights.

    Raises:
        ForeignCheckpointError: they differ, so the settings belong to another checkpoint.
    """
    wrong = []
    for name, value in found.items():
        said = find_setting(settings, name)
        said = tuple(said) if isinstance(said, list) else said
        if said is not None and said != value:
            wrong.append(f"{name} {said} (the weights: {value})")
    if wrong:
        raise ForeignCheckpointError(
            f"The settings are of another checkpoint than the weights: they say {', '.join(wrong)}.",
            "Give the settings that lie beside these weights (--config).",
        )

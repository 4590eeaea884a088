"""LlamaGen's class-conditional GPT, B to 3B (Sun et al. 2024, https://arxiv.org/abs/2406.06525)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codegrid.errors import CodegridError
from codegrid.prior.architectures.grid_llama import GridLlamaConfig, GridLlamaForCausalLM
from codegrid.prior.importers.layout import PriorFamily, filled
from codegrid.prior.sequence_config import SequenceConfig

TITLE = "GPT of LlamaGen's"
_SIGNS = (r"^cls_embedding\.embedding_table\.weight$", r"^layers\.0\.attention\.wqkv\.weight$", r"^output\.weight$")
# Heads by (layers, width) of the published sizes: B, L, XL, XXL, XXXL, 1B, 3B, 7B.
_HEADS = {(12, 768): 12, (24, 1024): 16, (36, 1280): 20, (48, 1536): 24}
_HEADS |= {(48, 2560): 40, (22, 2048): 32, (24, 3200): 32, (32, 4096): 32}
_NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def convert(
    weights: Mapping[str, Tensor],
    grid_size: int,
    class_names: tuple[str, ...] | None,
    heads: int | None,
    settings: Mapping[str, Any] | None,
) -> tuple[GridLlamaForCausalLM, SequenceConfig]:
    """See `convert_prior`. The null class is the last row of the class embedding, like the null token here."""
    weights = {key: value.float() for key, value in weights.items() if not key.startswith("freqs_cis")}
    codes, classes = weights.pop("tok_embeddings.weight"), weights.pop("cls_embedding.embedding_table.weight")
    layers = 1 + max(int(found[1]) for key in weights if (found := re.match(r"layers\.(\d+)\.", key)))
    width = codes.shape[1]
    heads = heads or _HEADS.get((layers, width))
    if heads is None:
        raise CodegridError(
            f"{layers} layers of width {width} are no published size.", "Say how many heads a layer has (--heads)."
        )
    names = class_names or tuple(map(str, range(len(classes) - 1)))
    if len(names) != len(classes) - 1:
        raise CodegridError(
            f"{len(names)} class names were given; the checkpoint has {len(classes) - 1} classes.",
            "Give one name for each class.",
        )
    sequence = SequenceConfig(codebook_size=len(codes), grid_shape=(grid_size, grid_size), class_names=names)
    head_dim = width // heads
    ours = {
        "model.embed_tokens.weight": torch.cat([codes, classes]),  # [codes | class tokens | null]
        "model.norm.weight": weights.pop("norm.weight"),
        # Class tokens are never predicted: the softmax runs over the codes only.
        "lm_head.weight": torch.cat([weights.pop("output.weight"), torch.zeros_like(classes)]),
    }
    for key in list(weights):
        found = re.match(r"layers\.(\d+)\.(.+)\.weight$", key)
        if found and found[2] == "attention.wqkv":
            ours |= _split_attention(weights.pop(key), int(found[1]), width, head_dim)
        elif found and found[2] in _NAMES:
            ours[f"model.layers.{found[1]}.{_NAMES[found[2]]}.weight"] = weights.pop(key)
    config = GridLlamaConfig(
        vocab_size=sequence.vocab_size,
        hidden_size=width,
        intermediate_size=len(ours.get("model.layers.0.mlp.gate_proj.weight", ())) or 1,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=len(ours["model.layers.0.self_attn.k_proj.weight"]) // head_dim,
        max_position_embeddings=sequence.length + 1,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        grid_width=grid_size,
        zero_prefix=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return filled(GridLlamaForCausalLM, config, ours, sorted(weights), sequence, TITLE), sequence


def _split_attention(wqkv: Tensor, layer: int, width: int, head_dim: int) -> dict[str, Tensor]:
    """Split rows q | k | v; reorder q and k. LlamaGen rotates (2j, 2j + 1), transformers (j, j + head_dim / 2)."""
    shared = (len(wqkv) - width) // 2
    query, key, value = wqkv.split([width, shared, shared])
    halves = [rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2) for rows in (query, key)]
    prefix = f"model.layers.{layer}.self_attn."
    return {f"{prefix}{name}_proj.weight": rows.clone() for name, rows in zip("qkv", (*halves, value), strict=True)}


FAMILY = PriorFamily(
    title="LlamaGen's class-conditional GPT",
    signs=_SIGNS,
    convert=convert,
    example="--checkpoint c2i_B_256.pt --tokenizer TOKENIZER",
    peer="FoundationVision/LlamaGen",
)

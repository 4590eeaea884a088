"""A stock GPT-2 (Radford et al. 2019): learned positions, layer norms with biases, an MLP without a gate.

The second half lays out the weights for decoding. Training runs the forward pass of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from codegrid.errors import CodegridError, require
from codegrid.prior.architectures.base import Architecture, num_positions, shared_values
from codegrid.prior.decoder_weights import AsMap, DecoderWeights, LayerWeights, joined
from codegrid.prior.linear_maps import Linear

if TYPE_CHECKING:
    from codegrid.prior.configuration import PriorConfig
    from codegrid.prior.sequence_config import SequenceConfig


def check_gpt2(config: PriorConfig) -> None:
    shared = config.num_key_value_heads
    require(
        shared in (None, config.num_attention_heads),
        f"num_key_value_heads is {shared}, and in a GPT-2 every head has keys of its own.",
        "Leave it out.",
    )


def gpt2_values(config: PriorConfig, sequence: SequenceConfig) -> dict[str, Any]:
    """The fields of a GPT2Config and of configs derived from it."""
    return shared_values(config, sequence) | {
        "n_positions": num_positions(sequence),
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "attn_pdrop": config.attention_dropout,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def read_gpt2(model: GPT2LMHeadModel, num_codes: int, length: int, as_map: AsMap) -> DecoderWeights:
    """See `read_weights`.

    Raises:
        CodegridError: the scale of attention does not follow from the width of a head.
    """
    config, inner = model.config, model.transformer
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise CodegridError(
            f"This GPT-2 has scale_attn_weights {config.scale_attn_weights} and scale_attn_by_inverse_layer_idx "
            f"{config.scale_attn_by_inverse_layer_idx}.",
            "Sampling needs True and False: load a GPT-2 that was trained with these.",
        )
    embedding, positions = inner.wte.weight.detach(), inner.wpe.weight.detach()  # [V, D], [T, D]
    return DecoderWeights(
        embed=lambda tokens, position: F.embedding(tokens, embedding) + positions[position],
        turn=lambda position: lambda heads: heads,
        layers=tuple(_read_layer(layer, as_map) for layer in inner.h),
        norm=_read_norm(inner.ln_f),
        head=joined([model.lm_head], as_map, num_codes),
        num_heads=config.n_head,
        num_key_value_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        length=length,
        device=embedding.device,
        dtype=embedding.dtype,
    )


@dataclass(frozen=True)
class _LayerNorm:
    weight: Tensor  # [D]
    bias: Tensor  # [D]
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _MLP:
    up: Linear  # D -> I
    down: Linear  # I -> D
    activation: Callable[[Tensor], Tensor]
    row_multiple: int

    def __call__(self, rows: Tensor) -> Tensor:
        return self.down(self.activation(self.up(rows)))


def _read_layer(layer: nn.Module, as_map: AsMap) -> LayerWeights:
    up, down = joined([layer.mlp.c_fc], as_map), joined([layer.mlp.c_proj], as_map)
    return LayerWeights(
        attention_norm=_read_norm(layer.ln_1),
        qkv=joined([layer.attn.c_attn], as_map),
        output=joined([layer.attn.c_proj], as_map),
        mlp_norm=_read_norm(layer.ln_2),
        mlp=_MLP(up, down, layer.mlp.act, math.lcm(up.row_multiple, down.row_multiple)),
    )


def _read_norm(norm: nn.LayerNorm) -> _LayerNorm:
    return _LayerNorm(norm.weight.detach(), norm.bias.detach(), norm.eps)


GPT2 = Architecture(
    name="gpt2",
    title="GPT-2",
    config_class=GPT2Config,
    model_class=GPT2LMHeadModel,
    config=lambda config, sequence: GPT2Config(**gpt2_values(config, sequence)),
    read_weights=read_gpt2,
    check=check_gpt2,
    matrix_layers=(nn.Linear, Conv1D),
)

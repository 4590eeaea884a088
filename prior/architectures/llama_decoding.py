"""Lays out the weights of a Llama or Qwen3 for decoding: one product for query, key and value, one for gate and up."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, Qwen3ForCausalLM
from transformers.activations import ACT2FN

from codegrid.prior.decoder_weights import AsMap, DecoderWeights, LayerWeights, joined
from codegrid.prior.linear_maps import Linear


def read_llama(
    model: LlamaForCausalLM | Qwen3ForCausalLM, num_codes: int, length: int, as_map: AsMap
) -> DecoderWeights:
    """See `read_weights`."""
    config, embedding = model.config, model.model.embed_tokens.weight.detach()
    positions = torch.arange(length, device=model.device)[None]
    cos, sin = model.model.rotary_emb(torch.empty(0, dtype=embedding.dtype, device=model.device), positions)
    half = sin.shape[-1] // 2  # cos, sin: [1, T, hd]
    return DecoderWeights(
        embed=lambda tokens, position: F.embedding(tokens, embedding),
        turn=Rotation(cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)),
        layers=tuple(_read_layer(layer, as_map) for layer in model.model.layers),
        norm=_read_norm(model.model.norm),
        head=joined([model.lm_head], as_map, num_codes),
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=cos.shape[-1],
        length=length,
        device=embedding.device,
        dtype=embedding.dtype,
    )


@dataclass(frozen=True)
class Rotation:
    """Rotary positions (https://arxiv.org/abs/2104.09864); pairs are half a head apart."""

    cos: Tensor  # [T, hd]
    signed_sin: Tensor  # [T, hd], its first half negated

    def __call__(self, position: Any) -> Callable[[Tensor], Tensor]:
        """A position, or places of any shape -> what turns heads [..., hd] by them, which broadcast."""
        cos, (first, second) = self.cos[position], self.signed_sin[position].chunk(2, -1)

        def turned(heads: Tensor) -> Tensor:
            # A pass over each half in place of a rolled copy.
            out = heads * cos
            (ahead, behind), (left, right) = out.chunk(2, -1), heads.chunk(2, -1)
            ahead.addcmul_(right, first)
            behind.addcmul_(left, second)
            return out

        return turned


@dataclass(frozen=True)
class _RMSNorm:
    """As LlamaRMSNorm, over the last axis: the norm in float32, the weight in the model's dtype.

    In bf16 on a CPU the weight is float32 too, and the result is rounded once: in two thirds of the operations, which
    take a few rows most of their time.
    """

    weight: Tensor  # [D]; of heads [H + Hkv, hd]
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.dtype == torch.bfloat16 and hidden.is_cpu:
            weight, floor = self._of_lengths
            wide = hidden.float()
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).hypot_(floor)
            return wide.div_(length).mul_(weight).bfloat16()
        last = self.weight.shape[-1:]
        if hidden.dtype == torch.float32 and self.weight.dim() == 1:
            return F.rms_norm(hidden, last, self.weight, self.eps)
        return self.weight * F.rms_norm(hidden.float(), last, None, self.eps).to(hidden.dtype)

    @functools.cached_property
    def _of_lengths(self) -> tuple[Tensor, Tensor]:
        """x / sqrt(mean(x^2) + eps) * weight is x / hypot(|x|, floor) * the first; both float32."""
        width = self.weight.shape[-1]
        return self.weight.float() * math.sqrt(width), torch.tensor(math.sqrt(width * self.eps))


@dataclass(frozen=True)
class _GatedMLP:
    gate_up: Linear  # D -> 2 * I
    down: Linear  # I -> D
    activation: Callable[[Tensor], Tensor]
    row_multiple: int

    def __call__(self, rows: Tensor) -> Tensor:
        gate, up = self.gate_up(rows).chunk(2, dim=-1)  # [R, I] each
        return self.down(self.activation(gate).mul_(up))


def _read_layer(layer: nn.Module, as_map: AsMap) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    gate_up, down = joined([mlp.gate_proj, mlp.up_proj], as_map), joined([mlp.down_proj], as_map)
    name = mlp.config.hidden_act
    activation = F.silu if name == "silu" else ACT2FN[name]  # without the call of a module
    return LayerWeights(
        attention_norm=_read_norm(layer.input_layernorm),
        qkv=joined([attention.q_proj, attention.k_proj, attention.v_proj], as_map),
        output=joined([attention.o_proj], as_map),
        mlp_norm=_read_norm(layer.post_attention_layernorm),
        mlp=_GatedMLP(gate_up, down, activation, math.lcm(gate_up.row_multiple, down.row_multiple)),
        head_norm=_read_head_norm(attention),
    )


def _read_norm(norm: nn.Module) -> _RMSNorm:
    return _RMSNorm(norm.weight.detach(), norm.variance_epsilon)


def _read_head_norm(attention: nn.Module) -> _RMSNorm | None:
    if not hasattr(attention, "q_norm"):
        return None
    config = attention.config
    weights = [attention.q_norm.weight.detach().expand(config.num_attention_heads, -1)]
    weights.append(attention.k_norm.weight.detach().expand(config.num_key_value_heads, -1))
    return _RMSNorm(torch.cat(weights), attention.q_norm.variance_epsilon)

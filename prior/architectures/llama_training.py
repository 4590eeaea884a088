"""The fast forward pass of a Llama or Qwen3 for training, over whole sequences. It computes what the stock model does.

Query, key and value are one matrix product, gate and up another. Norms, rotations and the gated unit make few passes
over memory (`row_operations.py`).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM, LlamaModel, Qwen3ForCausalLM

from codegrid.prior.row_operations import causal_attention, gated_silu, rms_norm, rotate

LlamaLike = LlamaForCausalLM | Qwen3ForCausalLM


def llama_forward(model: LlamaLike, tokens: Tensor, checkpointing: bool) -> Tensor:
    """See `Architecture.training_forward`."""
    inner = model.model
    hidden = inner.embed_tokens(tokens)  # [B, T, D]
    return llama_blocks(inner, hidden, *_rotation(model, hidden), checkpointing)


def llama_blocks(inner: nn.Module, hidden: Tensor, cos: Tensor, signed_sin: Tensor, checkpointing: bool) -> Tensor:
    """The blocks and the last norm of `model.model`: embeddings [B, T, D] -> the input of the output layer [B, T, D].

    `cos` and `signed_sin` turn queries and keys; their shapes broadcast to [B, T, H + Hkv, hd].
    """
    for layer in inner.layers:
        # A layer whose weights are divided among ranks has a method that gathers them first.
        block = getattr(layer, "fast_forward", None) or partial(llama_block, layer)
        hidden = block(hidden, cos, signed_sin, checkpointing)
    return rms_norm(hidden, inner.norm.weight, inner.norm.variance_epsilon)


def is_plain_llama(model: LlamaLike | LlamaModel) -> bool:
    """Whether `_block` computes this model's blocks: no adapters, no biases, SiLU as the activation."""
    config = model.config
    return (
        config.hidden_act == "silu"
        and not config.attention_bias
        and not getattr(config, "mlp_bias", False)
        and all(type(module) is nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))
    )


def _rotation(model: LlamaLike, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each [T, 1, hd], in the dtype of the matrix products."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    cos, signed_sin = rotation_at(model.model, hidden, positions)  # [1, T, 1, hd]
    return cos[0], signed_sin[0]


def rotation_at(inner: nn.Module, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and signed sin of positions [B, T], each [B, T, 1, hd], in the dtype of the matrix products."""
    cos, sin = inner.rotary_emb(hidden, positions)  # [B, T, hd]
    half = sin.shape[-1] // 2
    signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return cos[:, :, None].to(dtype), signed_sin[:, :, None].to(dtype)


def llama_block(layer: nn.Module, hidden: Tensor, cos: Tensor, signed_sin: Tensor, checkpointing: bool) -> Tensor:
    """A block: [B, T, D] -> [B, T, D]."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(_block, layer, hidden, cos, signed_sin, use_reentrant=False)
    return _block(layer, hidden, cos, signed_sin)


def _block(layer: nn.Module, hidden: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    norm = layer.input_layernorm
    normed = rms_norm(hidden, norm.weight, norm.variance_epsilon)
    hidden = hidden + attention.o_proj(_attend(attention, normed, cos, signed_sin))
    norm = layer.post_attention_layernorm
    normed = rms_norm(hidden, norm.weight, norm.variance_epsilon)
    gate_up = F.linear(normed, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))  # [B, T, 2 * I]
    return hidden + mlp.down_proj(gated_silu(gate_up))


def _attend(attention: nn.Module, normed: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """[B, T, D] -> the output of each head, [B, T, H * hd]."""
    config, head_dim = attention.config, attention.head_dim
    shared = config.num_key_value_heads
    turned = config.num_attention_heads + shared
    weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    heads = F.linear(normed, weight).unflatten(-1, (turned + shared, head_dim))  # [B, T, H + 2 * Hkv, hd]
    query_key, value = heads.split([turned, shared], dim=2)
    if hasattr(attention, "q_norm"):  # Qwen3
        parts = zip(
            query_key.split([turned - shared, shared], dim=2), (attention.q_norm, attention.k_norm), strict=True
        )
        query_key = torch.cat([rms_norm(part, norm.weight, norm.variance_epsilon) for part, norm in parts], dim=2)
    query, key = rotate(query_key, cos, signed_sin).split([turned - shared, shared], dim=2)
    read = causal_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention.attention_dropout if attention.training else 0.0,
    )  # [B, H, T, hd]
    return read.transpose(1, 2).flatten(2)

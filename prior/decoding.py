"""One code at a time, fast: the same Llama as transformers', laid out for decoding.

Small batches are bound by reading the weights, so they are read in few, large matrix products (query, key and value in
one; gate and up in one; only the head's code rows) and, on a CPU, from oneDNN's packed layout.

On a CPU a row's logits do not depend on the other rows, down to the bit, if their number is a multiple of
`DecoderWeights.row_multiple`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.activations import ACT2FN

from prior.linear_maps import Linear, WeightFormat, linear_map


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block."""

    input_norm: Tensor  # [D]
    qkv: Linear  # D -> (H + 2 * Hkv) * hd
    output: Linear  # H * hd -> D
    mlp_norm: Tensor  # [D]
    gate_up: Linear  # D -> 2 * I
    down: Linear  # I -> D


@dataclass(frozen=True)
class DecoderWeights:
    """A LlamaForCausalLM read once, for any number of decoding runs. Later changes of the model do not reach it."""

    embedding: Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [D]
    head: Linear  # D -> codes
    cos: Tensor  # [T, hd]
    signed_sin: Tensor  # [T, hd], its first half negated
    num_heads: int
    num_key_value_heads: int
    eps: float
    activation: Callable[[Tensor], Tensor]
    row_multiple: int  # rows to pad to on a CPU, for logits whose bits do not depend on how many rows there are


def read_weights(
    model: LlamaForCausalLM, num_codes: int, length: int, pack: bool | None = None, weights: WeightFormat = "exact"
) -> DecoderWeights:
    """Lay out a model for decoding. Takes about as much memory again as the model.

    Args:
        num_codes: the head is cut to the tokens [0, num_codes).
        length: positions that will be decoded.
        pack: of exact weights: use oneDNN's packed layout; None for wherever it is to be had (on CPUs).
        weights: "exact", or the linear layers' weights rounded to "float16" or "int8" (CPUs only).

    Raises:
        ValueError: the model is wrapped, or holds layers other than plain linear ones (adapters, quantized weights),
            or cannot be decoded with weights of that format here.
    """
    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(f"Sampling needs the LlamaForCausalLM itself, not a {type(model).__name__}: unwrap it first.")
    config = model.config
    as_map = functools.partial(linear_map, pack=pack, weights=weights)
    layers = [_read_layer(layer, as_map) for layer in model.model.layers]
    head = _linear([model.lm_head], as_map, rows=num_codes)
    dtype = model.model.embed_tokens.weight.dtype
    positions = torch.arange(length, device=model.device)[None]
    cos, sin = model.model.rotary_emb(torch.empty(0, dtype=dtype, device=model.device), positions)  # [1, T, hd]
    half = sin.shape[-1] // 2
    return DecoderWeights(
        embedding=model.model.embed_tokens.weight.detach(),
        layers=tuple(layers),
        norm=model.model.norm.weight.detach(),
        head=head,
        cos=cos[0],
        signed_sin=torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1),
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        eps=config.rms_norm_eps,
        activation=ACT2FN[config.hidden_act],
        row_multiple=math.lcm(*(linear.row_multiple for linear in _linears(layers, head))),
    )


class Decoder:
    """Decodes `rows` sequences in step. Its cache is allocated once; `restart` begins the next ones.

    Fed fewer tokens, it goes on with the first rows alone; the others are lost until `restart`.
    """

    def __init__(self, weights: DecoderWeights, rows: int) -> None:
        self.weights = weights
        self.rows = rows
        length, head_dim = weights.cos.shape
        shape = (len(weights.layers), rows, weights.num_key_value_heads, length, head_dim)
        self.keys = weights.embedding.new_empty(shape)  # [layers, R, Hkv, T, hd]
        self.values = torch.empty_like(self.keys)
        self.position = 0

    @staticmethod
    def bytes_a_row(weights: DecoderWeights) -> int:
        """What the cache takes for each row."""
        values = weights.cos.numel() * weights.num_key_value_heads * len(weights.layers)
        return 2 * values * weights.embedding.element_size()

    def restart(self) -> None:
        self.position = 0

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every row, [R] int64 -> logits of the code after it [R, num_codes] in the model's dtype."""
        return self.logits(self.advance(tokens))

    def advance(self, tokens: Tensor) -> Tensor:
        """The next token of every row, [R] int64 -> what `logits` takes, [R, D]: enough where the code is given."""
        weights = self.weights
        hidden = F.embedding(tokens, weights.embedding)  # [R, D]
        for index, layer in enumerate(weights.layers):
            normed = _rms_norm(hidden, layer.input_norm, weights.eps)
            hidden = hidden + layer.output(self._attend(index, layer.qkv(normed)))
            normed = _rms_norm(hidden, layer.mlp_norm, weights.eps)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)  # [R, I] each
            hidden = hidden + layer.down(weights.activation(gate) * up)
        self.position += 1
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        weights = self.weights
        return weights.head(_rms_norm(hidden, weights.norm, weights.eps))

    def _attend(self, index: int, qkv: Tensor) -> Tensor:
        """[R, (H + 2 * Hkv) * hd] -> what each head reads from the positions so far, [R, H * hd]."""
        weights, position = self.weights, self.position
        rows, head_dim = len(qkv), weights.cos.shape[-1]
        shared = weights.num_key_value_heads
        turned = weights.num_heads + shared
        heads = qkv.view(rows, turned + shared, head_dim)
        query_key = heads[:, :turned]  # [R, H + Hkv, hd]
        query_key = torch.addcmul(
            query_key * weights.cos[position], query_key.roll(head_dim // 2, -1), weights.signed_sin[position]
        )
        keys, values = self.keys[index, :rows], self.values[index, :rows]
        keys[:, :, position] = query_key[:, weights.num_heads :]
        values[:, :, position] = heads[:, turned:]
        # The query heads that share a key head stand in a group: they are that head's "positions", and nothing is
        # masked, because the cache holds the past only.
        query = query_key[:, : weights.num_heads].unflatten(1, (shared, -1))  # [R, Hkv, H / Hkv, hd]
        read = _attention(query, keys[:, :, : position + 1], values[:, :, : position + 1])
        return read.reshape(rows, -1)


def _read_layer(layer: nn.Module, as_map: Callable[..., Linear]) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_linear([attention.q_proj, attention.k_proj, attention.v_proj], as_map),
        output=_linear([attention.o_proj], as_map),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_linear([mlp.gate_proj, mlp.up_proj], as_map),
        down=_linear([mlp.down_proj], as_map),
    )


def _linear(modules: list[nn.Module], as_map: Callable[..., Linear], rows: int | None = None) -> Linear:
    """Linear layers of one input as one map; of its outputs the first `rows`."""
    for module in modules:
        if type(module) is not nn.Linear or not module.weight.is_floating_point():
            raise ValueError(
                f"Sampling reads plain linear layers, and found {type(module).__name__}: merge adapters and "
                "dequantize the weights first."
            )
    weight = torch.cat([module.weight.detach() for module in modules])[:rows]  # [out, in]
    biases = [module.bias.detach() for module in modules if module.bias is not None]
    bias = torch.cat(biases)[:rows] if biases else None
    return as_map(weight, bias)


def _linears(layers: list[LayerWeights], head: Linear) -> list[Linear]:
    return [head, *(linear for layer in layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down))]


def _attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query [R, Hkv, G, hd], keys and values [R, Hkv, T, hd] -> [R, Hkv, G, hd]; nothing is masked."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values)
    # On CPUs the fused kernel splits its sums by the number of rows, and is no faster at one query.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, keys.transpose(-1, -2))  # [R, Hkv, G, T]
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype), values)


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As LlamaRMSNorm: the norm in float32, the weight in the model's dtype."""
    if hidden.dtype == torch.float32:
        return F.rms_norm(hidden, weight.shape, weight, eps)
    return weight * F.rms_norm(hidden.float(), weight.shape, None, eps).to(hidden.dtype)

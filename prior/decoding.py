"""One code at a time, fast: the same network as transformers', laid out for decoding.

Small batches are bound by reading the weights, so they are read in few, large matrix products (of the head only the
codes' rows) and, on a CPU, from oneDNN's packed layout. What an architecture has of its own is in its file
(`architectures/`, `Architecture.read_weights`); this one knows the cache and the attention.

On a CPU a row's logits do not depend on the other rows, down to the bit, if their number is a multiple of
`DecoderWeights.row_multiple`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior.architectures import ARCHITECTURES, architecture_of
from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.linear_maps import WeightFormat, linear_map


def read_weights(
    model: PreTrainedModel, num_codes: int, length: int, pack: bool | None = None, weights: WeightFormat = "exact"
) -> DecoderWeights:
    """Lay out a model for decoding. Takes about as much memory again as the model.

    Args:
        model: of one of `ARCHITECTURES`.
        num_codes: the head is cut to the tokens [0, num_codes).
        length: positions that will be decoded.
        pack: of exact weights: use oneDNN's packed layout; None for wherever it is to be had (on CPUs).
        weights: "exact", or the linear layers' weights rounded to "float16" or "int8" (CPUs only).

    Raises:
        CodegridError: the model is wrapped, or holds layers other than plain linear ones (adapters, quantized weights),
            or cannot be decoded with weights of that format here.
    """
    record = architecture_of(model)
    if record is None:
        kinds = " or ".join(known.class_name for known in ARCHITECTURES.values())
        raise CodegridError(f"Sampling needs the {kinds} itself, not a {type(model).__name__}: unwrap it first.")
    return record.read_weights(model, num_codes, length, functools.partial(linear_map, pack=pack, weights=weights))


class Decoder:
    """Decodes `rows` sequences in step. Its cache is allocated once; `restart` begins the next ones.

    Fed fewer tokens, it goes on with the first rows alone; the others are lost until `restart`.
    """

    def __init__(self, weights: DecoderWeights, rows: int) -> None:
        self.weights = weights
        self.rows = rows
        shape = (len(weights.layers), rows, weights.num_key_value_heads, weights.length, weights.head_dim)
        self.keys = torch.empty(shape, dtype=weights.dtype, device=weights.device)  # [layers, R, Hkv, T, hd]
        self.values = torch.empty_like(self.keys)
        self.position = 0

    @staticmethod
    def bytes_a_row(weights: DecoderWeights) -> int:
        """What the cache takes for each row."""
        values = weights.length * weights.head_dim * weights.num_key_value_heads * len(weights.layers)
        return 2 * values * weights.dtype.itemsize

    def restart(self) -> None:
        self.position = 0

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every row, [R] int64 -> logits of the code after it [R, num_codes] in the model's dtype."""
        return self.logits(self.advance(tokens))

    def advance(self, tokens: Tensor) -> Tensor:
        """The next token of every row, [R] int64 -> what `logits` takes, [R, D]: enough where the code is given."""
        weights = self.weights
        hidden = weights.embed(tokens, self.position)  # [R, D]
        for index, layer in enumerate(weights.layers):
            hidden = hidden + layer.output(
                self._attend(index, layer.qkv(layer.attention_norm(hidden)), layer.head_norm)
            )
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        self.position += 1
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.weights.head(self.weights.norm(hidden))

    def _attend(self, index: int, qkv: Tensor, head_norm: Callable[[Tensor], Tensor] | None) -> Tensor:
        """[R, (H + 2 * Hkv) * hd] -> what each head reads from the positions so far, [R, H * hd]."""
        weights, position = self.weights, self.position
        rows, shared = len(qkv), weights.num_key_value_heads
        turned = weights.num_heads + shared
        heads = qkv.view(rows, turned + shared, weights.head_dim)
        query_key = heads[:, :turned]  # [R, H + Hkv, hd]
        query_key = weights.turn(query_key if head_norm is None else head_norm(query_key), position)
        keys, values = self.keys[index, :rows], self.values[index, :rows]
        keys[:, :, position] = query_key[:, weights.num_heads :]
        values[:, :, position] = heads[:, turned:]
        # The query heads that share a key head stand in a group: they are that head's "positions", and nothing is
        # masked, because the cache holds the past only.
        query = query_key[:, : weights.num_heads].unflatten(1, (shared, -1))  # [R, Hkv, H / Hkv, hd]
        read = _attention(query, keys[:, :, : position + 1], values[:, :, : position + 1])
        return read.reshape(rows, -1)


def _attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query [R, Hkv, G, hd], keys and values [R, Hkv, T, hd] -> [R, Hkv, G, hd]; nothing is masked."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values)
    # On CPUs the fused kernel splits its sums by the number of rows, and is no faster at one query.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, keys.transpose(-1, -2))  # [R, Hkv, G, T]
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype), values)

"""Fast decoding, one code at a time: the network of transformers with its weights laid out for decoding.

Reading the weights limits the speed of small batches. So decoding reads them in few, large matrix products (of the head
only the rows of codes) and, on a CPU, from oneDNN's packed layout. The parts that differ between architectures are in
`architectures/` (`Architecture.read_weights`); this file has the key/value cache and the attention.

oneDNN's bf16 products copy what is not contiguous. So on a CPU a bf16 cache is exactly as long as what attention reads
of it: it grows by blocks of positions, and a mask hides what a block does not hold yet.

On a CPU, if the number of rows is a multiple of `DecoderWeights.row_multiple`, a row's logits have the same bits
whatever the other rows are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior.architectures import ARCHITECTURES, architecture_of
from codegrid.prior.decoder_weights import AsMap, DecoderWeights
from codegrid.prior.linear_maps import WeightFormat

_BLOCK = 64  # positions that a bf16 cache grows by on a CPU


def read_weights(
    model: PreTrainedModel,
    num_codes: int,
    length: int,
    pack: bool | None = None,
    weights: WeightFormat = "exact",
    in_place: bool = False,
) -> DecoderWeights:
    """Lay out a model for decoding. This takes about as much memory again as the model, unless it is `in_place`.

    Args:
        model: a model of one of `ARCHITECTURES`.
        num_codes: the head is cut to the tokens [0, num_codes).
        length: number of positions to decode.
        pack: with exact weights, use oneDNN's packed layout; None uses it wherever it is available (on CPUs).
        weights: "exact", or "float16" or "int8" for rounded weights of the linear layers (CPUs only).
        in_place: take no memory: the model's own weights are read, in more products than from a layout.

    Raises:
        CodegridError: the model is wrapped, has layers other than plain linear ones (adapters, quantized weights), or
            cannot be decoded here with weights of that format.
    """
    record = architecture_of(model)
    if record is None:
        kinds = " or ".join(known.class_name for known in ARCHITECTURES.values())
        raise CodegridError(f"Sampling needs the {kinds} itself, not a {type(model).__name__}.", "Unwrap it first.")
    as_map = AsMap(False if in_place else pack, weights, in_place)
    return record.read_weights(model, num_codes, length, as_map)


class Decoder:
    """Decodes `rows` sequences in step. The key/value cache is allocated once; `restart` begins new sequences.

    If it gets fewer tokens than rows, it continues with the first rows only; the others are lost until `restart`.
    """

    def __init__(self, weights: DecoderWeights, rows: int) -> None:
        self.weights = weights
        self.rows = rows
        length = 0 if reads_blocks(weights) else weights.length
        shape = (len(weights.layers), rows, weights.num_key_value_heads, length, weights.head_dim)
        self.keys = torch.empty(shape, dtype=weights.dtype, device=weights.device)  # [layers, R, Hkv, T, hd]
        self.values = torch.empty_like(self.keys)
        self.position = 0

    @staticmethod
    def bytes_a_row(weights: DecoderWeights) -> int:
        """Bytes of the key/value cache per row."""
        values = weights.length * weights.head_dim * weights.num_key_value_heads * len(weights.layers)
        return 2 * values * weights.dtype.itemsize

    def restart(self) -> None:
        self.position = 0
        if reads_blocks(self.weights):
            self.keys, self.values = self.keys[:, :, :, :0], self.values[:, :, :, :0]

    def _reserve(self, end: int) -> int:
        """How many positions of the cache attention reads if `end` are written; the cache has so many."""
        read = read_positions(self.weights, end)
        if read > self.keys.shape[3]:
            self.keys = _lengthened(self.keys, read)
            self.values = _lengthened(self.values, read)
        return read

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of every row, [R] int64 -> logits of the code after it [R, num_codes] in the model's dtype."""
        return self.logits(self.advance(tokens))

    def advance(self, tokens: Tensor, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The next token of every row, [R] int64 -> the input of `logits`, [R, D]. Enough if the next code is given.

        `places` are of a prior of any order, the own and the target place of each row's token, each [R]; None is raster
        order.
        """
        weights = self.weights
        hidden = weights.embed(tokens, self.position)  # [R, D]
        if weights.embed_places is not None:
            if places is None:
                own = torch.full_like(tokens, self.position)
                places = own, own + 1
            hidden = hidden + weights.embed_places(*places)
        turn = self._turn(places)
        read, seen = self._reserve(self.position + 1), None
        if read > self.position + 1:
            seen = torch.arange(read, device=tokens.device)[None] <= self.position  # [1, T]
        for index, layer in enumerate(weights.layers):
            qkv = layer.qkv(layer.attention_norm(hidden))
            hidden = layer.output(self._attend(index, qkv, layer.head_norm, turn, seen)).add_(hidden)
            hidden = layer.mlp(layer.mlp_norm(hidden)).add_(hidden)
        self.position += 1
        return hidden

    def advance_many(self, tokens: Tensor, places: tuple[Tensor, Tensor], asked: int) -> Tensor:
        """Several tokens of every row at once, of a prior of any order, and several questions after the last of them.

        Each question is the last token with a target of its own: it sees the tokens before it and no other question,
        and is not kept in the cache. In the last layer only the questions are computed to the end: of the tokens before
        them nothing but keys and values is read again.

        Args:
            tokens: the next N tokens of every row, [R, N].
            places: own and target places, each [R, N + asked - 1]; those behind N are of the further questions.
            asked: number of questions, at least 1; the last token's own target is the first.

        Returns:
            The inputs of `logits` of the questions, [R, asked, D].
        """
        weights, kept = self.weights, tokens.shape[1]
        steps = torch.arange(self.position, self.position + kept, device=tokens.device)
        tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, asked - 1)], 1)  # [R, M], M = N + asked - 1
        steps = torch.cat([steps, steps[-1:].expand(asked - 1)])
        assert weights.embed_places is not None
        hidden = weights.embed(tokens, steps) + weights.embed_places(*places)  # [R, M, D]
        rows, many, width = hidden.shape
        seen, turn = self._seen(kept, many, tokens.device), self._turn(places)
        hidden = hidden.flatten(0, 1)
        for index, layer in enumerate(weights.layers):
            qkv = layer.qkv(layer.attention_norm(hidden)).view(rows, many, -1)
            first = kept - 1 if index == len(weights.layers) - 1 else 0
            read = self._attend_many(index, qkv, layer.head_norm, seen, turn, first)  # [R, M - first, H * hd]
            hidden = hidden.view(rows, -1, width)[:, first:].flatten(0, 1) + layer.output(read.flatten(0, 1))
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        self.position += kept
        return hidden.view(rows, asked, width)

    def _turn(self, places: tuple[Tensor, Tensor] | None) -> Callable[[Tensor], Tensor]:
        """What turns the queries and keys of every layer."""
        if places is not None and self.weights.turn_places is not None:
            return self.weights.turn_places(*places)
        return self.weights.turn(self.position)

    def _seen(self, kept: int, many: int, device: torch.device) -> Tensor | None:
        """Which positions of the cache each of the inputs of `advance_many` attends to: bool [many, T]; None is all."""
        end = self.position + many
        more = self._reserve(end) - end
        if many == 1 and not more:
            return None
        new = torch.ones(many, many, dtype=torch.bool, device=device).tril()
        new[kept:, kept - 1 :] = False
        new |= torch.eye(many, dtype=torch.bool, device=device)
        return torch.cat([new.new_ones(many, self.position), new, new.new_zeros(many, more)], 1)

    def _attend_many(
        self,
        index: int,
        qkv: Tensor,
        head_norm: Callable[[Tensor], Tensor] | None,
        seen: Tensor | None,
        turn: Callable[[Tensor], Tensor],
        first: int,
    ) -> Tensor:
        """[R, M, (H + 2 * Hkv) * hd] -> what the inputs from `first` on read, [R, M - first, H * hd].

        The new keys are written behind the cache's position.
        """
        weights = self.weights
        rows, many = qkv.shape[:2]
        shared, end = weights.num_key_value_heads, self.position + many
        heads = qkv.view(rows, many, weights.num_heads + 2 * shared, weights.head_dim)
        query_key = heads[:, :, : weights.num_heads + shared]
        if head_norm is not None:
            query_key = head_norm(query_key)
        query_key = turn(query_key)
        self.keys[index, :rows, :, self.position : end] = query_key[:, :, weights.num_heads :].transpose(1, 2)
        self.values[index, :rows, :, self.position : end] = heads[:, :, weights.num_heads + shared :].transpose(1, 2)
        query = query_key[:, first:, : weights.num_heads].unflatten(2, (shared, -1))  # [R, m, Hkv, G, hd]
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)  # [R, Hkv, G * m, hd]
        groups = weights.num_heads // shared
        keys, values = (cache[index, :rows, :, : self._reserve(end)] for cache in (self.keys, self.values))
        read = attention(query, keys, values, None if seen is None else seen[first:].repeat(groups, 1))
        return read.unflatten(2, (groups, many - first)).permute(0, 3, 1, 2, 4).flatten(2)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.weights.head(self.weights.norm(hidden))

    def _attend(
        self,
        index: int,
        qkv: Tensor,
        head_norm: Callable[[Tensor], Tensor] | None,
        turn: Callable[[Tensor], Tensor],
        seen: Tensor | None,
    ) -> Tensor:
        """[R, (H + 2 * Hkv) * hd] -> the heads' attention over the positions so far, [R, H * hd]."""
        weights, position = self.weights, self.position
        rows, shared, width = qkv.shape[0], weights.num_key_value_heads, weights.head_dim
        turned = weights.num_heads + shared
        heads = qkv.view(rows, turned + shared, width)
        query_key = heads[:, :turned]  # [R, H + Hkv, hd]
        query_key = turn(query_key if head_norm is None else head_norm(query_key))
        keys, values = self.keys[index, :rows], self.values[index, :rows]
        keys[:, :, position] = query_key[:, weights.num_heads :]
        values[:, :, position] = heads[:, turned:]
        # Query heads that share a key head form a group and take the place of query positions. A mask is needed for the
        # rest of a block only, because the cache holds the past.
        query = query_key[:, : weights.num_heads].view(rows, shared, -1, width)  # [R, Hkv, H / Hkv, hd]
        end = position + 1 if seen is None else seen.shape[1]
        read = attention(query, keys[:, :, :end], values[:, :, :end], seen)
        return read.reshape(rows, -1)


def attention(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None) -> Tensor:
    """query [R, Hkv, G, hd], keys and values [R, Hkv, T, hd] -> [R, Hkv, G, hd]; `seen` bool [G, T], None is all."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    # On CPUs the fused kernel splits its sums by the number of rows, and it is no faster for one query.
    shape, (keys, values) = query.shape, (keys.flatten(0, 1), values.flatten(0, 1))
    if values.dtype == torch.bfloat16:  # a copy that oneDNN would make too, but of another layout, with other sums
        keys, values = keys.contiguous(), values.contiguous()
    scores = torch.bmm((query * shape[-1] ** -0.5).flatten(0, 1), keys.mT)  # [R * Hkv, G, T]
    if seen is not None:
        scores.masked_fill_(~seen, float("-inf"))
    return torch.bmm(scores.softmax(-1), values).view(shape)


def reads_blocks(weights: DecoderWeights) -> bool:
    return weights.device.type == "cpu" and weights.dtype == torch.bfloat16


def read_positions(weights: DecoderWeights, end: int) -> int:
    """Positions of the cache that attention reads if `end` are written: those, or whole blocks."""
    return -(-end // _BLOCK) * _BLOCK if reads_blocks(weights) else end


def _lengthened(cache: Tensor, length: int) -> Tensor:
    """[..., T, hd] -> [..., length, hd]. New positions are zeros: a hidden NaN times nothing would be NaN."""
    longer = cache.new_zeros(*cache.shape[:-2], length, cache.shape[-1])
    longer[..., : cache.shape[-2], :] = cache
    return longer

"""Decoding in shapes that never change, from buffers that never move: what a CUDA graph can capture.

`Decoder` has a cache that grows and a position that is a Python number. Here the cache is read whole at every step, a
mask hides what is not written yet, and the position is a tensor. A step takes nothing from the host and gives nothing
to it, so it may be recorded once and replayed for every code: the host then starts one graph instead of some hundred
kernels. On a CPU nothing is gained; the codes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.decoding import attention, read_positions
from codegrid.prior.distribution import SamplingConfig, filter_logits, guided_logits, inverse_cdf
from codegrid.prior.guidance import guidance_of
from codegrid.prior.orders import codes_per_step, place_pairs
from codegrid.prior.sequence_config import SequenceConfig
from codegrid.prior.steps import Part, in_double

Decoding = Literal["eager", "static", "graph"]


def check_decoding(decoding: str, device: torch.device) -> None:
    """Raises CodegridError: `decoding` is none of `Decoding`, or is for another device."""
    require(
        decoding in ("eager", "static", "graph"), f"decoding is {decoding!r}.", "Give 'eager', 'static' or 'graph'."
    )
    require(
        decoding != "graph" or device.type == "cuda",
        f"decoding is 'graph', which records CUDA graphs, and the prior is on {device.type}.",
        "Leave it at 'eager' there.",
    )


class StaticDecoder:
    """The network of `Decoder` with a cache that is read whole."""

    def __init__(self, weights: DecoderWeights, rows: int) -> None:
        self.weights, self.rows = weights, rows
        length = read_positions(weights, weights.length)
        shape = (len(weights.layers), rows, weights.num_key_value_heads, length, weights.head_dim)
        # Zeros: what is hidden counts nothing times its value, and nothing times NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=weights.dtype, device=weights.device)  # [layers, R, Hkv, T, hd]
        self.values = torch.zeros_like(self.keys)

    def advance(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        seen: Tensor,
        places: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Some tokens of every row, [R, M] -> the input of `logits`, [R, M, D].

        Args:
            positions: of the model, [M].
            slots: of the cache, [M]: where their keys and values go.
            seen: which slots each of them attends to, bool [M, T].
            places: own and target places of each, each [R, M], of a prior of any order.
        """
        weights, (rows, many) = self.weights, tokens.shape
        hidden = weights.embed(tokens, positions)  # [R, M, D]
        if places is not None and weights.embed_places is not None:
            hidden = hidden + weights.embed_places(*places)
        if places is not None and weights.turn_places is not None:
            turn = weights.turn_places(*places)
        else:
            turn = weights.turn(positions[:, None])  # the same for all heads
        if self.keys.shape[3] > seen.shape[1]:  # whole blocks
            seen = F.pad(seen, (0, self.keys.shape[3] - seen.shape[1]))
        hidden = hidden.flatten(0, 1)
        for index, layer in enumerate(weights.layers):
            qkv = layer.qkv(layer.attention_norm(hidden)).view(rows, many, -1)
            query_key, values = self._heads(qkv, layer.head_norm, turn)
            hidden = hidden + layer.output(self._attend(index, query_key, values, slots, seen).flatten(0, 1))
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        return hidden.view(rows, many, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.weights.head(self.weights.norm(hidden))

    def _heads(
        self,
        qkv: Tensor,
        head_norm: Callable[[Tensor], Tensor] | None,
        turn: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """[R, M, (H + 2 * Hkv) * hd] -> rotated queries and keys [R, M, H + Hkv, hd], and values [R, M, Hkv, hd]."""
        turned = self.weights.num_heads + self.weights.num_key_value_heads
        heads = qkv.unflatten(2, (-1, self.weights.head_dim))
        query_key = heads[:, :, :turned]
        return turn(query_key if head_norm is None else head_norm(query_key)), heads[:, :, turned:]

    def _attend(self, index: int, query_key: Tensor, new_values: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        """[R, M, H * hd]; the new keys and values are written to their slots first."""
        weights, many = self.weights, len(slots)
        shared = weights.num_key_value_heads
        groups = weights.num_heads // shared
        keys, values, end = self.keys[index], self.values[index], _end(slots)
        end = None if end is None else read_positions(weights, end)
        keys.index_copy_(2, slots, query_key[:, :, weights.num_heads :].transpose(1, 2))
        values.index_copy_(2, slots, new_values.transpose(1, 2))
        query = query_key[:, :, : weights.num_heads].unflatten(2, (shared, -1))  # [R, M, Hkv, G, hd]
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)  # [R, Hkv, G * M, hd]
        read = attention(query, keys[:, :, :end], values[:, :, :end], seen[:, :end].repeat(groups, 1))
        return read.unflatten(2, (groups, many)).permute(0, 3, 1, 2, 4).flatten(2)


def _end(slots: Tensor) -> int | None:
    """How much of the cache is written, where a look costs nothing: on a CPU, outside of a trace. None reads it whole.

    A product sums in another order over another number of slots: read so far, logits have the eager way's bits.
    """
    return int(slots[-1]) + 1 if slots.device.type == "cpu" and not torch.compiler.is_compiling() else None


class StaticSampling:
    """Draws codes, a step at a time, from buffers that stay where they are.

    Args:
        images: in every batch. A smaller batch is filled up with its own images.
        num_steps: steps of several codes; None is a code a step.
        graphs: record each kind of step once as a CUDA graph, and replay it.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        sequence: SequenceConfig,
        settings: SamplingConfig,
        images: int,
        num_steps: int | None,
        graphs: bool,
    ) -> None:
        self.sequence, self.settings, self.num_steps = sequence, settings, num_steps
        device, length, prefix = weights.device, sequence.length, sequence.prefix_length
        scales = guidance_of(settings, sequence).mixes
        require(
            not any(isinstance(scale, tuple) for scale in scales),
            f"part_guidance is {settings.part_guidance}, and decoding is in fixed shapes of two branches at most.",
            "Leave decoding at 'eager', or give equal scales.",
        )
        self.guided = any(scale != 1 for scale in scales)
        self.images = -(-images // weights.row_multiple) * weights.row_multiple
        rows = (1 + self.guided) * self.images
        self.decoder = StaticDecoder(weights, rows)
        self.graphs = Graphs(self._state) if graphs else None
        whole = {"dtype": torch.int64, "device": device}
        double = {"dtype": torch.float64, "device": "cpu" if device.type == "mps" else device}
        self.scales = torch.tensor(scales, dtype=torch.float64).to(double["device"], non_blocking=True)  # [L]
        self.null = sequence.null_prefix.to(device, non_blocking=True)
        self.image = torch.arange(rows, device=device) % self.images  # [R], the image of each row
        self.order, self.given = (torch.zeros(self.images, length, **whole) for _ in range(2))
        self.uniforms = torch.zeros(self.images, length, **double)
        self.own, self.target = (torch.zeros(self.images, prefix + length - 1, **whole) for _ in range(2))
        # What a step changes beside the cache: the number of tokens that the cache holds after it, the tokens, the
        # codes, and whether all logits were finite.
        self.end = torch.zeros(1, **whole)
        self.fed = torch.zeros(rows, prefix + length, **whole)
        self.codes = torch.zeros(self.images, length, **whole)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.greedy = True

    def draw(self, part: Part, report: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Codes [n, L] of the images of `part`, and whether all logits were finite (bool, on the device)."""
        prefix, length, known = self.sequence.prefix_length, self.sequence.length, 0
        self._load(part)
        if self.num_steps is None:
            self.end.fill_(1)
            for _ in range(prefix - 1):
                self._run(1, 0)
            kept, sizes = 1, [1] * length
        else:
            known = part.num_known
            kept = prefix + known
            self.end.fill_(kept)
            sizes = codes_per_step(length - known, self.num_steps)
        done = known
        for size in sizes:
            self._run(kept, size)
            kept, done = size, done + size
            report(done)
        return self.codes[: len(part.prefixes)].clone(), self.finite.clone()

    def _load(self, part: Part) -> None:
        images, prefix = len(part.prefixes), self.sequence.prefix_length
        fill = torch.arange(self.images, device=self.image.device) % images
        if part.order is None:
            self.order.copy_(torch.arange(self.sequence.length, device=self.image.device).expand_as(self.order))
        else:
            self.order.copy_(part.order[fill])
        self.given.fill_(-1)
        self.given[:, : part.given.shape[1]] = part.given[fill]
        self.greedy = part.uniforms is None
        if part.uniforms is not None:
            self.uniforms.copy_(part.uniforms[fill.to(self.uniforms.device)])
        own, target = place_pairs(self.order, prefix)
        self.own.copy_(own)
        self.target.copy_(target)
        self.fed[:, :prefix] = part.prefixes[fill][self.image]
        if self.guided:
            self.fed[self.images :, :prefix] = self.null
        self.fed[:, prefix:] = self.given.gather(1, self.order).clamp(min=0)[self.image]
        self.codes.copy_(self.given)
        self.finite.fill_(True)

    def _state(self) -> list[Tensor]:
        return [self.end, self.fed, self.codes, self.finite]

    def _run(self, kept: int, asked: int) -> None:
        if self.graphs is None:
            self._step(kept, asked)
        else:
            self.graphs.run((kept, asked, self.greedy), lambda: self._step(kept, asked))

    def _step(self, kept: int, asked: int) -> None:
        """Feed the last `kept` tokens before `end`, and draw the next `asked` codes.

        All of them are questions of the last token, which see the tokens before it and no other question; their entries
        of the cache are written over by the next step. 0 draws nothing.
        """
        decoder, device = self.decoder, self.image.device
        many = kept + max(asked, 1) - 1
        entries = torch.arange(many, device=device)
        slots = self.end - kept + entries  # [M]
        fed = torch.minimum(slots, self.end - 1)  # a further question is the last token again
        # What comes before an entry is seen; of a further question not the last token, whose place it takes.
        before = torch.where(entries < kept, slots, self.end - 2)[:, None]
        cache = torch.arange(decoder.weights.length, device=device)
        seen = (cache <= before) | (cache == slots[:, None])  # [M, T]
        places = (self.own.index_select(1, fed), self.target.index_select(1, slots))
        places = (places[0].index_select(0, self.image), places[1].index_select(0, self.image))  # [R, M] each
        tokens = self.fed.index_select(1, fed)
        hidden = decoder.advance(tokens, fed, slots, seen, places)[:, kept - 1 :]  # [R, asked, D]
        if not asked:
            self.end += 1
            return
        logits = decoder.logits(hidden.flatten(0, 1)).view(decoder.rows, asked, -1)
        first = self.end - self.sequence.prefix_length  # [1], the codes before these
        logits = self._guided(in_double(logits), first)  # [n, asked, K]
        following = first + torch.arange(asked, device=device)
        places = self.order.index_select(1, following)  # [n, asked]
        given = self.given.gather(1, places)
        self.finite &= (torch.isfinite(logits.amax(-1)).to(device) | (given >= 0)).all()
        drawn = self._drawn(logits.flatten(0, 1), places).view_as(places).to(device)
        drawn = torch.where(given >= 0, given, drawn)
        self.codes.scatter_(1, places, drawn)
        self.fed.index_copy_(1, following + self.sequence.prefix_length, drawn.index_select(0, self.image))
        self.end += asked

    def _guided(self, logits: Tensor, first: Tensor) -> Tensor:
        """Logits [R, asked, K] float64 -> [n, asked, K], by the scale at the code `first`."""
        if not self.guided:
            return guided_logits(logits, self.images, 1.0)
        scale = self.scales.index_select(0, first.to(self.scales.device))
        conditional, unconditional = logits[: self.images], logits[self.images :]
        return torch.where(scale == 1, conditional, unconditional + scale * (conditional - unconditional))

    def _drawn(self, logits: Tensor, places: Tensor) -> Tensor:
        if self.greedy:
            return logits.argmax(-1)
        config = self.settings
        kept = filter_logits(logits, config.temperature, config.top_k, config.top_p, config.min_p, rank_all=True)
        return inverse_cdf(kept, self.uniforms.gather(1, places.to(self.uniforms.device)).flatten())


class Graphs:
    """CUDA graphs of steps that read and write fixed memory, recorded when first asked for, and their shared memory.

    Args:
        state: the tensors that a step changes and that its next run must find as they were: before a step is recorded
            it is run, so that libraries make their choices and their workspaces.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self.state = state
        self.recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.pool: tuple[int, int] | None = None

    def run(self, kind: Hashable, step: Callable[[], None]) -> None:
        if kind not in self.recorded:
            self.recorded[kind] = self._record(step)
        self.recorded[kind].replay()

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        kept = [tensor.clone() for tensor in self.state()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
                for tensor, before in zip(self.state(), kept, strict=True):
                    tensor.copy_(before)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step()
        self.pool = self.pool or graph.pool()
        return graph


class Forward:
    """The logits of a masked prior, [B, T] int64 -> [B, T, V]; as one CUDA graph for each shape if `graphs`."""

    def __init__(self, model: PreTrainedModel, graphs: bool) -> None:
        self.model = model
        self.graphs = Graphs(lambda: []) if graphs else None
        self.inputs: dict[torch.Size, Tensor] = {}
        self.outputs: dict[torch.Size, Tensor] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.graphs is None:
            return self.model(input_ids=tokens).logits
        shape = tokens.shape
        self.inputs.setdefault(shape, torch.empty_like(tokens)).copy_(tokens)
        self.graphs.run(shape, lambda: self._step(shape))
        return self.outputs[shape]

    def _step(self, shape: torch.Size) -> None:
        self.outputs[shape] = self.model(input_ids=self.inputs[shape]).logits

"""Draws many codes a step: of a prior of any order with its cache, and of a masked prior.

The codes of one step are drawn independently of each other, so few steps cost some of the quality.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.prior.decoding import Decoder
from codegrid.prior.distribution import SamplingConfig, filter_logits, guided_logits, inverse_cdf
from codegrid.prior.guidance import guidance_of
from codegrid.prior.orders import codes_per_step, place_pairs
from codegrid.prior.sequence_config import SequenceConfig


class Part(NamedTuple):
    """Some images that are drawn together; all have as many known codes.

    Attributes:
        prefixes: [n, prefix_length].
        given: codes by token [n, L], -1 where a code is to be drawn.
        order: orders of the tokens [n, L], the known ones first; None orders them by confidence (masked priors only).
        uniforms: [n, L] by token; None is greedy.
        known: how many of the images have a given code at each step; where it ends, none has. It is counted on the CPU:
            to ask the device would be a sync point.
        noise: [n, steps, L] in [0, 1), for the order by confidence; else None.
    """

    prefixes: Tensor
    given: Tensor
    order: Tensor | None
    uniforms: Tensor | None
    known: tuple[int, ...]
    noise: Tensor | None = None

    def image(self, index: int) -> Part:
        """One of the images alone; all have as many known codes."""
        own = [None if value is None else value[index : index + 1] for value in self if not isinstance(value, tuple)]
        known = tuple(count // len(self.prefixes) for count in self.known)
        return Part(*own[:4], known, own[4])

    @property
    def num_known(self) -> int:
        """Known codes of each image, where all have as many."""
        return sum(self.known) // len(self.prefixes)


Report = Callable[[int], None]


def draw_in_steps(
    decoder: Decoder,
    sequence: SequenceConfig,
    part: Part,
    settings: SamplingConfig,
    num_steps: int,
    report: Report,
) -> tuple[Tensor, Tensor]:
    """Codes [n, L] of a prior of any order, and whether all logits were finite (bool, on the device)."""
    images, prefix = part.prefixes.shape
    device = part.prefixes.device
    image = torch.arange(decoder.rows, device=device) % images  # [R]
    order = part.order
    assert order is not None
    codes, done = part.given.clone(), part.num_known
    guidance = guidance_of(settings, sequence)
    begin = guidance.prefixes(part.prefixes, decoder.rows, sequence)  # [R, prefix]
    tokens = torch.cat([begin, codes.gather(1, order[:, :done])[image]], 1)  # [R, N], not yet fed
    own, target = (places[image] for places in place_pairs(order, prefix))  # [R, prefix + L - 1]
    finite = torch.ones((), dtype=torch.bool, device=device)
    decoder.restart()
    for size in codes_per_step(sequence.length - done, num_steps):
        last = prefix + done - 1  # the input that asks
        first = last + 1 - tokens.shape[1]
        owns = torch.cat([own[:, first : last + 1], own[:, last : last + 1].expand(-1, size - 1)], 1)
        hidden = decoder.advance_many(tokens, (owns, target[:, first : last + size]), size)  # [R, size, D]
        logits = decoder.logits(hidden.flatten(0, 1)).view(len(hidden), size, -1)
        logits = guided_logits(in_double(logits), images, guidance.mixes[done]).flatten(0, 1)  # [n * size, K]
        finite &= torch.isfinite(logits.amax(-1)).all().to(device)
        places = order[:, done : done + size]  # [n, size]
        codes.scatter_(1, places, _drawn(logits, places, part.uniforms, settings).to(device))
        tokens = codes.gather(1, places)[image]
        done += size
        report(done)
    return codes, finite


def draw_around(
    forward: Callable[[Tensor], Tensor],
    sequence: SequenceConfig,
    part: Part,
    settings: SamplingConfig,
    num_steps: int,
    choice_temperature: float,
    rows: int,
    report: Report,
) -> tuple[Tensor, Tensor]:
    """Codes [n, L] of a masked prior (MaskGIT, https://arxiv.org/abs/2202.04200), and whether all logits were finite.

    Args:
        forward: the model's forward pass, tokens [R, n + L] -> logits [R, n + L, V].
        choice_temperature: of the noise in the order by confidence: log p + t (1 - share of the steps done) Gumbel.
        rows: images in every forward pass; the batch is padded to them.
    """
    images, prefix = part.prefixes.shape
    device = part.prefixes.device
    image = torch.arange(rows, device=device) % images
    codes, done = part.given.clone(), part.num_known
    guidance = guidance_of(settings, sequence)
    finite = torch.ones((), dtype=torch.bool, device=device)
    sizes = codes_per_step(sequence.length - done, num_steps)
    for step, size in enumerate(sizes):
        shown = codes.masked_fill(codes < 0, sequence.null_token)[image]
        begin, mix = part.prefixes[image], guidance.mixes[done]
        if mix != 1:
            drops = [[not keep for keep in keeps] for keeps in guidance.keeps]
            begin = torch.cat([sequence.without(begin, drop) for drop in drops])
            shown = shown.repeat(guidance.branches, 1)
        logits = forward(torch.cat([begin, shown], 1))[:, prefix:, : sequence.codebook_size]
        both = torch.cat([branch[:images] for branch in logits.split(rows)])  # without the padding
        every = torch.arange(sequence.length, device=device).expand(images, -1)
        places = every if part.order is None else part.order[:, done : done + size]  # [n, m]
        branches = len(both) // images
        asked = both.gather(1, places.repeat(branches, 1)[..., None].expand(-1, -1, both.shape[-1]))
        guided = guided_logits(in_double(asked), images, mix).flatten(0, 1)  # [n * m, K]
        finite &= torch.isfinite(guided.amax(-1)).all().to(device)
        drawn = _drawn(guided, places, part.uniforms, settings).to(device)  # [n, m]
        if part.order is None:
            heat = choice_temperature * (1 - (step + 1) / len(sizes))
            assert part.noise is not None
            gumbel = -torch.log(-torch.log(part.noise[:, step].clamp(1e-12, 1 - 1e-12)))
            surety = guided.log_softmax(-1).view(images, -1, guided.shape[-1]).to(device)
            surety = surety.gather(-1, drawn[..., None])[..., 0] + heat * gumbel
            places = surety.masked_fill(codes >= 0, float("-inf")).topk(size, dim=1).indices
            drawn = drawn.gather(1, places)
        codes.scatter_(1, places, drawn)
        done += size
        report(done)
    return codes, finite


def in_double(logits: Tensor) -> Tensor:
    return (logits.cpu() if logits.device.type == "mps" else logits).double()  # mps has no float64


@contextlib.contextmanager
def in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """The model's evaluation mode; afterwards it has the mode that it had."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _drawn(logits: Tensor, places: Tensor, uniforms: Tensor | None, settings: SamplingConfig) -> Tensor:
    """Logits [n * m, K] of the tokens `places` [n, m] -> codes [n, m]."""
    if uniforms is None:
        return logits.argmax(-1).view_as(places)
    kept = filter_logits(logits, settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    return inverse_cdf(kept, uniforms.gather(1, places.to(uniforms.device)).flatten()).view_as(places)

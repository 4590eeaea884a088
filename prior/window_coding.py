"""Logits of the codes of a grid larger than trained, in the order in which they are coded: for a writer and a reader.

Both yield the same places one step after the other. The writer knows all codes and computes a round in few parallel
passes. The reader gets the codes of a step by `send` and computes one step after the other, with a key/value cache.
Their logits differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.architectures import architecture_of
from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.likelihood import code_logits
from codegrid.prior.orders import place_pairs
from codegrid.prior.sequence import check_codes
from codegrid.prior.steps import in_evaluation
from codegrid.prior.windows import Round, WindowPlan

_AT_ONCE = 2**25  # logits of the writer at once, in numbers


class CodingStep(NamedTuple):
    """Codes that are coded next, one of each window of a round that has one at this step.

    Attributes:
        places: indices of the codes among the grid's codes [H, W, depth], int64 [m].
        logits: [N, m, K] in the model's dtype and on its device, given the known codes of their windows.
    """

    places: Tensor
    logits: Tensor


def logits_to_write(model: PreTrainedModel, plan: WindowPlan, codes: Tensor, prefixes: Tensor) -> Iterator[CodingStep]:
    """The steps in which whole grids are coded.

    Args:
        model: the bare prior, any device. It computes in evaluation mode.
        plan: the windows; their positions that are `known` are not coded.
        codes: [N, H, W] or [N, H, W, depth] integers.
        prefixes: [N, prefix_length] int64: `prefix_tokens` of the images' classes, or `SequenceConfig.null_prefix`.

    Raises:
        CodegridError: it is a masked prior, or the codes do not fit it or the plan.
    """
    reads, sequence = checked_reads(model), plan.sequence
    shape = (*plan.grid_shape, sequence.depth)
    require(
        codes.numel() == len(codes) * plan.grid_shape[0] * plan.grid_shape[1] * sequence.depth and len(codes) > 0,
        f"codes are {list(codes.shape)}.",
        f"Give at least one grid of {' x '.join(map(str, shape))}.",
    )
    codes = codes.reshape(len(codes), -1).long().cpu()  # [N, C]
    check_codes(codes, sequence)
    return _written(model, plan, codes, prefixes.cpu(), reads)


def _written(
    model: PreTrainedModel, plan: WindowPlan, codes: Tensor, prefixes: Tensor, reads: str
) -> Iterator[CodingStep]:
    for one in plan.rounds():
        logits = _logits_of_round(model, plan, one, codes, prefixes, reads)  # [N, m, L, K]
        for step, windows, places in _steps(one, reads):
            yield CodingStep(places, logits[:, windows, step])


@torch.no_grad()
def _logits_of_round(
    model: PreTrainedModel, plan: WindowPlan, one: Round, codes: Tensor, prefixes: Tensor, reads: str
) -> Tensor:
    sequence, windows = plan.sequence, len(one.codes)
    tokens = torch.cat([prefixes.repeat_interleave(windows, 0), codes[:, one.codes].flatten(0, 1)], 1)  # [N * m, n + L]
    order = one.orders(reads)
    order = None if order is None else order.repeat(len(codes), 1)
    size = max(1, _AT_ONCE // (sequence.length * sequence.codebook_size))
    parts = []
    with in_evaluation(model), torch.autocast(model.device.type, enabled=False):
        for first in range(0, len(tokens), size):
            part = slice(first, first + size)
            parts.append(code_logits(model, tokens[part], sequence, None if order is None else order[part]))
    return torch.cat(parts).unflatten(0, (len(codes), windows))


def logits_to_read(
    model: PreTrainedModel, plan: WindowPlan, prefixes: Tensor, known_codes: Tensor | None = None
) -> Generator[CodingStep, Tensor, Tensor]:
    """The same steps for a reader: send the codes of a step, int64 [N, m], to get the next one.

        reading = logits_to_read(model, plan, prefixes)
        step = next(reading)
        while True:
            try:
                step = reading.send(codes_of(step))
            except StopIteration as end:
                grids = end.value
                break

    Args:
        model, plan, prefixes: as in `logits_to_write`.
        known_codes: [N, H, W] or [N, H, W, depth], of which the `known` positions of the plan are read.

    Returns:
        The codes, int64 [N, H, W] or [N, H, W, depth], on the CPU: the value of StopIteration.

    Raises:
        CodegridError: it is a masked prior, or the plan has known positions and there are no known_codes.
    """
    reads, sequence = checked_reads(model), plan.sequence
    require(
        plan.known is None or known_codes is not None,
        "The plan has known positions, and no known_codes are given.",
        "Give the codes.",
    )
    codes = torch.zeros(len(prefixes), *plan.codes_shape, dtype=torch.int64)
    if known_codes is not None:
        codes.copy_(known_codes.reshape(codes.shape))
    positions = sequence.prefix_length + sequence.length - 1
    weights = read_weights(model, sequence.codebook_size, positions)
    return _read(weights, plan, prefixes.cpu(), codes, reads)


def _read(
    weights: DecoderWeights, plan: WindowPlan, prefixes: Tensor, codes: Tensor, reads: str
) -> Generator[CodingStep, Tensor, Tensor]:
    flat = codes.view(len(codes), -1)  # [N, C]
    decoder: Decoder | None = None
    for one in plan.rounds():
        images, windows = len(codes), len(one.codes)
        rows = -(-images * windows // weights.row_multiple) * weights.row_multiple
        if decoder is None or decoder.rows != rows:
            decoder = None  # the old cache goes first
            decoder = Decoder(weights, rows)
        row = torch.arange(rows) % (images * windows)  # the rest of the rows repeats images
        order = one.orders(reads)
        places = (
            None
            if order is None
            else tuple(
                part.repeat(images, 1)[row].to(weights.device)
                for part in place_pairs(order, plan.sequence.prefix_length)
            )
        )
        decoder.restart()
        tokens = prefixes.repeat_interleave(windows, 0)  # [N * m, n]
        for column in tokens[:, :-1].unbind(1):
            _advance(decoder, column[row], places)
        last = tokens[:, -1]
        steps = {step: (coded, where) for step, coded, where in _steps(one, reads)}
        by_step = one.codes if order is None else one.codes.gather(1, order)  # [m, L]
        for step in range(max(steps) + 1):
            hidden = _advance(decoder, last[row], places)
            if step in steps:
                coded, where = steps[step]
                flat[:, where] = yield CodingStep(where, _logits(decoder, hidden, images, windows)[:, coded])
            last = flat[:, by_step[:, step]].flatten()  # [N * m]; what is not coded yet is not reached before
    return codes


def _steps(one: Round, reads: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each step at which a code of a round is coded: its number, the windows [k] and the places [k]."""
    order = one.orders(reads)
    codes, new = (part if order is None else part.gather(1, order) for part in (one.codes, one.new))
    for step in range(new.shape[1]):
        windows = new[:, step].nonzero()[:, 0]
        if len(windows):
            yield step, windows, codes[windows, step]


@torch.no_grad()
def _advance(decoder: Decoder, tokens: Tensor, places: tuple[Tensor, ...] | None) -> Tensor:
    step = decoder.position
    at = None if places is None else (places[0][:, step], places[1][:, step])
    with torch.autocast(decoder.weights.device.type, enabled=False):
        return decoder.advance(tokens.to(decoder.weights.device), at)


@torch.no_grad()
def _logits(decoder: Decoder, hidden: Tensor, images: int, windows: int) -> Tensor:
    with torch.autocast(decoder.weights.device.type, enabled=False):
        return decoder.logits(hidden)[: images * windows].unflatten(0, (images, windows))  # [N, m, K]


def checked_reads(model: PreTrainedModel) -> str:
    """How the prior reads (`Architecture.reads`).

    Raises:
        CodegridError: it is masked: it predicts its unknown codes independently of each other.
    """
    record = architecture_of(model)
    reads = "before" if record is None else record.reads
    require(
        reads != "around",
        "A masked prior gives no likelihood in one pass: it predicts its unknown codes independently of each other.",
        "Code with a prior of raster or any order.",
    )
    return reads

"""What a file promises, on many images: codes come back exactly, from disturbed logits, too, and damage never passes.

The ordinary tests take a few images. `make test-slow` takes as many as the promises name: 10,000 images by every model,
2,000 by disturbed decoders, 10,000 mutations.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.codec import angles
from codegrid.pipelines.codec import prior as module
from codegrid.pipelines.codec.decisions import bits_of, path, path_halves, tree_sums
from codegrid.pipelines.codec.prior import BLOCK, PriorModel
from codegrid.pipelines.compression.codec import ImageCodec
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.sampling import sample_codes
from codegrid.prior.sequence import to_codes

MODELS = ("fixed", "context", "prior")


def drawn(codec: ImageCodec, number: int, seed: int = 0) -> tuple[torch.Tensor, list[int] | None]:
    """Different grids from the prior's own sampler, and their classes: int64 [N, h, w(, depth)]."""
    pipe = codec.pipe
    classes = pipe.sequence.num_classes
    labels = [index % classes for index in range(number)] if classes else None
    seeds = range(seed * number, (seed + 1) * number)
    tokens = sample_codes(pipe.prior, pipe.sequence, labels, seeds=seeds, batch_size=64)
    return to_codes(tokens, pipe.sequence), labels


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_codes_of_many_images_come_back_exactly(codec: ImageCodec, number: int) -> None:
    codes, labels = drawn(codec, number)
    assert len(codes.flatten(1).unique(dim=0)) > number / 2
    for model in MODELS:
        blob = codec.archive(codes, labels, model)
        assert torch.equal(codec.codes(blob), codes), model


class Worst(Decoder):
    """A decoder on another machine: each logit is off by the bound, in the direction that is worst for the coded path.

    A decision changes if its angle crosses a border. Its angle moves most if the logits of its node's upper half go up
    and those of the lower half down, or the other way. Each code's logits push the decision of its path that is nearest
    to a border, by what it can move; those of other nodes go up or down by chance.
    """

    directions: np.ndarray  # float64 [N, L, K], of -1 and 1
    written: np.ndarray  # the writer's logits, [N, L, K]
    by: float
    first: int

    def restart(self) -> None:
        type(self).first += 0 if self.position == 0 else self.rows
        super().restart()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        length = self.written.shape[1]
        place = self.position - (self.weights.length - length) - 1
        images = slice(self.first, self.first + self.rows)
        own = logits.double().numpy().copy()
        written, push = self.written[images, place], self.directions[images, place]
        moved = own[: len(written)] + self.by * push
        own[: len(written)] = np.clip(moved, written - self.by, written + self.by)
        return torch.from_numpy(own)


def worst_directions(coder: PriorModel, logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Logits [L, K] and codes [L] of an image -> -1 and 1, [L, K]."""
    size, number, epsilon = logits.shape[1], angles.cells(coder.bound), 2.0**-coder.bound
    theta = angles.angles(*path_halves(tree_sums(np.exp(logits - logits.max(-1, keepdims=True))), codes))
    bits, decided = path(codes, size)
    shifts = np.zeros(len(codes))
    for first in range(0, len(codes), BLOCK):
        block = slice(first, first + BLOCK)
        attempt, _ = coder.cheapest(theta[block][decided[block]], bits[block][decided[block]])
        shifts[block] = angles.shift(attempt) if attempt < angles.TRIES else 0
    place = theta * number / np.pi + shifts[:, None] / angles.FINE  # in cells
    reach = np.maximum(epsilon * np.sin(theta) * number / np.pi, 1e-30)  # d theta = epsilon sin theta for both halves
    above, below = (np.ceil(place) - place) / reach, (place - np.floor(place)) / reach
    nearest = np.where(decided, np.minimum(above, below), np.inf).argmin(1)  # the depth of the decision
    rows = np.arange(len(codes))
    sign = np.where(above[rows, nearest] < below[rows, nearest], 1, -1)
    found = np.random.default_rng(0).choice([-1.0, 1.0], logits.shape)
    height = bits_of(size)
    for row, depth in enumerate(nearest):
        step = 1 << (height - 1 - depth)
        start = int(codes[row]) >> (height - depth) << (height - depth)
        found[row, start : start + step] = -sign[row]
        found[row, start + step : start + 2 * step] = sign[row]
    return found


def disturbed(coder: PriorModel, codes: np.ndarray, labels: list[int] | list[None], scale: float = 1.0) -> np.ndarray:
    """The codes that a reader gets whose logits are off by `scale` bounds."""
    payloads = coder.write(codes, labels)
    tokens = coder._tokens(codes, labels)
    written = coder.logits(tokens)
    target = tokens[:, coder.sequence.prefix_length :].numpy()
    Worst.directions = np.stack([worst_directions(coder, *one) for one in zip(written, target, strict=True)])
    Worst.written, Worst.by, Worst.first = written, scale * 2.0**-coder.bound, 0
    module.Decoder = Worst
    try:
        return coder.read(payloads, codes.shape[1:], labels)
    finally:
        module.Decoder = Decoder


def in_parts(codec: ImageCodec, number: int, seed: int) -> Iterator[tuple[np.ndarray, list[int] | list[None]]]:
    """Codes [n, h, w, depth] and classes of `number` images: few enough at once for the logits of all."""
    codes, labels = drawn(codec, number, seed)
    grids = codes.reshape(*codes.shape[:3], -1).numpy()
    for first in range(0, number, 64):
        some = grids[first : first + 64]
        yield some, [None] * len(some) if labels is None else labels[first : first + 64]


@pytest.mark.parametrize("number", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_logits_off_by_the_bound_in_the_worst_direction(codec: ImageCodec, number: int) -> None:
    coder, wrong = codec.model("prior"), 0
    assert isinstance(coder, PriorModel)
    for codes, labels in in_parts(codec, number, 1):
        wrong += int((disturbed(coder, codes, labels) != codes).sum())
    assert wrong == 0


def test_far_beyond_the_bound_the_checksum_refuses(codec: ImageCodec) -> None:
    """The worst direction is one: it is felt a little beyond the bound, and then no picture is made up."""
    coder = codec.model("prior", 6)
    assert isinstance(coder, PriorModel)
    for codes, labels in in_parts(codec, 64, 2):
        try:
            found = disturbed(coder, codes, labels, 3.0)
        except CodegridError:
            return
        assert (found != codes).any()


def ways_to_compute(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Threads, packed or plain products, and images at once, in turn."""
    threads = torch.get_num_threads()
    try:
        for number, pack, rows in ((1, None, 64), (2, None, 64), (1, False, 64), (2, False, 7), (1, None, 1)):
            torch.set_num_threads(number)
            monkeypatch.setattr(module, "read_weights", functools.partial(read_weights, pack=pack))
            monkeypatch.setattr(module, "_MOST_ROWS", rows)
            yield f"{number} threads, pack {pack}, {rows} images at once"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_other_threads_products_and_batches_read_the_same(
    codec: ImageCodec, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, labels = drawn(codec, number, 3)
    blob = codec.archive(codes, labels, "prior")
    for way in ways_to_compute(monkeypatch):
        assert torch.equal(codec.codes(blob), codes), way


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """Flipped bits, other bytes, cut, doubled or moved parts."""
    changed = bytearray(data)
    kind = draw.integers(6)
    first, last = sorted(int(place) for place in draw.integers(0, len(data) + 1, 2))
    if kind == 0:
        for place in draw.integers(0, len(data), draw.integers(1, 4)):
            changed[place] ^= 1 << int(draw.integers(8))
    elif kind == 1:
        for place in draw.integers(0, len(data), draw.integers(1, 5)):
            changed[place] = draw.integers(256)
    elif kind == 2:
        del changed[first:last]
    elif kind == 3:
        changed[first:first] = changed[first:last]
    elif kind == 4:
        changed[first:last] = draw.bytes(last - first)
    else:
        changed = changed[: draw.integers(len(data))]
    return bytes(changed)


@pytest.mark.parametrize("number", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_mutation_passes_for_a_right_file(codec: ImageCodec, number: int) -> None:
    codes, labels = drawn(codec, 3, 4)
    files = [codec.archive(codes, labels, model, ["a", "b", "c"]) for model in MODELS]
    files += [blob for model in MODELS for blob in codec.compress_codes(codes[:1], None, model)]
    draw, passed = np.random.default_rng(5), 0
    for index in range(number):
        changed = mutated(files[index % len(files)], draw)
        try:
            found = codec.codes(changed)
        except CodegridError:
            continue
        expected = codes if len(found.shape) == len(codes.shape) else codes[0]
        assert torch.equal(found, expected), index
        passed += 1
    assert passed < number / 10  # what was doubled to itself, or lies behind the last decision

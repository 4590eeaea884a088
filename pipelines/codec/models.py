"""What a file's codes are coded with: a probability of every code, given those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from codegrid.pipelines.codec.decisions import (
    bits_of,
    integer_path_halves,
    integer_weight,
    is_decided,
    one_integer_weight,
    path,
    running_sums,
)
from codegrid.pipelines.codec.entropy import BitDecoder, BitDecoders, encoded

# The largest block of leaf weights in memory at once, in numbers.
_AT_ONCE = 2**24
# Images of an integer model that are coded in step, and numbers of leaf weights that are computed at once. Of fewer
# images than `_WORTH_ARRAYS`, each is read alone by plain integers.
_TOGETHER, _CACHED, _WORTH_ARRAYS = 512, 2**15, 8


class CodeModel(ABC):
    """Probabilities of codes [B, h, w, depth], for writing and reading.

    Attributes:
        number: the model's number in a file.
        fingerprint: 4 bytes that tell it from others of its kind; none if there is only one.
        bound: see `PriorModel`; None for a model of integers alone.
    """

    number: ClassVar[int]
    fingerprint: bytes = b""
    bound: int | None = None

    @abstractmethod
    def write(self, codes: np.ndarray, labels: Sequence[int | None]) -> list[bytes]:
        """The payload of each image: codes int64 [B, h, w, depth]; labels are classes, or None."""

    @abstractmethod
    def read(self, payloads: Sequence[bytes], shape: tuple[int, int, int], labels: Sequence[int | None]) -> np.ndarray:
        """Payloads of images of one shape (h, w, depth) -> codes int64 [B, h, w, depth], whatever the bytes are."""


class IntegerModel(CodeModel):
    """A model whose codes have integer weights, given the codes before them: alike on every machine."""

    codebook_size: int

    @abstractmethod
    def leaves(self, codes: np.ndarray, place: int) -> np.ndarray:
        """Integer weights [B, K] of the code at a place in [0, h w depth), by those before it."""

    def write(self, codes: np.ndarray, labels: Sequence[int | None]) -> list[bytes]:
        payloads: list[bytes] = []
        size = self._together(codes.shape[1:])
        for part in (codes[first : first + size] for first in range(0, len(codes), size)):
            target = part.reshape(len(part), -1)
            lower, upper = (np.empty((*target.shape, bits_of(self.codebook_size)), dtype=np.int64) for _ in range(2))
            for place in range(target.shape[1]):
                lower[:, place], upper[:, place] = integer_path_halves(self._sums(part, place), target[:, place])
            bits, decided = path(target, self.codebook_size)
            weights = integer_weight(lower, upper)
            payloads += [encoded(b[d], w[d]) for b, d, w in zip(bits, decided, weights, strict=True)]
        return payloads

    def read(self, payloads: Sequence[bytes], shape: tuple[int, int, int], labels: Sequence[int | None]) -> np.ndarray:
        codes = np.zeros((len(payloads), *shape), dtype=np.int64)
        size = self._together(shape)
        for first in range(0, len(payloads), size):
            some, part = payloads[first : first + size], codes[first : first + size]
            if len(some) >= _WORTH_ARRAYS:
                self._read_together(some, part)
            else:
                for payload, one in zip(some, part, strict=True):
                    self._read_alone(payload, one)
        return codes

    def _together(self, shape: Sequence[int]) -> int:
        """Images of one shape (h, w, depth) that are coded in step."""
        return min(_TOGETHER, images_at_once(self.codebook_size), max(1, _AT_ONCE // (32 * int(np.prod(shape)))))

    def _sums(self, codes: np.ndarray, place: int) -> np.ndarray:
        """`running_sums` [B, K + 1] of the leaves, made for a few images at a time: they stay in the cache."""
        sums = np.empty((len(codes), self.codebook_size + 1), dtype=np.int64)
        size = max(1, _CACHED // self.codebook_size)
        for first in range(0, len(codes), size):
            sums[first : first + size] = running_sums(self.leaves(codes[first : first + size], place))
        return sums

    def _read_together(self, payloads: Sequence[bytes], codes: np.ndarray) -> None:
        readers, flat = BitDecoders(payloads), codes.reshape(len(codes), -1)
        for place in range(flat.shape[1]):
            flat[:, place] = _read_integer_codes(readers, self.codebook_size, self._sums(codes, place))

    def _read_alone(self, payload: bytes, codes: np.ndarray) -> None:
        reader, flat = BitDecoder(payload), codes.reshape(-1)
        for place in range(len(flat)):
            sums = running_sums(self.leaves(codes[None], place))[0]
            flat[place] = _read_code(reader, self.codebook_size, sums)


class FixedModel(IntegerModel):
    """Every code is as likely as any other: log2(codebook_size) bits a code."""

    number = 0

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size

    def leaves(self, codes: np.ndarray, place: int) -> np.ndarray:
        return np.ones((len(codes), self.codebook_size), dtype=np.int64)


Weigher = Callable[[np.ndarray, int], np.ndarray]


def read_codes(readers: BitDecoders, codebook_size: int, weigh: Weigher) -> np.ndarray:
    """The next code of each of B images, int64 [B]; `weigh` gives the weights of bit 1 of nodes [B] at a depth."""
    nodes = np.zeros(readers.number, dtype=np.int64)
    for depth in range(bits_of(codebook_size)):
        asked = is_decided(nodes, depth, codebook_size)
        nodes = 2 * nodes + readers.read(weigh(nodes, depth), asked)
    return nodes


def _read_integer_codes(readers: BitDecoders, codebook_size: int, sums: np.ndarray) -> np.ndarray:
    """`read_codes` by the running sums [B, K + 1] of integer weights."""
    first, step = np.zeros(len(sums), dtype=np.int64), 1 << bits_of(codebook_size)
    rows, left, right = np.arange(len(sums)), sums[:, 0], sums[:, codebook_size]
    every = step == codebook_size  # then each node has codes in both halves
    while step > 1:
        step >>= 1
        middle = first + step
        asked = None if every else middle < codebook_size
        between = sums[rows, middle if every else np.minimum(middle, codebook_size)]
        bits = readers.read(integer_weight(between - left, right - between), asked)
        first += step * bits
        upper = bits == 1
        left, right = np.where(upper, between, left), np.where(upper, right, between)
    return first


def _read_code(reader: BitDecoder, codebook_size: int, sums: np.ndarray) -> int:
    """The next code of one image by the running sums [K + 1] of its weights."""
    first, step = 0, 1 << bits_of(codebook_size)
    left, right = 0, sums.item(codebook_size)
    while step > 1:
        step >>= 1
        if first + step >= codebook_size:  # the upper half holds no code
            continue
        middle = sums.item(first + step)
        if reader.read(one_integer_weight(middle - left, right - middle)):
            first, left = first + step, middle
        else:
            right = middle
    return first


def images_at_once(codebook_size: int, positions: int = 1) -> int:
    """Number of images whose leaf weights fit into memory at once."""
    return max(1, _AT_ONCE // (positions * 2 ** bits_of(codebook_size)))

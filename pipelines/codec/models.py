"""What a file's codes are coded with: a probability of every code, given those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from codegrid.pipelines.codec.decisions import (
    bits_of,
    integer_halves,
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
# Images of an integer model that are coded in step: their weights should stay in a processor's cache. Of fewer than
# `_WORTH_ARRAYS`, each is read alone by plain integers.
_TOGETHER, _WORTH_ARRAYS = 64, 8


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
        for part in (codes[first : first + _TOGETHER] for first in range(0, len(codes), _TOGETHER)):
            target = part.reshape(len(part), -1)
            weights = np.empty((*target.shape, bits_of(self.codebook_size)), dtype=np.int64)
            for place in range(target.shape[1]):
                sums = running_sums(self.leaves(part, place))
                weights[:, place] = integer_weight(*integer_path_halves(sums, target[:, place]))
            bits, decided = path(target, self.codebook_size)
            payloads += [encoded(b[d], w[d]) for b, d, w in zip(bits, decided, weights, strict=True)]
        return payloads

    def read(self, payloads: Sequence[bytes], shape: tuple[int, int, int], labels: Sequence[int | None]) -> np.ndarray:
        codes = np.zeros((len(payloads), *shape), dtype=np.int64)
        for first in range(0, len(payloads), _TOGETHER):
            some, part = payloads[first : first + _TOGETHER], codes[first : first + _TOGETHER]
            if len(some) >= _WORTH_ARRAYS:
                self._read_together(some, part)
            else:
                for payload, one in zip(some, part, strict=True):
                    self._read_alone(payload, one)
        return codes

    def _read_together(self, payloads: Sequence[bytes], codes: np.ndarray) -> None:
        readers, flat = BitDecoders(payloads), codes.reshape(len(codes), -1)
        for place in range(flat.shape[1]):
            weigh = integer_weights(running_sums(self.leaves(codes, place)))
            flat[:, place] = read_codes(readers, self.codebook_size, weigh)

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


def integer_weights(sums: np.ndarray) -> Weigher:
    """Nodes [B] and their depth -> the weights of bit 1, by the running sums [B, K + 1] of integer leaves."""
    return lambda nodes, depth: integer_weight(*integer_halves(sums, nodes, depth))


def read_codes(readers: BitDecoders, codebook_size: int, weigh: Weigher) -> np.ndarray:
    """The next code of each of B images, int64 [B]; `weigh` gives the weights of bit 1 of nodes [B] at a depth."""
    nodes = np.zeros(readers.number, dtype=np.int64)
    for depth in range(bits_of(codebook_size)):
        asked = is_decided(nodes, depth, codebook_size)
        nodes = 2 * nodes + readers.read(weigh(nodes, depth), asked)
    return nodes


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

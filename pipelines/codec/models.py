"""What a file's codes are coded with: a probability of every code, given those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from codegrid.pipelines.codec.decisions import (
    bits_of,
    halves,
    integer_weight,
    is_decided,
    path,
    path_halves,
    tree_sums,
)
from codegrid.pipelines.codec.entropy import BitDecoder, encoded

# The largest block of leaf weights in memory at once, in numbers.
_AT_ONCE = 2**24


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


class FixedModel(CodeModel):
    """Every code is as likely as any other: log2(codebook_size) bits a code."""

    number = 0

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self._levels = tree_sums(np.ones(codebook_size, dtype=np.int64))

    def write(self, codes: np.ndarray, labels: Sequence[int | None]) -> list[bytes]:
        flat = codes.reshape(len(codes), -1)
        bits, decided = path(flat, self.codebook_size)
        weights = integer_weight(*path_halves(self._broadcast(flat.shape), flat))
        return [encoded(b[d], w[d]) for b, d, w in zip(bits, decided, weights, strict=True)]

    def read(self, payloads: Sequence[bytes], shape: tuple[int, int, int], labels: Sequence[int | None]) -> np.ndarray:
        readers = [BitDecoder(payload) for payload in payloads]
        codes = np.empty((len(payloads), int(np.prod(shape))), dtype=np.int64)
        levels = self._broadcast((len(payloads),))
        for position in range(codes.shape[1]):
            codes[:, position] = read_codes(readers, self.codebook_size, integer_weights(levels))
        return codes.reshape(-1, *shape)

    def _broadcast(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        return [np.broadcast_to(level, (*shape, len(level))) for level in self._levels]


Weigher = Callable[[np.ndarray, int], np.ndarray]


def integer_weights(levels: list[np.ndarray]) -> Weigher:
    """Nodes [B] and their depth -> the weights of bit 1, by the sums of integer leaves."""
    return lambda nodes, depth: integer_weight(*halves(levels, nodes, depth))


def read_codes(readers: Sequence[BitDecoder], codebook_size: int, weigh: Weigher) -> np.ndarray:
    """The next code of each of B images, int64 [B]; `weigh` gives the weights of bit 1 of nodes [B] at a depth."""
    nodes = np.zeros(len(readers), dtype=np.int64)
    for depth in range(bits_of(codebook_size)):
        decided = is_decided(nodes, depth, codebook_size)
        places, weights = np.flatnonzero(decided), weigh(nodes, depth)[decided]
        nodes *= 2
        pairs = zip(places.tolist(), weights.tolist(), strict=True)
        nodes[places] += np.array([readers[place].read(weight) for place, weight in pairs], dtype=np.int64)
    return nodes


def images_at_once(codebook_size: int, positions: int = 1) -> int:
    """Number of images whose leaf weights fit into memory at once."""
    return max(1, _AT_ONCE // (positions * 2 ** bits_of(codebook_size)))

"""Binary decisions <-> bytes, by constriction's range coder (Martin 1979; first in, first out).

The coder has 64-bit state, words of 32 bits and weights of 24 bits: docs/file-format.md says what another
implementation needs. Model weights w0 - 1 and w1 - 1 in constriction's fast form give widths of exactly w0 and w1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from codegrid.errors import CodegridError
from codegrid.pipelines.codec.decisions import ONE, PRECISION
from codegrid.pipelines.codec.file_format import FileFormatError

_WORD = 4  # bytes
_WORD_BITS, _PRECISION = np.uint64(8 * _WORD), np.uint64(PRECISION)
_LEAST_RANGE = np.uint64(1 << 8 * _WORD)


@functools.cache
def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise CodegridError(
            "Compressed files need the package constriction, which is not installed.",
            'Install it: pip install "codegrid[codec]".',
        ) from error
    return constriction.stream


def encoded(bits: np.ndarray, weights: np.ndarray) -> bytes:
    """Decisions [n] of 0 and 1, with the weight of bit 1 of each [n] in [1, ONE) -> bytes.

    The bytes are the fewest that a decoder, which reads zeros after their end, takes for these decisions.
    """
    stream = _constriction()
    encoder = stream.queue.RangeEncoder()
    if not len(bits):
        return b""
    encoder.encode(bits.astype(np.int32), _family(), _probabilities(weights))
    words = [int(word) for word in encoder.get_compressed()]
    position, (lower, width) = encoder.pos()
    words += [0] * (position + 2 - len(words))
    # A number of the final interval, in units of the last of position + 2 words, and from it the interval's lower end.
    number = int.from_bytes(b"".join(word.to_bytes(_WORD, "big") for word in words[: position + 2]), "big")
    low = number - (number - lower) % 2**64
    size = _WORD * (position + 2)
    for length in range(size + 1):
        unit = 1 << 8 * (size - length)
        start = -(-low // unit) * unit
        if start < low + width:
            return (start // unit).to_bytes(length, "big")
    raise AssertionError("An interval holds one of its own numbers.")


class BitDecoder:
    """Reads decisions one by one. Behind the end of the bytes it reads zeros."""

    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % _WORD + 2 * _WORD)
        words = np.frombuffer(padded, dtype=">u4").astype(np.uint32)
        self._decode = _constriction().queue.RangeDecoder(words).decode

    def read(self, weight: int) -> int:
        """The next bit; `weight` in [1, ONE) is that of bit 1.

        Raises:
            FileFormatError: no encoder writes such bytes for these weights.
        """
        try:
            return self._decode(_model(weight))
        except AssertionError as error:  # constriction's word for it
            raise _damaged() from error


class BitDecoders:
    """Reads decisions of many payloads in step: each gives the bits that its own `BitDecoder` would.

    constriction decodes one payload at a call, and the calls take longer than the decoding. Here a decision of all
    payloads is a few operations on arrays.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        # Each payload's words, and one of zeros, which is read again and again behind its end.
        padded = [payload + bytes(-len(payload) % _WORD + _WORD) for payload in payloads]
        self._words = np.frombuffer(b"".join(padded), dtype=">u4").astype(np.uint64)
        self._ends = np.cumsum([len(one) // _WORD for one in padded], dtype=np.int64) - 1  # [B]
        self._next = self._ends + 1 - np.array([len(one) // _WORD for one in padded], dtype=np.int64)
        self.number = len(payloads)
        everywhere = np.arange(self.number)
        # The coder's point minus its low end, and its range, both uint64 [B].
        self._offset = self._word(everywhere) << _WORD_BITS
        self._offset |= self._word(everywhere)
        self._range = np.full(len(payloads), 2**64 - 1, dtype=np.uint64)

    def read(self, weights: np.ndarray, asked: np.ndarray | None = None) -> np.ndarray:
        """The next bit of each payload, int64 [B].

        Args:
            weights: integers [B] in [1, ONE), those of bit 1.
            asked: bool [B]; where it is False nothing is read, and the bit is 0. None is everywhere.

        Raises:
            FileFormatError: no encoder writes such bytes for these weights.
        """
        weight = weights.astype(np.uint64)
        unit = self._range >> _PRECISION
        below = unit * (np.uint64(ONE) - weight)  # the part of the range that is bit 0
        beyond, bits = self._offset >= unit << _PRECISION, self._offset >= below
        if asked is not None:
            beyond, bits = beyond & asked, bits & asked
        if beyond.any():
            raise _damaged()
        width = np.where(bits, unit * weight, below)
        self._offset -= below * bits
        self._range = width if asked is None else np.where(asked, width, self._range)
        low = np.flatnonzero(self._range < _LEAST_RANGE)
        if len(low):
            self._range[low] <<= _WORD_BITS
            self._offset[low] = self._offset[low] << _WORD_BITS | self._word(low)
        return bits.astype(np.int64)

    def _word(self, rows: np.ndarray) -> np.ndarray:
        """The next word of some payloads."""
        words = self._words[self._next[rows]]
        self._next[rows] = np.minimum(self._next[rows] + 1, self._ends[rows])
        return words


def _damaged() -> FileFormatError:
    return FileFormatError(
        "The codes of the file are damaged, or this machine's logits differ from the writer's by more than the file's "
        "bound.",
        "Get the file again, or read it on the kind of machine that wrote it.",
    )


@functools.cache
def _family() -> Any:
    return _constriction().model.Categorical(perfect=False)


@functools.lru_cache(maxsize=2**16)
def _model(weight: int) -> Any:
    return _constriction().model.Categorical(np.array([ONE - weight - 1.0, weight - 1.0]), perfect=False)


def _probabilities(weights: np.ndarray) -> np.ndarray:
    """[n] -> float64 [n, 2] with sums of ONE - 2: constriction scales them by exactly 1 and adds 1 to each."""
    ones = weights.astype(np.float64)
    return np.stack([ONE - ones - 1, ones - 1], axis=1)

"""Binary decisions <-> bytes, by constriction's range coder (Martin 1979; first in, first out).

The coder has 64-bit state, words of 32 bits and weights of 24 bits: docs/file-format.md says what another
implementation needs. Model weights w0 - 1 and w1 - 1 in constriction's fast form give widths of exactly w0 and w1.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from codegrid.errors import CodegridError
from codegrid.pipelines.codec.decisions import ONE
from codegrid.pipelines.codec.file_format import FileFormatError

_WORD = 4  # bytes


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
            raise FileFormatError(
                "The codes of the file are damaged, or this machine's logits differ from the writer's by more than the "
                "file's bound.",
                "Get the file again, or read it on the kind of machine that wrote it.",
            ) from error


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

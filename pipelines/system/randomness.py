"""Counter-based randomness: each draw is keyed by its purpose and counters.

No random state is saved. A resumed run, or one with another number of workers or ranks, draws the same values.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for a generator, from a run's seed, the name of the purpose and counters (step, epoch, sample)."""
    return int.from_bytes(hashlib.blake2b(_text(seed, purpose, *counters), digest_size=8).digest(), "big") >> 1


def _text(seed: int, purpose: str, *counters: int) -> bytes:
    return ":".join([str(seed), purpose, *map(str, counters)]).encode()


def uniforms(count: int, seed: int, purpose: str, *counters: int) -> list[float]:
    """`count` (at most 8) numbers in [0, 1), for a few draws per sample: making a generator would cost more."""
    digest = hashlib.blake2b(_text(seed, purpose, *counters), digest_size=8 * count).digest()
    return [(word >> 11) / 2**53 for word in struct.unpack(f">{count}Q", digest)]


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key(seed, purpose, *counters)))


def torch_generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    return torch.Generator().manual_seed(key(seed, purpose, *counters))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one step, for code that draws from them (dropout)."""
    torch.manual_seed(key(seed, "step", step, rank))


class SampleOrder:
    """The order of the training samples: one permutation per epoch, epochs end to end.

    Position p of the whole run is sample `permutation(seed, p // size)[p % size]`. A global batch is the next
    `batch_size` positions, for any number of ranks.

    Args:
        weights: float [size] with mean 1, how often an epoch has each sample: the next lower or higher whole number of
            times, and on average exactly so often. None has each once.
    """

    def __init__(self, size: int, seed: int, weights: np.ndarray | None = None) -> None:
        self.size, self.seed, self.weights = size, seed, weights
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def positions(self, start: int, count: int) -> list[tuple[int, int]]:
        """(epoch, index) of the positions start, ..., start + count - 1."""
        return [self._at(position) for position in range(start, start + count)]

    def indices(self, start: int, count: int) -> np.ndarray:
        """The sample indices alone, [count] int64, without a Python integer for each."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, offset = divmod(start, self.size)
            parts.append(self._of(epoch)[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _at(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.size)
        return epoch, int(self._of(epoch)[offset])

    def _of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = numpy_generator(self.seed, "order", epoch).permutation(self.size)
            if self.weights is not None:
                self._permutation = self._drawn(epoch)[self._permutation]
            self._epoch = epoch
        return self._permutation

    def _drawn(self, epoch: int) -> np.ndarray:
        """The samples of an epoch by their weights, [size] int64: systematic resampling (Kitagawa 1996), by which equal
        steps from one random start walk along the sum of the weights.
        """
        (start,) = uniforms(1, self.seed, "weights", epoch)
        ends = np.cumsum(self.weights)
        return np.searchsorted(ends * (self.size / ends[-1]), np.arange(self.size) + start, side="right")

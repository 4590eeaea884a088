"""A code as binary decisions: the bits of its index, the highest first.

A node of the tree is a range of codes, and its decision is whether the code lies in the upper half of the range. Its
probability is the upper half's share of the node's weight. Leaves beyond the codebook have no weight, and a node whose
upper half holds no code needs no decision.

A decision reaches the entropy coder as an integer: the weight of bit 1, out of `ONE`.
"""

from __future__ import annotations

import numpy as np

PRECISION = 24
ONE = 1 << PRECISION  # the weights of bit 0 and bit 1 sum to it
_KEPT = 7


def bits_of(codebook_size: int) -> int:
    """Number of decisions of a code, at most: the height of the tree."""
    return max(1, (codebook_size - 1).bit_length())


def tree_sums(leaves: np.ndarray) -> list[np.ndarray]:
    """Weights of codes [..., K] -> the weights of all nodes, by level from the root [..., 1] to the leaves [..., 2^D].

    Children are added in pairs. With positive floats no difference of large numbers occurs, so that each sum has the
    relative error of its leaves, and a few units of rounding.
    """
    height = bits_of(leaves.shape[-1])
    missing = 2**height - leaves.shape[-1]
    levels = [np.pad(leaves, [(0, 0)] * (leaves.ndim - 1) + [(0, missing)])]
    while levels[-1].shape[-1] > 1:
        pairs = levels[-1].reshape(*levels[-1].shape[:-1], -1, 2)
        levels.append(pairs[..., 0] + pairs[..., 1])
    return levels[::-1]


def path(codes: np.ndarray, codebook_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The decisions of codes [...]: bits [..., D] of 0 and 1, and which of them are decisions at all, bool [..., D]."""
    height = bits_of(codebook_size)
    depths = np.arange(height)
    bits = (codes[..., None] >> (height - 1 - depths)) & 1
    nodes = codes[..., None] >> (height - depths)  # the node at which each bit is decided
    return bits, is_decided(nodes, depths, codebook_size)


def is_decided(nodes: np.ndarray, depth: np.ndarray | int, codebook_size: int) -> np.ndarray:
    """Whether the upper half of a node at `depth` holds a code."""
    height = bits_of(codebook_size)
    first = (2 * nodes + 1) << (height - 1 - np.asarray(depth))
    return first < codebook_size


def halves(levels: list[np.ndarray], nodes: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the lower and the upper half of nodes [...] at `depth`; `levels` are of [..., K]."""
    below = levels[depth + 1]
    lower, upper = (np.take_along_axis(below, (2 * nodes + bit)[..., None], -1)[..., 0] for bit in (0, 1))
    return lower, upper


def path_halves(levels: list[np.ndarray], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`halves` along the paths of codes [...]: each [..., D]."""
    height = len(levels) - 1
    found = [halves(levels, codes >> (height - depth), depth) for depth in range(height)]
    return np.stack([lower for lower, _ in found], -1), np.stack([upper for _, upper in found], -1)


def running_sums(leaves: np.ndarray) -> np.ndarray:
    """Integer weights of codes [..., K] -> the sums of those before each code and of all, int64 [..., K + 1]."""
    sums = np.zeros((*leaves.shape[:-1], leaves.shape[-1] + 1), dtype=np.int64)
    np.cumsum(leaves, axis=-1, out=sums[..., 1:])
    return sums


def integer_path_halves(sums: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`path_halves` of integer weights, by their `running_sums` [B, K + 1]: codes [B] -> each [B, D]."""
    last, height = sums.shape[1] - 1, bits_of(sums.shape[1] - 1)
    left = height - np.arange(height)  # bits from a decision on
    first, step = codes[:, None] >> left << left, 1 << (left - 1)
    rows = np.arange(len(sums))[:, None]
    ends = [sums[rows, np.minimum(first + parts * step, last)] for parts in range(3)]
    return ends[1] - ends[0], ends[2] - ends[1]


def one_integer_weight(lower: int, upper: int) -> int:
    """`integer_weight` of one node."""
    weight = min(max((upper << PRECISION) // max(lower + upper, 1), 1), ONE - 1)
    smaller = min(weight, ONE - weight)
    dropped = max(smaller.bit_length() - _KEPT, 0)
    smaller = smaller >> dropped << dropped
    return smaller if weight < ONE // 2 else ONE - smaller


def integer_weight(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Weight of bit 1, int64 in [1, ONE), of nodes by the integer weights of their halves, whose sum is below 2^39.

    It is floor(ONE upper / (lower + upper)) with only the highest `_KEPT` bits of the smaller bit's weight, so that a
    few thousand weights occur: each is prepared for the entropy coder once.
    """
    upper = upper.astype(np.int64)
    total = np.maximum(lower + upper, 1)
    weight = np.minimum(np.maximum((upper << PRECISION) // total, 1), ONE - 1)  # np.clip takes longer
    smaller = np.minimum(weight, ONE - weight)
    dropped = np.maximum(np.frexp(smaller.astype(np.float64))[1] - _KEPT, 0)
    smaller = (smaller >> dropped) << dropped
    return np.where(weight < ONE // 2, smaller, ONE - smaller)

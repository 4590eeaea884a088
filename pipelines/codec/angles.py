"""Probabilities of floats, rounded so that a small disturbance of the logits changes no decision.

A decision's angle is theta = 2 atan(sqrt(upper / lower)), in [0, pi], of the weights of a node's two halves: p = sin^2
(theta / 2). In this measure a cell of the same width costs the same everywhere (the Fisher metric of a Bernoulli
distribution). The angles are cut into cells; all angles of a cell have one probability, taken from a table of integers.

The borders between the cells can be shifted by a part of a cell. An encoder that knows how far the decoder's logits
may differ from its own takes, for each block of codes, a shift for which no angle on the codes' path is near a border.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from codegrid.pipelines.codec.decisions import ONE

FINE = 256  # parts of a cell, in which shifts are counted
TRIES = 64  # shifts that an encoder tries before it leaves a block uncompressed
_PI = 3141592653589793238462643383279502884197169399375105820974944592  # 10^63 pi
_SCALE = 10**40
_SLACK = 1e-9  # of a cell: two machines' float64 square roots and arc tangents differ by far less


def cells(bound: int) -> int:
    """Number of cells of the half circle, for logits that may differ by 2^-bound: more where they are surer."""
    return 16 if bound < 16 else 32


def fits_weight(bound: int) -> int:
    """Weight, out of ONE, of a shift being tried in vain: a half where borders are often hit, else an eighth."""
    return ONE // 2 if bound < 16 else ONE // 8


def shift(attempt: int) -> int:
    """The shift of a try, in parts of a cell: 0, 128, 64, 192, 32, ... (the bits of the number in reverse)."""
    return int(f"{attempt:08b}"[::-1], 2)


@functools.cache
def table(number: int) -> np.ndarray:
    """Weight of bit 1 at every part of `number` cells: int64 [FINE * number + 1], round(ONE sin^2(theta / 2)).

    sin^2 is (1 - cos theta) / 2, and the cosine a Taylor series in integers: every machine computes the same table.
    """
    parts = FINE * number
    weights = [_weight(_PI // 10**23 * part // parts) for part in range(parts // 2 + 1)]
    weights += [ONE - weight for weight in weights[: parts - len(weights) + 1][::-1]]  # sin^2 + cos^2 = 1
    return np.clip(np.array(weights, dtype=np.int64), 1, ONE - 1)


def _weight(theta: int) -> int:
    """round(ONE (1 - cos theta) / 2), theta in units of 1 / _SCALE."""
    square = theta * theta // _SCALE
    term, total, order = _SCALE, 0, 0
    while term:
        term = -term * square // ((order + 1) * (order + 2)) // _SCALE if order else -square // 2
        order += 2
        total -= term
        if abs(term) <= 1:
            break
    return (ONE * total + _SCALE) // (2 * _SCALE)


def angles(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """theta of nodes by the weights of their halves, float64; half of pi where both are 0 (underflow)."""
    nothing = (lower == 0) & (upper == 0)
    return np.where(nothing, np.pi / 2, 2 * np.arctan2(np.sqrt(upper), np.sqrt(lower)))


def cell(theta: np.ndarray, shift: np.ndarray | int, number: int) -> np.ndarray:
    """The cell of each angle, int64 in [0, number]."""
    return np.floor(theta * (number / np.pi) + np.asarray(shift) / FINE).astype(np.int64)


def cell_weight(cell: np.ndarray, shift: np.ndarray | int, number: int) -> np.ndarray:
    """The weight of bit 1 in the middle of a cell, as far as it lies on the half circle: int64 in [1, ONE)."""
    low = np.clip(FINE * cell - shift, 0, FINE * number)
    high = np.clip(FINE * (cell + 1) - shift, 0, FINE * number)
    return table(number)[(low + high) // 2]


def one_weight(lower: float, upper: float, shift: int, number: int) -> int:
    """`cell_weight` of one node's cell, by the weights of its halves."""
    theta = 2 * math.atan2(math.sqrt(upper), math.sqrt(lower)) if lower or upper else math.pi / 2
    found = math.floor(theta * (number / math.pi) + shift / FINE)
    low, high = (min(max(FINE * (found + end) - shift, 0), FINE * number) for end in (0, 1))
    return _listed(number)[(low + high) // 2]


@functools.cache
def _listed(number: int) -> list[int]:
    return table(number).tolist()


def is_safe(theta: np.ndarray, shift: np.ndarray | int, number: int, epsilon: float) -> np.ndarray:
    """Whether an angle stays in its cell if every logit moves by at most `epsilon`.

    The halves' weights then change by factors in [exp(-epsilon), exp(epsilon)], hence log(upper / lower) by at most
    2 epsilon, and theta = 2 atan(exp(log(upper / lower) / 2)) between the values at these ends.
    """
    with np.errstate(divide="ignore"):
        log_tangent = np.log(np.tan(theta / 2))  # -inf and inf at the ends, which stay where they are
    least, most = (2 * np.arctan(np.exp(log_tangent + sign * epsilon)) for sign in (-1, 1))
    slack = _SLACK * np.pi / number
    return cell(least - slack, shift, number) == cell(most + slack, shift, number)

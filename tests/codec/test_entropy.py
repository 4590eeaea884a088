"""Decisions, their integer weights, and the entropy coder beside another implementation of it."""

import math

import numpy as np
import pytest

from codegrid.pipelines.codec import angles
from codegrid.pipelines.codec.decisions import (
    ONE,
    bits_of,
    integer_path_halves,
    integer_weight,
    is_decided,
    one_integer_weight,
    path,
    path_halves,
    running_sums,
    tree_sums,
)
from codegrid.pipelines.codec.entropy import BitDecoder, BitDecoders, encoded
from codegrid.pipelines.codec.file_format import FileFormatError


def reference_decoder(payload: bytes, weights: list[int]) -> list[int]:
    """docs/file-format.md in plain Python: a range decoder with 64 bits of state and words of 32."""
    padded = payload + bytes(-len(payload) % 4 + 4 * (len(weights) + 2))
    words = [int.from_bytes(padded[place : place + 4], "big") for place in range(0, len(padded), 4)]
    low, width, point, used = 0, 2**64 - 1, words[0] << 32 | words[1], 2
    bits = []
    for weight in weights:
        unit = width >> 24
        zero = ONE - weight
        bit = int((point - low) % 2**64 // unit >= zero)
        low, width = (low + unit * zero) % 2**64 if bit else low, unit * (weight if bit else zero)
        if width < 2**32:
            low, width, point = low << 32 & 2**64 - 1, width << 32, (point << 32 & 2**64 - 1) | words[used]
            used += 1
        bits.append(bit)
    return bits


def read(payload: bytes, weights: np.ndarray) -> list[int]:
    decoder = BitDecoder(payload)
    return [decoder.read(weight) for weight in weights.tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_bits_come_back_in_few_bytes_and_by_another_implementation(seed):
    draw = np.random.default_rng(seed)
    number = int(draw.integers(1, 700))
    weights = np.clip((draw.beta(0.2, 0.2, number) * ONE).astype(np.int64), 1, ONE - 1)
    bits = (draw.random(number) < weights / ONE).astype(np.int64)
    payload = encoded(bits, weights)
    assert read(payload, weights) == bits.tolist()
    assert reference_decoder(payload, weights.tolist()) == bits.tolist()
    ideal = -np.log2(np.where(bits == 1, weights, ONE - weights) / ONE).sum()
    assert 8 * len(payload) < ideal + 0.001 * number + 10
    # One byte less is no file of these bits, whatever stands in it: the interval's shortest number was taken.
    assert not payload or reference_decoder(payload[:-1], weights.tolist()) != bits.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_many_payloads_are_read_in_step_as_each_alone(seed):
    """Of damaged bytes, too: the same bits, or the same refusal."""
    draw = np.random.default_rng(seed)
    number, length = 40, int(draw.integers(1, 300))
    weights = np.clip((draw.beta(0.2, 0.2, (number, length)) * ONE).astype(np.int64), 1, ONE - 1)
    bits = (draw.random((number, length)) < weights / ONE).astype(np.int64)
    asked = draw.random((number, length)) < 0.8
    payloads = [encoded(b[a], w[a]) for b, a, w in zip(bits, asked, weights, strict=True)]
    found = _in_step(payloads, weights, asked)
    np.testing.assert_array_equal(found, np.where(asked, bits, 0))
    for _ in range(60):
        damaged = draw.bytes(int(draw.integers(0, 90)))
        row = int(draw.integers(number))
        try:
            alone = read(damaged, weights[row][asked[row]])
        except FileFormatError:
            with pytest.raises(FileFormatError):
                _in_step([damaged], weights[row : row + 1], asked[row : row + 1])
            continue
        assert _in_step([damaged], weights[row : row + 1], asked[row : row + 1])[0][asked[row]].tolist() == alone


def _in_step(payloads: list[bytes], weights: np.ndarray, asked: np.ndarray) -> np.ndarray:
    readers = BitDecoders(payloads)
    return np.stack([readers.read(w, None if a.all() else a) for w, a in zip(weights.T, asked.T, strict=True)], 1)


def test_the_weight_of_one_node_is_that_of_arrays():
    draw = np.random.default_rng(0)
    lower, upper = (draw.integers(0, 2 ** draw.integers(1, 38, 500)) for _ in range(2))
    one = [one_integer_weight(*pair) for pair in zip(lower.tolist(), upper.tolist(), strict=True)]
    assert one == integer_weight(lower, upper).tolist()


@pytest.mark.parametrize("size", [1, 5, 300, 1024])
def test_running_sums_give_the_halves_of_the_tree(size):
    draw = np.random.default_rng(size)
    leaves, codes = draw.integers(1, 2**20, (50, size)), draw.integers(0, size, 50)
    expected = path_halves(tree_sums(leaves), codes)
    for found, wanted in zip(integer_path_halves(running_sums(leaves), codes), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_no_decisions_are_no_bytes():
    assert encoded(np.empty(0, np.int64), np.empty(0, np.int64)) == b""
    assert read(b"", np.empty(0, np.int64)) == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 300, 1024])
def test_the_decisions_of_a_code_tell_it_from_all_others(size):
    codes = np.arange(size)
    bits, decided = path(codes, size)
    told = {
        tuple(bit if asked else -1 for bit, asked in zip(*one, strict=True)) for one in zip(bits, decided, strict=True)
    }
    assert len(told) == size
    assert (bits[~decided] == 0).all()
    # What a node's halves weigh adds up to the node, and the shares along a path to the code's own share.
    leaves = np.random.default_rng(0).integers(1, 99, size)
    lower, upper = path_halves(tree_sums(np.broadcast_to(leaves, (size, size))), codes)
    shares = np.where(bits == 1, upper, lower) / (lower + upper)
    np.testing.assert_allclose(shares.prod(-1), leaves / leaves.sum(), rtol=1e-12)
    assert (upper[~decided] == 0).all()
    assert bool(is_decided(np.array([0]), 0, size)[0]) == (size > 1)
    assert 2 ** bits_of(size) >= size


def test_integer_weights_are_near_the_share_and_never_certain():
    draw = np.random.default_rng(0)
    lower, upper = (2 ** draw.integers(0, 38, (2, 5000)) - draw.integers(0, 2, (2, 5000))).astype(np.int64)
    weight = integer_weight(lower, upper)
    assert ((weight >= 1) & (weight < ONE)).all()
    share = upper / np.maximum(lower + upper, 1)
    smaller = np.minimum(share, 1 - share)
    assert (np.abs(weight / ONE - share) <= smaller / 64 + 2 / ONE).all()
    assert integer_weight(np.array([1]), np.array([1]))[0] == ONE // 2


@pytest.mark.parametrize("number", [16, 32])
def test_the_weight_of_one_angle_is_that_of_arrays(number):
    draw = np.random.default_rng(number)
    lower, upper = np.exp(draw.normal(0, 6, (2, 300)))
    lower[:3], upper[2:5] = 0, 0
    shift = int(draw.integers(0, 256))
    cells = angles.cell(angles.angles(lower, upper), shift, number)
    one = [angles.one_weight(*pair, shift, number) for pair in zip(lower.tolist(), upper.tolist(), strict=True)]
    assert one == angles.cell_weight(cells, shift, number).tolist()


@pytest.mark.parametrize("number", [16, 32])
def test_the_table_is_the_sine_squared(number):
    table = angles.table(number)
    exact = [round(ONE * math.sin(math.pi * part / (256 * number) / 2) ** 2) for part in range(256 * number + 1)]
    assert table.tolist() == np.clip(exact, 1, ONE - 1).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_safe_angle_keeps_its_weight_however_its_logits_move(seed):
    draw = np.random.default_rng(seed)
    bound = int(draw.integers(5, 10))
    number, epsilon = angles.cells(bound), 2.0**-bound
    lower, upper = np.exp(draw.normal(0, 4, (2, 4000)))
    shift = int(draw.integers(0, 256))
    safe = angles.is_safe(angles.angles(lower, upper), shift, number, epsilon)
    assert 0.2 < safe.mean() < 1
    for signs in ((1, -1), (-1, 1), (1, 1), tuple(draw.uniform(-1, 1, 2))):
        moved = angles.angles(lower * math.exp(signs[0] * epsilon), upper * math.exp(signs[1] * epsilon))
        same = angles.cell(moved, shift, number) == angles.cell(angles.angles(lower, upper), shift, number)
        assert same[safe].all()
    # The bound is not idle: of those called unsafe, the worst disturbance moves nearly all.
    least, most = (angles.angles(lower * math.exp(-s * epsilon), upper * math.exp(s * epsilon)) for s in (-1, 1))
    assert (angles.cell(least, shift, number) != angles.cell(most, shift, number))[~safe].mean() > 0.99

"""Orders of the codes, and how many are drawn a step."""

import math

import pytest
import torch

from codegrid.prior import SequenceConfig
from codegrid.prior.orders import codes_per_step, known_first, named_orders

SEQUENCE = SequenceConfig(24, (6, 5))


@pytest.mark.parametrize("name", ["raster", "random", "halton"])
def test_orders_are_permutations_and_even_over_seeds(name):
    uniforms = torch.rand(4000, 30, dtype=torch.float64)
    orders = named_orders(name, uniforms, SEQUENCE)
    assert torch.equal(orders.sort(1).values, torch.arange(30).expand(4000, -1))
    ranks = orders.argsort(1).double().mean(0)  # the mean rank of each position
    if name == "raster":
        assert torch.equal(ranks, torch.arange(30).double())
    else:
        assert (ranks - 14.5).abs().max() < 5 * math.sqrt(30**2 / 12 / 4000)


def test_halton_spreads_the_first_codes():
    """The first nine of an 8x8 grid lie in nearly all ninths of it, those of raster order in one line and a bit."""
    sequence = SequenceConfig(4, (8, 8))
    orders = named_orders("halton", torch.zeros(1, 64, dtype=torch.float64), sequence)[0, :16]
    assert len({(int(cell) // 8 // 2, int(cell) % 8 // 2) for cell in orders}) >= 12


def test_known_tokens_come_first_and_nothing_else_moves():
    order = torch.tensor([[3, 0, 2, 1, 4], [4, 3, 2, 1, 0]])
    known = torch.tensor([[True, False, False, False, True], [False, True, True, False, False]])
    assert known_first(order, known).tolist() == [[0, 4, 3, 2, 1], [2, 1, 4, 3, 0]]


@pytest.mark.parametrize("unknown", [1, 2, 7, 64, 256])
@pytest.mark.parametrize("steps", [None, 1, 2, 8, 64, 1000])
def test_steps_draw_all_codes_by_the_cosine(unknown, steps):
    sizes = codes_per_step(unknown, steps)
    assert sum(sizes) == unknown
    assert min(sizes) >= 1
    assert len(sizes) == (unknown if steps is None else min(steps, unknown))
    if steps == 8 and unknown >= 64:
        left = unknown
        for step, size in enumerate(sizes[:-1], 1):
            left -= size
            assert left == pytest.approx(unknown * math.cos(math.pi * step / 16), abs=1)
    if steps is None or steps >= unknown:
        assert set(sizes) == {1}

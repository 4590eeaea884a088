"""pipelines/system/numbers.py."""

import math
import random

import pytest

from codegrid.pipelines.system.numbers import duration, memory, number, share


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.27e3, "1,270"),
        (461.09999999999997, "461.1"),
        (0.0478, "0.0478"),
        (0.1 + 0.2, "0.3"),
        (3.2e-5, "3.2e-05"),
        (-1e-9, "-1e-09"),
        (0.0, "0"),
        (-0.0, "0"),
        (50_000, "50,000"),
        (1234567.89, "1,234,568"),
        (9999.7, "10,000"),
        (25.214, "25.21"),
        (2e18, "2e+18"),
        (None, "-"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize("seed", [1, 2])
def test_numbers_can_be_read_back(seed):
    draw = random.Random(seed)
    for _ in range(500):
        value = draw.choice([-1, 1]) * 10 ** draw.uniform(-8, 14)
        digits = draw.randrange(2, 8)
        text = number(value, digits)
        assert float(text.replace(",", "")) == pytest.approx(value, rel=10 ** (1 - digits)), (seed, value, digits)
        assert ("e" in text) == (abs(value) < 1e-4), (seed, value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.824, "82.4%"), (1, "100%"), (0.99999, "over 99.9%"), (0, "0%"), (0.0001, "under 0.1%"), (None, "-")],
)
def test_share(value, text):
    assert share(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0032, "3.2 ms"),
        (1.27, "1.27 s"),
        (12, "12 s"),
        (59.97, "1 min"),
        (75.2, "1 min 15 s"),
        (119.9, "2 min"),
        (3599.9, "1 h"),
        (7500, "2 h 5 min"),
        (86_399, "1 d"),
        (273_600, "3 d 4 h"),
        (0, "0 s"),
        (-75.2, "-1 min 15 s"),
        (None, "-"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(512, "512 bytes"), (1536, "1.5 KiB"), (84_180_000_000, "78.4 GiB"), (1024**2 - 1, "1 MiB"), (0, "0 bytes")],
)
def test_memory(size, text):
    assert memory(size) == text

"""Metrics of a reconstruction against scikit-image, and of the codes against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from codegrid.tokenizer import metrics
from codegrid.tokenizer.metrics import (
    add_counts,
    code_counts,
    counts_of_levels,
    psnr,
    relative_counts,
    ssim,
    usage_and_perplexity,
)


@pytest.fixture
def pair():
    """Two images [4, 3, 24, 40] of various nearness, in [-1, 1]."""
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 10) * 2 - 1, size=(24, 40), mode="bilinear")
    noise = torch.randn(4, 3, 24, 40) * torch.tensor([0.01, 0.05, 0.2, 0.6])[:, None, None, None]
    return smooth, (smooth + noise).clamp(-1, 1)


def test_psnr_is_scikit_images(pair):
    real, fake = pair
    found = psnr(real, fake)
    assert found.shape == (4,)
    expected = [
        peak_signal_noise_ratio(one.numpy(), other.numpy(), data_range=2.0)
        for one, other in zip(real, fake, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert found[0] > 35 > 15 > found[3]


def test_ssim_is_scikit_images(pair):
    """scikit-image leaves out the borders that the window overhangs; torchmetrics mirrors them. On [0, 1]."""
    real, fake = pair
    found = ssim(real, fake)
    assert found.shape == (4,)
    intensities = [(images.numpy() + 1) / 2 for images in pair]
    mirrored = [np.pad(images, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect") for images in intensities]
    options = {"data_range": 1.0, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "full": True}
    expected = []
    for one, other in zip(*mirrored, strict=True):
        _, image = structural_similarity(one, other, use_sample_covariance=False, **options)
        expected.append(image[:, 5:-5, 5:-5].mean())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert found[0] > 0.98
    assert found[3] < 0.5
    torch.testing.assert_close(ssim(real, real), torch.ones(4))


def test_what_lies_beyond_the_range_counts_as_it_would_be_saved(pair):
    real, _ = pair
    white = torch.ones_like(real)
    torch.testing.assert_close(psnr(real, white * 7), psnr(real, white))
    torch.testing.assert_close(ssim(real, white * 7), ssim(real, white))


def test_psnr_of_known_errors():
    real = torch.zeros(3, 1, 4, 4)
    fake = torch.stack([torch.full((1, 4, 4), value) for value in (0.0, 0.2, 1.0)])
    found = psnr(real, fake)
    assert found[0] == pytest.approx(10 * math.log10(4 / 1e-10), abs=1e-3)  # bounded, not infinite
    assert found[1] == pytest.approx(20.0, abs=1e-4)
    assert found[2] == pytest.approx(20 * math.log10(2), abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_gives_one_number(channels):
    real = torch.rand(1, channels, 16, 16)
    assert psnr(real, real).shape == ssim(real, real).shape == (1,)


def test_counts():
    codes = torch.tensor([[[0, 3], [3, 1]], [[3, 0], [0, 0]]])
    assert code_counts(codes, 5).tolist() == [4, 1, 0, 3, 0]


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [
        ([5, 5, 5, 5], 1.0, 4.0),
        ([8, 0, 0, 0], 0.25, 1.0),
        ([1, 1, 0, 0], 0.5, 2.0),
        ([2, 1, 1, 0], 0.75, 2**1.5),  # 1.5 bits
        ([0, 0, 0, 0], 0.0, 1.0),
    ],
)
def test_usage_and_perplexity(counts, usage, perplexity):
    assert usage_and_perplexity(torch.tensor(counts)) == pytest.approx((usage, perplexity))


def test_levels_are_counted_by_themselves_and_averaged():
    codes = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 0]])  # [N, depth]
    counts = code_counts(codes, 4, depth=2)
    assert counts.tolist() == [4, 0, 0, 0, 1, 1, 1, 1]
    assert usage_and_perplexity(counts, depth=2) == pytest.approx(((1 / 4 + 1) / 2, (1 + 4) / 2))


@pytest.mark.parametrize("depth", [1, 3])
def test_codes_of_a_large_codebook_are_counted_as_those_of_a_small_one(depth, monkeypatch):
    parts = [torch.randint(0, 40, (2, 4, 4, depth)).square() for _ in range(3)]
    dense = [code_counts(part, 1600, depth) for part in parts]
    monkeypatch.setattr(metrics, "MOST_COUNTS", depth * 1600 - 1)
    tables = [code_counts(part, 1600, depth) for part in parts]
    for counts, table in zip([*dense, add_counts(*dense)], [*tables, add_counts(*tables)], strict=True):
        assert table.dtype == torch.int64
        assert table.tolist() == [[number, count] for number, count in enumerate(counts.tolist()) if count]
        expected = usage_and_perplexity(counts, depth)
        assert usage_and_perplexity(table, depth, 1600) == pytest.approx(expected)
        for level, of_table in zip(counts.chunk(depth), counts_of_levels(table, 1600, depth), strict=True):
            assert of_table.tolist() == level[level > 0].tolist()
        relative = relative_counts(counts, 1600, depth)
        torch.testing.assert_close(relative_counts(table, 1600, depth), relative[relative > 0])
    nothing = code_counts(torch.empty(0, depth, dtype=torch.int64), 1600, depth)
    assert nothing.shape == (0, 2)
    assert usage_and_perplexity(nothing, depth, 1600) == (0.0, 1.0)
    assert add_counts(nothing, tables[0]).tolist() == tables[0].tolist()


@pytest.mark.parametrize("codebook_size", [2**21, 2**31])
def test_counts_take_memory_for_the_codes_that_occur(codebook_size):
    """One count for each of 2^31 codes would be 17 GB: what is allocated is looked at, not the clock."""
    codes = torch.tensor([0, codebook_size - 1, codebook_size - 1])
    counts = code_counts(codes, codebook_size)
    assert counts.tolist() == [[0, 1], [codebook_size - 1, 2]]
    usage, perplexity = usage_and_perplexity(counts, 1, codebook_size)
    assert usage == 2 / codebook_size
    assert perplexity == pytest.approx(3 / 2 ** (2 / 3))


def test_devices_without_float64_are_measured(on_mps):
    counts = torch.tensor([2, 1, 1, 0])
    assert usage_and_perplexity(on_mps(counts)) == usage_and_perplexity(counts)

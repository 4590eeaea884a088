import math

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from codegrid.prior.distribution import SamplingConfig, filter_logits, guided_logits, inverse_cdf


def kept(logits):
    return logits > -math.inf


@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 100])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("min_p", [0.0, 0.2, 1.0])
def test_filters_are_those_of_transformers(top_k, top_p, temperature, min_p):
    logits = torch.randn(20, 50, dtype=torch.float64) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    actual = filter_logits(logits, temperature, top_k, top_p, min_p)
    assert torch.equal(kept(actual), kept(expected))
    torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_top_p_of_a_large_codebook_is_that_of_transformers(spread):
    logits = torch.randn(4, 3000, dtype=torch.float64) * spread  # flat: most codes are kept; peaked: a few
    logits[0] *= 3  # one row alone is peaked
    expected = kept(TopPLogitsWarper(0.9)(None, logits))
    assert torch.equal(kept(filter_logits(logits, top_p=0.9)), expected)
    assert torch.equal(kept(filter_logits(logits[:1], top_p=0.9)), expected[:1])
    assert (expected.sum(-1).max() > 1024) == (spread == 0.1)


def test_codes_as_likely_as_the_last_one_kept_are_kept():
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    assert kept(filter_logits(logits, top_k=2)).tolist() == [[True, True, True, False]]
    assert kept(filter_logits(logits, top_p=0.6)).tolist() == [[True, True, True, False]]


def test_guidance_is_a_line_through_both_branches():
    logits = torch.randn(7, 5)  # two images, two null branches, padding
    c, u = logits[:2].double(), logits[2:4].double()
    torch.testing.assert_close(guided_logits(logits, 2, 2.5), 2.5 * c - 1.5 * u)
    assert torch.equal(guided_logits(logits, 2, 1.0), c)


def test_codes_follow_their_probabilities():
    logits = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3, 0.0], dtype=torch.float64).log()
    number = 60_000
    uniforms = torch.rand(number, dtype=torch.float64)
    codes = inverse_cdf(logits.expand(number, -1), uniforms)
    counts = codes.bincount(minlength=6)
    assert counts[1] == counts[5] == 0
    expected = number * logits.exp()
    likely = expected > 0
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 21.1  # 3 degrees of freedom: 1 in 10,000


def test_the_ends_of_the_distribution_are_codes_of_positive_probability():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]], dtype=torch.float64)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits.expand(2, -1), ends).tolist() == [1, 3]


def scales(length=8, **settings):
    return SamplingConfig(guidance_scale=5.0, **settings).guidance_scales(length)


def test_guidance_follows_its_schedule():
    assert scales() == [5.0] * 8
    assert scales(guidance_schedule="linear") == pytest.approx([1 + 4 * i / 7 for i in range(8)])
    cosine = [3 - 2 * math.cos(math.pi * i / 7) for i in range(8)]
    assert scales(guidance_schedule="cosine") == pytest.approx(cosine)
    assert scales(guidance_schedule="power", guidance_power=1.0) == pytest.approx(cosine)
    power = [3 - 2 * math.cos(math.pi * (i / 7) ** 2.75) for i in range(8)]
    assert scales(guidance_schedule="power", guidance_power=2.75) == pytest.approx(power)
    assert scales(1, guidance_schedule="linear") == [1.0]
    below = SamplingConfig(guidance_scale=0.1).guidance_scales(3)
    assert below == [0.1] * 3  # exactly


def test_guidance_keeps_to_its_range():
    assert scales(guidance_range=(0.25, 0.75)) == [1, 1, 5, 5, 5, 5, 1, 1]
    assert scales(guidance_range=(0.5, 1.0), guidance_schedule="linear") == pytest.approx(
        [1, 1, 1, 1, 1, 1 + 4 / 3, 1 + 8 / 3, 5]
    )
    assert scales(guidance_range=(0.4, 0.45)) == [1.0] * 8  # a part without a position


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"guidance_schedule": "sine"}, "guidance_schedule is 'sine'"),
        ({"guidance_power": 0.0}, "guidance_power is 0.0"),
        ({"guidance_power": math.inf}, "guidance_power is inf"),
        ({"guidance_range": (0.5, 0.5)}, "guidance_range is"),
        ({"guidance_range": (-0.1, 0.5)}, "guidance_range is"),
        ({"guidance_range": (0.0, 1.5)}, "guidance_range is"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)

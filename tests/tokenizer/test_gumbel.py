"""Gumbel-softmax: codes are drawn in training, and are the most probable ones in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from codegrid.tokenizer.quantizers import make_quantizer
from codegrid.tokenizer.quantizers.gumbel import GumbelConfig, kl_to_uniform


def features() -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))


def gumbel(**options):
    torch.manual_seed(0)
    return make_quantizer(GumbelConfig(**{"codebook_size": 8, "code_dim": 4, **options}))


def test_codes_are_drawn_from_the_softmax_of_the_scores():
    quantizer = gumbel()
    z = features()[:1, :, :1, :1].expand(1, 4, 200, 200)
    p = quantizer.logits(features()[0, :, 0, 0]).softmax(0)
    shares = torch.bincount(quantizer(z).codes.flatten(), minlength=8) / 40_000
    # Standard errors are under 0.0025.
    torch.testing.assert_close(shares, p.detach(), rtol=0, atol=0.012)


def test_the_straight_through_output_is_the_drawn_code_and_the_relaxed_one_a_mixture():
    quantizer = gumbel()
    output = quantizer(features())
    torch.testing.assert_close(output.features, quantizer.codes_to_features(output.codes))
    mixed = gumbel(straight_through=False)(features())
    assert not torch.allclose(mixed.features, quantizer.codes_to_features(mixed.codes), atol=0.1)
    cold = gumbel(straight_through=False, temperature=1e-3)(features())
    near = (cold.features - quantizer.codes_to_features(cold.codes)).abs().amax(1) < 1e-3
    assert near.float().mean() > 0.95


def test_the_draw_follows_torchs_generator():
    quantizer = gumbel()
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(quantizer(features()).codes)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_evaluation_takes_the_most_probable_code():
    quantizer = gumbel().eval()
    best = quantizer.logits(features().movedim(1, -1)).argmax(-1)
    assert torch.equal(quantizer(features()).codes, best)
    assert torch.equal(quantizer.train().encode(features()), best)


def test_the_kl_term_is_the_divergence_from_uniform():
    logits = 2 * torch.randn(40, 8, dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(8, dtype=torch.float64)))
    torch.testing.assert_close(kl_to_uniform(logits), expected.mean())
    assert gumbel(kl_weight=0.0)(features()).losses == {}


@pytest.mark.parametrize("name", ["codebook_size", "temperature"])
def test_a_field_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"quantizer\.{name} is 0"):
        GumbelConfig(**{name: 0})

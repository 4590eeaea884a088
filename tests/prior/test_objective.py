import math

import pytest
import torch
import torch.nn.functional as F

from codegrid.prior import (
    PriorConfig,
    SequenceConfig,
    bits_per_code,
    code_cross_entropy,
    make_prior,
    objective,
    prior_loss,
)
from codegrid.prior.sampling import sample_codes

SEQUENCE = SequenceConfig(8, (2, 2), class_names=("a", "b", "c", "d"))


def test_the_loss_is_the_cross_entropy_of_each_code_given_those_before():
    model = make_prior(PriorConfig(32, 2, 4, initializer_range=0.2), SEQUENCE)
    codes, labels = torch.randint(0, 8, (3, 2, 2)), torch.tensor([0, 2, 3])
    drop = torch.tensor([False, True, False])
    loss = prior_loss(model, codes, labels, drop, SEQUENCE)
    by_hand = []
    for image, prefix in enumerate([8, SEQUENCE.null_token, 11]):
        sequence = [prefix, *codes[image].flatten().tolist()]
        for position in range(1, 5):  # each code from a forward pass over what precedes it, and nothing else
            logits = model(torch.tensor([sequence[:position]])).logits[0, -1, :8]
            by_hand.append(F.cross_entropy(logits[None], torch.tensor([sequence[position]])))
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-5)


def test_other_tokens_cost_nothing_and_learn_nothing():
    logits = torch.randn(2, 4, 13, requires_grad=True)
    codes = torch.randint(0, 8, (2, 4))
    loss = code_cross_entropy(logits, codes, 8)
    loss.backward()
    assert torch.equal(logits.grad[..., 8:], torch.zeros(2, 4, 5))
    assert torch.allclose(loss, F.cross_entropy(logits[..., :8].reshape(-1, 8), codes.reshape(-1)))
    smoothed = code_cross_entropy(logits, codes, 8, label_smoothing=0.1)
    assert torch.allclose(
        smoothed, F.cross_entropy(logits[..., :8].reshape(-1, 8), codes.reshape(-1), label_smoothing=0.1)
    )


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(2, 4, 13).bfloat16()
    codes = torch.randint(0, 8, (2, 4))
    loss = code_cross_entropy(logits, codes, 8)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, code_cross_entropy(logits.float(), codes, 8))


def test_guessing_costs_as_many_bits_as_a_code_has():
    loss = code_cross_entropy(torch.zeros(1, 4, 13), torch.zeros(1, 4, dtype=torch.int64), 8)
    assert bits_per_code(loss).item() == pytest.approx(3)
    assert bits_per_code(math.log(2)) == pytest.approx(1)


def test_four_sequences_are_learned_by_heart():
    model = make_prior(PriorConfig(32, 2, 4), SEQUENCE)
    codes, labels = torch.randint(0, 8, (4, 4)), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = prior_loss(model, codes, labels, None, SEQUENCE).item()
    for _ in range(60):
        loss = prior_loss(model, codes, labels, None, SEQUENCE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(8), abs=0.2)
    assert loss.item() < 0.05
    assert model.training
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=0), codes)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [1, 3 * 8, 2**23])  # logits: a row, three, all
def test_the_loss_in_chunks_is_that_of_all_logits(smoothing, at_once, monkeypatch):
    monkeypatch.setattr(objective, "_LOGITS_AT_ONCE", at_once)
    hidden, weight = torch.randn(2, 5, 6, requires_grad=True), torch.randn(13, 6, requires_grad=True)
    codes = torch.randint(0, 8, (2, 5))
    expected = code_cross_entropy(hidden @ weight.t(), codes, 8, smoothing)
    gradients = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = objective.head_cross_entropy(hidden, weight, codes, 8, smoothing)
    torch.testing.assert_close(loss, expected)
    for own, gradient in zip(torch.autograd.grad(3 * loss, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(own, gradient)
    with torch.no_grad():
        torch.testing.assert_close(objective.head_cross_entropy(hidden, weight, codes, 8, smoothing), expected)


def test_the_loss_in_chunks_under_autocast_is_that_of_half_precision_logits():
    hidden, weight = torch.randn(2, 5, 6, requires_grad=True), torch.randn(13, 6, requires_grad=True)
    codes = torch.randint(0, 8, (2, 5))
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (
            code_cross_entropy(F.linear(hidden, weight), codes, 8),
            objective.head_cross_entropy(hidden, weight, codes, 8),
        ):
            assert loss.dtype == torch.float32
            found.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=2e-2, atol=2e-3)

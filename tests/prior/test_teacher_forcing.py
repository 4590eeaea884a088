"""The faster forward pass beside the stock model's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, PriorObjective, SequenceConfig, make_prior
from codegrid.prior.row_operations import causal_attention, gated_silu, rms_norm, rotate
from codegrid.prior.teacher_forcing import hidden_states

SEQUENCE = SequenceConfig(16, (4, 4), class_names=("a", "b"))


def run(model, tokens, forward, weight, bf16=False):
    """What `forward` gives for the tokens, and all gradients of its sum weighted by `weight`."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = forward(model, tokens)
    (hidden.float() * weight).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def stock(model, tokens):
    return model.model(input_ids=tokens, use_cache=False).last_hidden_state


def small(**changes):
    return PriorConfig(**{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **changes})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"positions": "rotary_2d"}, {"qk_norm": True}])
def test_it_is_the_stock_models_and_so_are_the_gradients(changes, checkpointing):
    model = make_prior(small(initializer_range=0.3, **changes), SEQUENCE)
    for parameter in model.parameters():  # norms that are not 1
        nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0, 0.3)
    tokens, weight = torch.randint(0, 19, (3, 16)), torch.randn(3, 16, 32)
    expected, gradients = run(model, tokens, stock, weight)
    actual, own = run(model, tokens, lambda *given: hidden_states(*given, checkpointing), weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_under_autocast_it_is_as_near_to_float32_as_the_stock_model():
    model = make_prior(small(initializer_range=0.2), SEQUENCE)
    tokens, weight = torch.randint(0, 19, (3, 16)), torch.randn(3, 16, 32)
    exact, gradients = run(model, tokens, stock, weight)
    errors = []
    for forward in (stock, hidden_states):
        actual, own = run(model, tokens, forward, weight, bf16=True)
        far = [(own[name] - gradient).norm() / gradient.norm() for name, gradient in gradients.items()]
        errors.append((float((actual - exact).norm() / exact.norm()), float(torch.stack(far).mean())))
    assert errors[1][0] < 1.3 * errors[0][0]
    assert errors[1][1] < 1.3 * errors[0][1]


def test_a_model_that_is_built_otherwise_runs_as_it_is():
    model = make_prior(small(), SEQUENCE)

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.model.layers[0].self_attn.q_proj.__class__ = Doubled
    tokens = torch.randint(0, 19, (3, 16))
    assert torch.equal(hidden_states(model, tokens), stock(model, tokens))


def test_checkpointing_is_refused_where_it_would_do_nothing():
    gpt2 = make_prior(small(architecture="gpt2"), SEQUENCE)
    with pytest.raises(CodegridError, match="not there for this GPT2LMHeadModel"):
        PriorObjective(gpt2, 16, checkpointing=True)
    with pytest.raises(CodegridError, match="not there for this GPT2LMHeadModel"):
        hidden_states(gpt2, torch.zeros(1, 3, dtype=torch.int64), checkpointing=True)
    with pytest.raises(CodegridError, match="part of the fast forward pass"):
        PriorObjective(make_prior(small(), SEQUENCE), 16, checkpointing=True, fast=False)


def test_gradients_of_the_row_operations_are_those_of_finite_differences():
    x, weight = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    angles = torch.randn(3, 1, 3, dtype=torch.float64)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)
    x.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))
    assert torch.autograd.gradcheck(gated_silu, (x,))


def test_attention_dropout_draws_in_training_only():
    model = make_prior(small(attention_dropout=0.5), SEQUENCE)
    tokens = torch.randint(0, 19, (3, 16))
    with torch.no_grad():
        assert not torch.equal(hidden_states(model, tokens), hidden_states(model, tokens))
        model.eval()
        assert torch.equal(hidden_states(model, tokens), hidden_states(model, tokens))


def test_compiled_it_is_the_same():
    objective = PriorObjective(make_prior(small(), SEQUENCE), SEQUENCE.codebook_size)
    tokens, found = torch.randint(0, 16, (3, 17)), []
    for compiled in (False, True):
        if compiled:
            objective.compile(backend="aot_eager")  # traces all, and needs no C++ compiler
        loss = objective(tokens)
        found.append((loss, *torch.autograd.grad(loss, list(objective.parameters()))))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 64])
def test_attention_of_short_sequences_in_bf16_is_that_of_float64(length):
    torch.manual_seed(0)
    parts = [torch.randn(2, length, 3, 8, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3)]
    grad = torch.randn(2, 3, length, 8)
    found = causal_attention(*parts)
    assert found.grad_fn is not None
    assert type(found.grad_fn).__name__ == "_AttentionBackward"  # the road that is under test
    exact = [part.detach().double().requires_grad_() for part in parts]
    scores = exact[0] @ exact[1].mT / 8**0.5
    seen = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1) @ exact[2]
    ours = [found, *torch.autograd.grad(found, parts, grad.bfloat16())]
    theirs = [seen, *torch.autograd.grad(seen, exact, grad.double())]
    for own, right in zip(ours, theirs, strict=True):
        assert (own.double() - right).norm() <= 0.02 * right.norm()

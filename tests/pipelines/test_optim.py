"""Optimizer, learning rate, and one update."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.learner import Learner, update_together
from codegrid.pipelines.training.optim import OptimizerConfig, learning_rate, make_optimizer


def test_the_learning_rate_rises_and_falls():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, min_learning_rate=0.1)
    rates = [learning_rate(config, step, max_steps=105) for step in range(105)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)  # half way down
    assert rates[4 + 25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)  # the last step
    assert rates[-2] > 0.1
    assert learning_rate(config, 200, 105) == pytest.approx(0.1)
    assert learning_rate(OptimizerConfig(learning_rate=1.0), 0, 1) == 1.0
    short = OptimizerConfig(learning_rate=1.0, warmup_steps=50)  # longer than the run
    assert 0 < learning_rate(short, 1, 2) < 0.1


def test_the_learning_rates_go_with_the_batch_by_the_rule():
    config = OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-5, base_batch_size=16)
    assert config.for_batch(16) == replace(config, base_batch_size=0)  # bit for bit
    square_root, linear = config.for_batch(64), replace(config, batch_scaling="linear").for_batch(64)
    assert (square_root.learning_rate, square_root.min_learning_rate) == pytest.approx((2e-3, 2e-5))
    assert (linear.learning_rate, linear.min_learning_rate) == pytest.approx((4e-3, 4e-5))
    assert config.for_batch(4).learning_rate == pytest.approx(5e-4)
    assert replace(config, base_batch_size=0).for_batch(64).learning_rate == 1e-3
    assert square_root.for_batch(64) == square_root  # resolved once


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_batch_size": -1}, "base_batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"momentum": 0.0}, "momentum is 0.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)


def test_only_matrices_decay():
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3), "norm": nn.GroupNorm(2, 4), "embedding": nn.Embedding(5, 2)})
    model["norm"].bias.requires_grad_(False)
    decayed, others = make_optimizer(model, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model["conv"].weight)]
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (model["conv"].bias, model["norm"].weight, model["embedding"].weight)
    }


def learner(**config) -> Learner:
    torch.manual_seed(0)
    return Learner.make(nn.Linear(3, 2), OptimizerConfig(**config), make_accelerator("cpu"))


def test_an_update_clips_and_steps_and_clears():
    one, other = learner(max_grad_norm=0.5, learning_rate=0.1), learner(max_grad_norm=0.0, learning_rate=0.1)
    for each, scale in ((one, 1.0), (other, 0.5 / math.sqrt(8 * 9))):
        for parameter in each.module.parameters():
            parameter.grad = torch.full_like(parameter, 3.0 * scale)
    assert update_together([one, other], 0, 10) == pytest.approx([math.sqrt(8 * 9), 0.5])  # before clipping
    for parameter, wanted in zip(one.module.parameters(), other.module.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted)
        assert parameter.grad is None
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_one_norm_that_is_not_finite_changes_nothing_of_any(bad, max_grad_norm):
    learners = [learner(max_grad_norm=max_grad_norm) for _ in range(2)]
    parameters = [parameter for each in learners for parameter in each.module.parameters()]
    before = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    learners[0].module.bias.grad[0] = bad
    norms = update_together(learners, 0, 10)
    assert [math.isfinite(norm) for norm in norms] == [False, True]
    assert all(torch.equal(one, two) for one, two in zip(before, parameters, strict=True))
    assert all(parameter.grad is None for parameter in parameters)
    assert not any(each.optimizer.state for each in learners)

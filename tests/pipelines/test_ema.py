"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codegrid.pipelines.training.ema import EMA


def test_the_average_follows_the_formula():
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(ema.weights["weight"], expected)
    assert not torch.allclose(expected, model.weight)


def test_the_average_is_applied_and_taken_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(model, 0.9)
    parameter = model[0].weight
    with torch.no_grad():
        parameter.fill_(7.0)
    averages = {name: tensor.clone() for name, tensor in ema.weights.items()}
    with ema.applied():
        assert torch.equal(model[0].weight, averages["0.weight"])
        assert torch.equal(model.state_dict()["0.weight"], averages["0.weight"])
    assert (model[0].weight == 7.0).all()
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert model[0].weight is parameter
    assert (parameter == 7.0).all()
    assert torch.equal(ema.weights["0.weight"], averages["0.weight"])


def test_without_decay_it_is_the_model():
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.0)
    before = model.weight.detach().clone()
    ema.update(0)
    ema.copy_rows("weight", torch.tensor([0]))
    with ema.applied():
        assert torch.equal(model.weight, before)
    assert ema.weights == {}


def test_rows_are_taken_over_as_they_are():
    model = nn.Embedding(4, 2)
    ema = EMA(model, 0.9)
    before = ema.weights["weight"].clone()
    with torch.no_grad():
        model.weight.fill_(5.0)
    ema.copy_rows("weight", torch.tensor([1, 3]))
    assert (ema.weights["weight"][[1, 3]] == 5.0).all()
    assert torch.equal(ema.weights["weight"][[0, 2]], before[[0, 2]])


def test_weights_come_back():
    model = nn.Linear(2, 2)
    ema, other = EMA(model, 0.9), EMA(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
    ema.update(100)
    other.load(ema.weights)
    assert torch.equal(ema.weights["weight"], other.weights["weight"])
    assert ema.weights["weight"] is not other.weights["weight"]


def test_buffers_are_taken_as_they_are():
    model = nn.BatchNorm1d(4)
    ema = EMA(model, 0.9)
    model.running_mean.fill_(5.0)
    ema.update(0)
    ema.copy_rows("running_mean", torch.tensor([0]))
    with ema.applied():
        assert (model.running_mean == 5.0).all()
    assert set(ema.weights) == {"weight", "bias"}

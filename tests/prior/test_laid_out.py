"""Weights laid out once: kept while the model is as it was, read again when it is not."""

import copy
import pickle

import pytest
import torch

from codegrid.prior import PriorConfig, SequenceConfig, laid_out, make_prior
from codegrid.prior.architectures import ARCHITECTURES
from codegrid.prior.laid_out import LaidOut
from codegrid.prior.sampling import iterate_codes

SEQUENCE = SequenceConfig(24, (2, 2), class_names=("a", "b"))
SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "initializer_range": 0.3}


def halve(model):
    model.lm_head.weight.mul_(0.5)


def halve_unseen(model):
    model.lm_head.weight.data.mul_(0.5)


def replace(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 0.5)


def load(model):
    model.load_state_dict(make_prior(PriorConfig(**SIZE), SEQUENCE).state_dict())


@torch.no_grad()
@pytest.mark.parametrize("change", [halve, halve_unseen, replace, load, lambda model: model.bfloat16()])
def test_weights_are_read_again_when_they_have_changed(change):
    model, kept = make_prior(PriorConfig(**SIZE), SEQUENCE).eval(), LaidOut()
    first = kept.read(model, 24, 4, "exact")
    assert kept.read(model, 24, 4, "exact") is first
    assert kept.read(model, 24, 3, "exact") is not first
    first = kept.read(model, 24, 4, "exact")
    change(model)
    assert kept.read(model, 24, 4, "exact") is not first


def test_another_model_is_not_taken_for_the_first():
    kept, models = LaidOut(), [make_prior(PriorConfig(**SIZE), SEQUENCE).eval() for _ in range(2)]
    assert kept.read(models[0], 24, 4, "exact") is not kept.read(models[1], 24, 4, "exact")


def test_calls_share_a_layout_and_codes_are_those_of_calls_alone(monkeypatch):
    model, kept, calls = make_prior(PriorConfig(**SIZE), SEQUENCE).eval(), LaidOut(), []
    original = laid_out.read_weights
    monkeypatch.setattr(laid_out, "read_weights", lambda *a, **k: (calls.append(a), original(*a, **k))[1])
    found = [torch.cat(list(iterate_codes(model, SEQUENCE, [0, 1], seeds=[0, 1], laid_out=kept))) for _ in range(3)]
    assert len(calls) == 1
    alone = torch.cat(list(iterate_codes(model, SEQUENCE, [0, 1], seeds=[0, 1])))
    assert len(calls) == 2
    assert all(torch.equal(codes, alone) for codes in found)


def test_copies_start_empty_and_forgetting_frees():
    model, kept = make_prior(PriorConfig(**SIZE), SEQUENCE).eval(), LaidOut()
    kept.read(model, 24, 4, "exact")
    assert copy.deepcopy(kept)._kept is None
    assert pickle.loads(pickle.dumps(kept))._kept is None
    kept.forget()
    assert kept._kept is None


@torch.no_grad()
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
def test_in_place_nothing_is_copied_and_the_codes_are_the_same(architecture):
    sizes = {**SIZE, "num_hidden_layers": 2, "architecture": architecture}
    model = make_prior(PriorConfig(**sizes), SEQUENCE).eval()
    kept = LaidOut(in_place=True)
    weights = kept.read(model, 24, 4, "exact")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for layer in weights.layers:
        parts = [layer.qkv, layer.output, *(part for part in vars(layer.mlp).values() if hasattr(part, "row_multiple"))]
        for part in parts:
            for each in getattr(part, "maps", [part]):
                assert each.weight.untyped_storage().data_ptr() in own
    assert weights.head.weight.untyped_storage().data_ptr() in own
    options = {"seeds": [0, 1], "guidance_scale": 2.0}
    found = torch.cat(list(iterate_codes(model, SEQUENCE, [0, 1], laid_out=kept, **options)))
    assert torch.equal(found, torch.cat(list(iterate_codes(model, SEQUENCE, [0, 1], **options))))

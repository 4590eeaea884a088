"""The registry of architectures, and one that is added from outside of the package."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.cards import prior_card
from codegrid.pipelines.artifacts.index import read_index, write_index
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.prior import (
    ARCHITECTURES,
    Architecture,
    PriorConfig,
    PriorObjective,
    SamplingConfig,
    SequenceConfig,
    load_prior,
    make_prior,
    prior_loss,
    register_architecture,
    sample_codes,
    save_prior,
)
from codegrid.prior.architectures import num_positions, shared_values
from codegrid.prior.architectures.llama_decoding import read_llama

SEQUENCE = SequenceConfig(16, (3, 3), class_names=("a", "b"))
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


class ToyConfig(MistralConfig):
    model_type = "codegrid_test_toy"


class ToyForCausalLM(MistralForCausalLM):
    config_class = ToyConfig


def toy_config(config, sequence):
    sizes = {name: getattr(config, name) for name in SIZE}
    shared = shared_values(config, sequence)
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": num_positions(sequence)}
    return ToyConfig(**sizes, **shared)


TOY = Architecture(
    name="toy",
    title="Toy",
    config_class=ToyConfig,
    model_class=ToyForCausalLM,
    config=toy_config,
    read_weights=read_llama,
    library="toys",
)


@pytest.fixture
def toy():
    yield register_architecture(TOY)
    ARCHITECTURES.pop("toy")


def test_what_auto_means():
    """A config that today's version saved names its architecture by positions and qk_norm."""
    for fields, name in [
        ({}, "llama"),
        ({"positions": "rotary_2d"}, "grid_llama"),
        ({"qk_norm": True}, "qwen3"),
        ({"positions": "learned"}, "gpt2"),
    ]:
        torch.manual_seed(0)
        model = make_prior(PriorConfig(**SIZE, **fields), SEQUENCE)
        torch.manual_seed(0)
        named = make_prior(PriorConfig(**SIZE, architecture=name), SEQUENCE)
        assert PriorConfig(**SIZE, **fields).record is ARCHITECTURES[name]
        assert type(named) is type(model) is ARCHITECTURES[name].model_class
        assert named.config.to_dict() == model.config.to_dict()
        for ours, theirs in zip(named.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_an_architecture_from_outside(toy, tmp_path):
    """It trains, is sampled from, saved, loaded, put into a pipeline, and has its name on its card."""
    model = make_prior(PriorConfig(**SIZE, initializer_range=0.3, architecture="toy"), SEQUENCE)
    codes, labels = torch.randint(0, 16, (4, 9)), torch.tensor([0, 1, 0, 1])
    loss = prior_loss(model, codes, labels, None, SEQUENCE)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    greedy = sample_codes(model, SEQUENCE, labels, temperature=0)
    start = labels[:, None] + 16
    assert torch.equal(greedy, model.generate(start, do_sample=False)[:, 1:])
    assert sample_codes(model, SEQUENCE, labels, seeds=range(4), guidance_scale=2.0).shape == (4, 9)
    save_prior(model, SEQUENCE, tmp_path)
    loaded, _ = load_prior(tmp_path)
    for other in (loaded, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(other) is ToyForCausalLM
        assert torch.equal(other(start).logits, model(start).logits)
    write_index(tmp_path, "ToyForCausalLM", SamplingConfig())
    assert '"toys"' in (tmp_path / "model_index.json").read_text()
    assert read_index(tmp_path) == SamplingConfig()
    card = prior_card(SEQUENCE, model_type=model.config.model_type)
    assert "A Toy that predicts" in card
    assert "- toy\n" in card


def test_what_a_record_does_not_have_is_refused(toy):
    model = make_prior(PriorConfig(**SIZE, architecture="toy"), SEQUENCE)
    with pytest.raises(CodegridError, match="not there for this ToyForCausalLM"):
        PriorObjective(model, 16, checkpointing=True)
    with pytest.raises(CodegridError, match="not there for the architecture 'toy'"):
        PriorTrainingConfig(model=PriorConfig(architecture="toy"), gradient_checkpointing=True)


def test_an_unknown_architecture_is_not_loaded(toy, tmp_path):
    save_prior(make_prior(PriorConfig(**SIZE, architecture="toy"), SEQUENCE), SEQUENCE, tmp_path)
    ARCHITECTURES.pop("toy")
    try:
        with pytest.raises(CodegridError, match=r"ToyForCausalLM.*Load a prior that is one of LlamaForCausalLM"):
            load_prior(tmp_path)
    finally:
        register_architecture(TOY)


@pytest.mark.parametrize("field", ["name", "config_class", "model_class"])
def test_names_are_taken_once(toy, field):
    register_architecture(TOY)  # the same record again, as when a notebook's cell runs twice
    other = {"name": "other", "config_class": MistralConfig, "model_class": MistralForCausalLM}
    other[field] = getattr(TOY, field)
    known = {"config": toy_config, "read_weights": read_llama, "title": "Other"}
    with pytest.raises(CodegridError, match="already"):
        register_architecture(Architecture(**known, **other))

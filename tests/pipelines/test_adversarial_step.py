"""Which terms a step has: each from its own start on, and the discriminator's not before the discriminator's."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from codegrid.pipelines.training.tokenizer import train as module
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer.discriminators import DinoConfig
from codegrid.tokenizer.feature_nets.weights import WeightsError


def test_terms_start_at_their_steps_and_are_logged_by_their_names(tokenizer_config, tmp_path, read_metrics):
    objective = {
        "l2_weight": 1.0,
        "l2_start": 1,
        "adversarial_weight": 0.5,
        "adversarial_start": 2,
        "adversarial_warmup": 0,
        "gradient_penalty_weight": 1.0,
        "gradient_penalty_start": 3,
        "r1_weight": 1.0,  # its start of 0 is before the discriminator's
        "lecam_weight": 0.1,
        "lecam_start": 4,
    }
    run = train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=5, log_every=1, objective=objective))
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    terms = {"l1", "l2", "adversarial", "discriminator", "gradient_penalty", "r1", "lecam"}
    found = [terms & set(line) for line in lines]
    assert found[0] == {"l1"}
    assert found[1] == {"l1", "l2"}
    assert found[2] == {"l1", "l2", "adversarial", "discriminator", "r1"}
    assert found[3] == found[2] | {"gradient_penalty"}
    assert found[4] == terms


def test_a_frozen_discriminator_is_resumed_and_not_saved(tokenizer_config, tmp_path, at_step):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(tmp_path / "vit")
    objective = {
        "adversarial_weight": 0.5,
        "adversarial_start": 0,
        "r1_weight": 1.0,
        "discriminator": DinoConfig(net=str(tmp_path / "vit"), image_size=0, channels=8),
    }
    changes = {"max_steps": 3, "save_every": 1, "objective": objective}
    whole = train_tokenizer(tokenizer_config(tmp_path / "whole", **changes))
    saved = load_file(whole / "checkpoints" / "step-000000003" / "discriminator.safetensors")
    assert {name.split(".")[0] for name in saved} == {"heads", "_extra_state"}

    def break_off():
        raise InterruptedError

    config = tokenizer_config(tmp_path / "broken", **changes)
    at_step(module, "train_step", 2, break_off)
    with pytest.raises(InterruptedError):
        train_tokenizer(config)
    broken = train_tokenizer(config)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    objective["discriminator"] = DinoConfig(net="nobody/nothing")
    with pytest.raises(WeightsError, match=r"objective\.discriminator\.net 'nobody/nothing' is neither"):
        train_tokenizer(tokenizer_config(tmp_path / "none", **changes))

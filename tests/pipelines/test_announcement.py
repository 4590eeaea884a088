"""What a run says before it starts."""

from __future__ import annotations

import pytest

from pipelines.training.announcement import describe_learning_rate
from pipelines.training.optim import OptimizerConfig
from pipelines.training.presets import PRIOR_PRESETS, TOKENIZER_PRESETS
from pipelines.training.train_tokenizer import train_tokenizer
from tokenizer import VQModel


def test_a_run_announces_what_it_resolved(tokenizer_config, tmp_path, capsys):
    optimizer = OptimizerConfig(learning_rate=1e-3, base_batch_size=2)
    objective = {"adversarial_weight": 0.5, "adversarial_start": 0}
    config = tokenizer_config(
        tmp_path / "run", max_steps=1, optimizer=optimizer, gradient_accumulation_steps=2, objective=objective
    )
    folder = train_tokenizer(config)
    said = capsys.readouterr().out
    model = VQModel.from_pretrained(folder)
    parts = {"encoder": model.encoder, "decoder": model.decoder, "quantizer": model.quantize}
    for name, module in parts.items():
        assert f"{name} {sum(p.numel() for p in module.parameters()) / 1e3:.1f}k" in said
    assert "; discriminator 2.7k." in said  # 4x4 convolutions 3 -> 8 -> 16 -> 1, one norm
    # 4x4 codes of 5 bits for 16x16 pixels of 24
    assert "16x16 becomes 16 tokens (4x4) of 32 codes: 0.312 bits a pixel, 77 times fewer than the pixels' 24" in said
    assert "4 (2 x 1 devices x 2 micro-steps) images a step" in said
    assert "learning rate 0.001414 (0.001 at a batch of 2, square root rule), discriminator's 0.001." in said
    assert "Memory, an estimate: " in said


def test_the_presets_learning_rates_are_meant_for_their_batch():
    for presets in (TOKENIZER_PRESETS, PRIOR_PRESETS):
        for preset in presets.values():
            config = preset("source", "run")
            assert describe_learning_rate(config.optimizer, config.batch_size) == f"{config.optimizer.learning_rate:g}"
            assert config.optimizer.base_batch_size == config.batch_size


def test_a_learning_rate_says_what_scaled_it():
    config = OptimizerConfig(learning_rate=4e-4, base_batch_size=256, batch_scaling="linear")
    assert describe_learning_rate(config, 64) == "0.0001 (0.0004 at a batch of 256, linear rule)"
    assert describe_learning_rate(config, 256) == "0.0004"


@pytest.mark.parametrize("name", ["used", "not used"])
def test_the_rate_that_is_announced_is_the_one_of_the_steps(name, tokenizer_config, tmp_path, read_metrics):
    base = 1 if name == "used" else 0
    optimizer = OptimizerConfig(learning_rate=1e-3, base_batch_size=base)
    lines = read_metrics(train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=1, optimizer=optimizer)))
    assert lines[0]["learning_rate"] == pytest.approx(2e-3 if base else 1e-3)

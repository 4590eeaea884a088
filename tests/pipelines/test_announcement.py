"""What a run says before it starts."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from codegrid.pipelines.training import loop
from codegrid.pipelines.training.announcement import describe_learning_rate, flops_a_token
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.prior.presets import PRIOR_PRESETS
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior import PriorConfig, PriorObjective, SequenceConfig, make_prior
from codegrid.tokenizer import VQModel


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


LLAMAGEN = {"llama-111m": 111, "llama-343m": 343, "llama-775m": 775, "llama-1.4b": 1411, "llama-3b": 3077}


@pytest.mark.parametrize("name", PRIOR_PRESETS)
def test_the_presets_priors_have_the_size_that_they_are_named_after(name):
    """LlamaGen's have 16,384 codes and 1,000 classes; the small ones 1,024 codes and ten."""
    classes, size = (1000, 16_384) if name in LLAMAGEN else (10, 1024)
    sequence = SequenceConfig(size, (16, 16), class_names=tuple(map(str, range(classes))))
    with torch.device("meta"):
        model = make_prior(PRIOR_PRESETS[name]("codes", "run").model, sequence)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(LLAMAGEN.get(name, 1.73), rel=0.02)


def test_a_priors_run_announces_memory_and_time(prior_config, tmp_path, capsys):
    train_prior(prior_config(tmp_path / "run", max_steps=1))
    said = capsys.readouterr().out
    assert "Memory, an estimate: " in said
    assert re.search(r"Time, at least: .* a step .* how long the 1 steps take\.", said)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_operations_are_those_that_torch_counts(positions):
    sequence = SequenceConfig(64, (4, 4))
    objective = PriorObjective(make_prior(PriorConfig(32, 2, 2, positions=positions), sequence), 64)
    # The counter knows matrix products. It sees those of attention in this kernel alone: CPUs' fused one is none to it.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(torch.randint(0, 64, (3, 17))).backward()
    attention = 2 * 12 * 32 * 16 * 3 * 16  # of all scores, masked or not, in 2 layers; half of them are ours
    assert 3 * 16 * flops_a_token(objective, sequence) == counter.get_total_flops() - attention / 2


def test_the_time_that_is_left_is_told_once_by_the_steps_that_were_taken(monkeypatch):
    """The first step, which warms up, does not count."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock, told = loop.Clock(1_000, steps=10, seconds=5.0), []
    for done in range(1, 1_001):
        now[0] += 60.0 if done == 1 else 0.3
        told.append(clock.tick(done))
    assert [line for line in told if line] == [told[17]]  # 17 steps of 0.3 s are the first 5 s
    assert told[17] == "300 ms a step: about 4 min 55 s for the 982 steps left, and evaluations."

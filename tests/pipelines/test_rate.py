"""The rate in a tokenizer's training: what its codes cost a small prior beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegrid.pipelines.commands import main
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.checkpoint import load_newest_checkpoint
from codegrid.pipelines.training.tokenizer import step
from codegrid.pipelines.training.tokenizer import train as train_tokenizer
from codegrid.pipelines.training.tokenizer.rate import CodePredictor, make_predictor, rate_terms
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import QUANTIZERS, SimVQConfig

RATE = {"rate_weight": 0.01}


def model_of(config) -> VQModel:
    torch.manual_seed(0)
    return VQModel(VQModelConfig(backbone=config.backbone, quantizer=config.quantizer)).train()


def images(number: int = 4) -> torch.Tensor:
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_predictor_does_not_see_the_code_that_it_predicts():
    torch.manual_seed(0)
    predictor = CodePredictor(32, (2, 3))
    codes = torch.randint(32, (1, 2, 3))
    before = predictor(codes)  # [6, 32]
    torch.testing.assert_close(before.exp().sum(1), torch.ones(6))
    for place in range(6):
        other = codes.flatten().clone()
        other[place] = (other[place] + 1) % 32
        after = predictor(other.view(1, 2, 3))
        torch.testing.assert_close(after[: place + 1], before[: place + 1])
        assert all(not torch.allclose(after[later], before[later]) for later in range(place + 1, 6))


@pytest.mark.parametrize("quantizer", [{"l2_normalize": True}, {"l2_normalize": False}, None], ids=str)
def test_the_rates_gradient_reaches_encoder_and_codebook_and_not_the_predictor(quantizer, tokenizer_config, tmp_path):
    config = tokenizer_config(tmp_path, quantizer=quantizer or {})
    if quantizer is None:
        config = replace(config, quantizer=SimVQConfig(codebook_size=32, code_dim=4))
    model, host = model_of(config), make_accelerator("cpu")
    predictor = make_predictor(model, host)
    rate, learned = rate_terms(predictor, model, model(images()), host)
    assert torch.equal(rate, learned)
    rate.backward()
    for part in (model.encoder, model.quantize):
        assert all(each.grad.isfinite().all() and each.grad.abs().sum() > 0 for each in part.parameters())
    assert all(each.grad is None for each in (*predictor.module.parameters(), *model.decoder.parameters()))
    model.zero_grad(set_to_none=True)
    learned.backward()
    assert all(each.grad is None for each in model.parameters())
    assert all(each.grad.abs().sum() > 0 for each in predictor.module.parameters())


def test_a_steps_gradients_are_those_of_all_terms_added_up(tokenizer_config, tmp_path, monkeypatch):
    config = tokenizer_config(tmp_path, objective={"rate_weight": 0.3})
    host, parts = make_accelerator("cpu"), (config.optimizer, config.discriminator_optimizer, 0.0)
    learners = make_learners(model_of(config), config.objective, *parts, host)
    model, predictor = learners.model.module, learners.predictor.module
    output = model(images())
    distances = model.quantize.distances(output.features)
    p = (-distances / distances.amin(1).mean().detach()).softmax(1)
    rate = -(p * predictor(output.codes)).sum(1).mean()
    terms = (images() - output.reconstruction).abs().mean() + sum(output.losses.values())
    expected = torch.autograd.grad(terms + 0.3 * rate, list(model.parameters()), retain_graph=True)
    learned = torch.autograd.grad(rate, list(predictor.parameters()))

    monkeypatch.setattr(step, "update_together", lambda learners, *_: [torch.zeros(()) for _ in learners])
    values = train_step(learners, config, [images()], 0, host)
    assert values["rate"].item() == pytest.approx(rate.item())
    pairs = zip((*model.parameters(), *predictor.parameters()), (*expected, *learned), strict=True)
    assert all(torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6) for parameter, gradient in pairs)


def test_next_to_no_weight_changes_no_bit_of_a_run_and_none_computes_nothing(tokenizer_config, tmp_path, read_metrics):
    def run(weight: float):
        adversarial = {"adversarial_weight": 0.5, "adversarial_start": 1, "gradient_penalty_weight": 1.0}
        config = tokenizer_config(
            tmp_path / str(weight),
            max_steps=4,
            log_every=1,
            ema_decay=0.9,
            backbone={"dropout": 0.3},
            objective={"rate_weight": weight, **adversarial},
        )
        return train_tokenizer.train_tokenizer(config)

    with_rate, without = run(1e-30), run(0.0)
    assert (with_rate / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()
    assert (with_rate / "config.json").read_bytes() == (without / "config.json").read_bytes()
    lines = [line for line in read_metrics(with_rate) if line["kind"] == "train"]
    own = {"rate", "rate_grad_norm", "rate_learning_rate"}
    for line, other in zip(lines, [line for line in read_metrics(without) if line["kind"] == "train"], strict=True):
        assert {name: value for name, value in line.items() if name not in own} == other
        assert 0 < line["rate"] < 8  # nats, of 32 codes about log 32 = 3.5
        assert "discriminator_grad_norm" not in line or line["discriminator_grad_norm"] != line["rate_grad_norm"]
    groups = load_newest_checkpoint(without / "checkpoints").groups
    assert not [name for name in groups if "rate" in name]


def test_a_resumed_run_equals_one_that_was_not_broken_off(tokenizer_config, tmp_path, at_step):
    def broken():
        raise ZeroDivisionError

    changes = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "save_every": 2,
        "objective": {**RATE, "rate_start": 1},
    }
    whole = train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "whole", **changes))
    at_step(train_tokenizer, "train_step", 3, broken)
    with pytest.raises(ZeroDivisionError):
        train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "parts", **changes))
    parts = train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "parts", **changes))
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    one, other = (load_newest_checkpoint(folder / "checkpoints") for folder in (whole, parts))
    assert {"rate", "rate_optimizer"} <= set(one.groups)
    for group, tensors in one.groups.items():
        assert set(tensors) == set(other.groups[group])
        assert all(torch.equal(tensor, other.groups[group][name]) for name, tensor in tensors.items()), group


def test_a_step_whose_gradients_are_not_finite_leaves_the_predictor(tokenizer_config, tmp_path):
    config = tokenizer_config(tmp_path, objective=RATE)
    host, parts = make_accelerator("cpu"), (config.optimizer, config.discriminator_optimizer, 0.0)
    learners = make_learners(model_of(config), config.objective, *parts, host)
    before = {name: value.clone() for name, value in learners.predictor.module.state_dict().items()}
    bad = images()
    bad[0, 0, 0, 0] = torch.nan
    assert train_step(learners, config, [bad], 0, host)["skipped_steps"]
    assert all(torch.equal(value, before[name]) for name, value in learners.predictor.module.state_dict().items())
    assert not train_step(learners, config, [images()], 0, host)["skipped_steps"]
    assert any(not torch.equal(value, before[name]) for name, value in learners.predictor.module.state_dict().items())


def test_quantizers_without_distances_or_frozen_ones_are_refused(tokenizer_config, tmp_path):
    config = tokenizer_config(tmp_path, objective=RATE)
    refused = [kind for kind in QUANTIZERS.values() if not kind.has_distances]
    assert {"fsq", "lfq", "bsq", "ibq", "gumbel", "residual", "grouped", "hierarchical"} <= {k.type for k in refused}
    for kind in refused:
        with pytest.raises(ValueError, match=rf"rate_weight is 0\.01, and the quantizer '{kind.type}' has no table of"):
            replace(config, quantizer=kind())
    with pytest.raises(ValueError, match="encoder and quantizer are frozen: no code can change"):
        replace(config, init_from="somewhere", finetune_decoder=True)
    with pytest.raises(ValueError, match=r"objective\.rate_weight is -1"):
        tokenizer_config(tmp_path, objective={"rate_weight": -1.0})


def test_two_steps_by_the_command(pictures, tmp_path, read_metrics, capsys):
    small = ["--preprocessing.image-size", "16", "--backbone.resolution", "16", "--backbone.patch-size", "2"]
    steps = ["--max-steps", "2", "--batch-size", "4", "--num-pictures", "0", "--tracking"]
    given = ["--data.source", str(pictures), "--objective.rate-weight", "0.001", "--output-dir", str(tmp_path / "run")]
    main(["train-tokenizer", "small64", *given, *small, *steps])
    assert "a small prior for the rate" in capsys.readouterr().out
    assert [line["rate"] > 0 for line in read_metrics(tmp_path / "run") if line["kind"] == "train"] == [True]
    codes = VQModel.from_pretrained(tmp_path / "run").encode(torch.zeros(1, 3, 16, 16))
    assert codes.shape[0] == 1

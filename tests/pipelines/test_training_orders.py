"""Priors of any order and masked ones: trained by the same command on the same codes."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.evaluation.prior import evaluate_prior
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.training.config import OptimizerConfig, PriorTrainingConfig
from codegrid.pipelines.training.prior import train as train_prior
from codegrid.pipelines.training.prior.orders import TrainingOrders
from codegrid.prior import PriorConfig, SequenceConfig, load_prior, make_prior

SEQUENCE = SequenceConfig(24, (3, 4))
KINDS = [{"order": "annealed"}, {"order": "random"}, {"model": {"architecture": "bert"}}]
KINDS += [{"order": "annealed", "model": {"architecture": "any_order_gpt2"}}]


def orders_of(architecture, **fields):
    config = PriorTrainingConfig(batch_size=4000, max_steps=1000, **fields)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return TrainingOrders(config, SEQUENCE, make_prior(PriorConfig(**size, architecture=architecture), SEQUENCE))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_they_train_stop_resume_and_are_sampled_from_their_folder(
    kind, prior_config, tokenizer_folder, codes, tmp_path, at_step, read_metrics
):
    def config(folder):
        changes = {"max_steps": 6, "eval_every": 3, "num_samples": 2, "gradient_accumulation_steps": 2}
        changes |= {name: dict(value) if isinstance(value, dict) else value for name, value in kind.items()}
        return prior_config(folder, tokenizer=str(tokenizer_folder), **changes)

    folder = train_prior.train_prior(config(tmp_path / "whole"))
    at_step(train_prior, "seed_step", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train_prior.train_prior(config(tmp_path / "parts"))
    parts = train_prior.train_prior(config(tmp_path / "parts"))
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (parts / name).read_bytes() == (folder / name).read_bytes(), name
    scores = read_metrics(folder)[-1]
    assert scores["cross_entropy"] == pytest.approx(np.log(32), abs=0.3)
    assert ("cross_entropy_any_order" in scores) == ("order" in kind)
    made = make_pipeline(str(tokenizer_folder), str(folder), str(tmp_path / "pipeline"))
    pipe = ImageGenerationPipeline.from_pretrained(made)
    assert type(pipe.prior) is type(load_prior(folder)[0])
    for options in ({}, {"order": "random"}, {"num_steps": 3}):
        assert pipe(0, output_type="codes", seed=0, **options).codes.shape == (1, 4, 4)
    if "order" in kind:
        evaluate_prior(str(folder), str(codes), str(tmp_path / "scores"))
    else:
        with pytest.raises(CodegridError, match="no likelihood in one pass"):
            evaluate_prior(str(folder), str(codes), str(tmp_path / "scores"))


def test_the_share_of_random_orders_falls_to_its_end():
    orders = orders_of("any_order_gpt2", order="annealed", random_share=0.25)
    assert [orders.random_share(step) for step in (0, 500, 625, 750, 999)] == [1, 1, 0.625, 0.25, 0.25]
    raster = torch.arange(12)
    for step, share in ((0, 1.0), (999, 0.25)):
        drawn = orders.of_step(step).order
        assert (drawn != raster).any(1).double().mean().item() == pytest.approx(share, abs=0.03)
        assert torch.equal(drawn, orders.of_step(step).order)
    assert torch.equal(drawn.sort(1).values, raster.expand_as(drawn))


def test_the_share_of_random_orders_of_a_mixed_run_is_the_same_all_along():
    orders = orders_of("any_order_gpt2", order="mixed", random_share=0.25)
    for step in (0, 400, 999):
        drawn = orders.of_step(step).order
        assert (drawn != torch.arange(12)).any(1).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_what_a_masked_prior_sees_follows_the_cosine():
    orders = orders_of("bert")
    known = orders.of_step(3).known
    unknown = np.ceil(12 * np.cos(np.pi / 2 * np.linspace(0, 1, 10_000, endpoint=False)))
    assert (~known).sum(1).double().mean().item() == pytest.approx(unknown.mean(), abs=0.3)
    assert (~known).sum(1).min() >= 1
    rows = np.arange(600)
    held, none = orders.held_out(rows)
    assert none is None
    numbers = held.known.sum(1)
    assert {int(number) for number in numbers} == set(range(12))  # evenly, for the mean over all orders
    assert numbers.double().mean().item() == pytest.approx(5.5, abs=0.6)
    assert torch.equal(orders.held_out(rows[7:9])[0].known, held.known[7:9])


def test_configs_say_the_architecture_and_older_ones_have_raster_order(prior_config, tmp_path):
    config = prior_config(tmp_path, order="annealed")
    assert config.model.architecture == "any_order_llama"
    assert prior_config(tmp_path).order == "raster"
    for fields, said in [
        ({"order": "spiral"}, "spiral"),
        ({"order": "annealed", "random_share": 1.5}, "random_share is 1.5"),
        ({"order": "random", "model": {"architecture": "llama"}}, "raster order only"),
        ({"order": "random", "model": {"qk_norm": True}}, "Turn model.qk_norm off"),
        ({"order": "random", "model": {"architecture": "bert"}}, "has no order"),
        ({"model": {"architecture": "any_order_gpt2"}}, "order is 'raster'"),
    ]:
        with pytest.raises(CodegridError, match=said):
            prior_config(tmp_path, **fields)


def test_a_prior_of_any_order_starts_from_one_of_raster_order(prior_config, prior_folder, tmp_path, read_metrics):
    """Held out in raster order it begins where the other one ended."""
    rate = OptimizerConfig(learning_rate=1e-9)
    common = {"max_steps": 1, "optimizer": rate, "init_from": str(prior_folder)}
    same = train_prior.train_prior(prior_config(tmp_path / "same", **common))
    started = train_prior.train_prior(prior_config(tmp_path / "started", order="annealed", **common))
    assert json.loads((started / "config.json").read_text())["architectures"] == ["AnyOrderLlamaForCausalLM"]
    raster, any_order = (
        next(line for line in reversed(read_metrics(run)) if "cross_entropy" in line) for run in (same, started)
    )
    assert any_order["cross_entropy"] == pytest.approx(raster["cross_entropy"], abs=1e-4)
    assert "cross_entropy_any_order" in any_order


def test_a_start_from_weights_of_another_kind_is_refused(prior_config, prior_folder, tmp_path):
    other = train_prior.train_prior(prior_config(tmp_path / "qwen", model={"qk_norm": True}))
    with pytest.raises(CodegridError, match="is a Qwen3ForCausalLM, which does not become one of codes in any order"):
        train_prior.train_prior(prior_config(tmp_path / "run", order="annealed", init_from=str(other)))
    first = train_prior.train_prior(prior_config(tmp_path / "first", order="annealed"))
    with pytest.raises(CodegridError, match="AnyOrderLlamaForCausalLM, of codes in any order"):
        train_prior.train_prior(prior_config(tmp_path / "run", init_from=str(first)))
    train_prior.train_prior(prior_config(tmp_path / "run", order="annealed", init_from=str(first)))
    saved = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert "annealed" in json.dumps(saved)

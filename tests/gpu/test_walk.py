"""The hot paths on tensors that believe to be on a GPU: no host read, no mixed devices, no copy that waits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tokenizer")]

from fake_cuda import DEVICE, HostWaitsError, NoWaits, accelerator, fake_cuda, on_fake_cuda, walk
from test_discriminators import CONFIGS as DISCRIMINATORS_TRIED
from test_quantizers import CONFIGS as QUANTIZERS_TRIED

from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.evaluation.reconstruction import pixel_scores
from codegrid.pipelines.system.randomness import SampleOrder
from codegrid.pipelines.training.config import PriorTrainingConfig, TokenizerTrainingConfig
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.learner import Learner
from codegrid.pipelines.training.loop import BadSteps
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.prior.orders import TrainingOrders
from codegrid.pipelines.training.prior.train import PriorStage
from codegrid.pipelines.training.tokenizer.rate import CodePredictor
from codegrid.pipelines.training.tokenizer.step import TokenizerLearners, train_step
from codegrid.pipelines.training.window import add_to_window, window_means
from codegrid.prior import PriorConfig, PriorObjective, SamplingConfig, SequenceConfig, make_prior, sampling
from codegrid.prior.architectures import ARCHITECTURES
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.steps import Part
from codegrid.tokenizer import BackboneConfig, VQModel, VQModelConfig
from codegrid.tokenizer.discriminators import DISCRIMINATORS, make_discriminator
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.losses import ObjectiveConfig
from codegrid.tokenizer.metrics import code_counts
from codegrid.tokenizer.moving import to_device
from codegrid.tokenizer.quantizers import QUANTIZERS

BACKBONE = BackboneConfig(
    resolution=16, ch=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=16, norm_groups=8
)
PIXELS = ObjectiveConfig(l1_weight=1.0, l2_weight=1.0, perceptual_weight=0.0, adversarial_weight=0.0)
CLASSES = 3


def named(configs):
    return [pytest.param(config, id=f"{config.type}-{number}") for number, config in enumerate(configs)]


def training(quantizer, objective=PIXELS, **changes) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(
        data=DataConfig("images"),
        backbone=BACKBONE,
        quantizer=quantizer,
        objective=objective,
        batch_size=4,
        output_dir="run",
        **changes,
    )


def walked_step(config: TokenizerTrainingConfig, step: int, kind: str = "adamw", classes: int = 0) -> dict:
    """The metrics of one step on the fake device."""
    model = VQModel(VQModelConfig(backbone=BACKBONE, quantizer=config.quantizer, num_classes=classes)).train()
    predictor = (
        CodePredictor(config.quantizer.codebook_size, model.config.grid_shape) if config.objective.rate_weight else None
    )
    judge = None
    if config.objective.adversarial_weight:
        judge = make_discriminator(config.objective.discriminator, 3, CLASSES).train()
    with fake_cuda() as fake:
        nets = [on_fake_cuda(module, fake) for module in (model, judge, predictor) if module is not None]
        host = accelerator()
        learners = [net and Learner.make(net, OptimizerConfig(type=kind), host) for net in (model, judge, predictor)]
        together = TokenizerLearners(learners[0], learners[1], EMA(model, 0.99), {}, learners[2])
        together.running_logits = {name: torch.zeros((), device=DEVICE) for name in ("real", "fake")}
        images = [torch.empty(2, 3, 16, 16, device=DEVICE) for _ in range(2)]
        labels = [torch.zeros(2, dtype=torch.int64, device=DEVICE) for _ in images]
        with walk(host, nets):
            return train_step(together, config, images, step, host, labels=labels)


def test_the_registries_are_tried_whole():
    assert {config.type for config in QUANTIZERS_TRIED} == set(QUANTIZERS)
    assert {config.type for config in DISCRIMINATORS_TRIED} == set(DISCRIMINATORS)


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda x: x.cpu(), id="cpu"),
        pytest.param(lambda x: float(x.sum()), id="float"),
        pytest.param(lambda x: x[x > 0], id="mask"),
        pytest.param(lambda x: torch.zeros(3, 4).to(x.device), id="blocking copy"),
        pytest.param(lambda x: torch.tensor([1.0, 2.0], device=x.device), id="made of numbers"),
        pytest.param(lambda x: x[[0, 1]], id="list"),
        pytest.param(lambda x: bool((x > 0).any()), id="if"),
    ],
)
def test_the_walk_sees_what_waits(wait):
    with fake_cuda():
        x = torch.empty(3, 4, device=DEVICE)
        with NoWaits():
            (x * 2 + 1).sum().clamp_min(torch.zeros((), device=DEVICE))
            torch.zeros(3, 4).to(DEVICE, non_blocking=True).add_(x)
            with pytest.raises((HostWaitsError, RuntimeError, ValueError)):
                wait(x)


@pytest.mark.parametrize("quantizer", named(QUANTIZERS_TRIED))
def test_a_tokenizers_step_waits_for_nothing(quantizer):
    metrics = walked_step(training(quantizer), step=3)
    assert {"l1", "l2", "grad_norm", "skipped_steps", "code_counts"} <= set(metrics)
    assert all(value.device == DEVICE for value in metrics.values())


@pytest.mark.parametrize("discriminator", named(DISCRIMINATORS_TRIED))
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_adversarial_step_waits_for_nothing(discriminator, kind):
    objective = replace(
        PIXELS,
        adversarial_weight=0.5,
        adversarial_start=0,
        adversarial_warmup=0,
        gradient_penalty_weight=1.0,
        r1_weight=1.0,
        lecam_weight=0.1,
        discriminator=discriminator,
    )
    metrics = walked_step(training(QUANTIZERS_TRIED[0], objective), 3, kind)
    assert {"discriminator_grad_norm", "gradient_penalty", "r1"} <= set(metrics)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_where_the_host_looks_is_the_only_one_that_waits(kind):
    with pytest.raises(HostWaitsError):
        walked_step(training(QUANTIZERS_TRIED[0]), 10, kind)
    walked_step(training(QUANTIZERS_TRIED[0]), 11, kind)


@pytest.mark.parametrize("quantizer", named([each for each in QUANTIZERS_TRIED if each.has_distances]))
def test_a_step_with_the_rate_waits_for_nothing(quantizer):
    judged = {"adversarial_weight": 0.5, "adversarial_start": 0, "adversarial_warmup": 0}
    objective = replace(PIXELS, rate_weight=0.001, discriminator=DISCRIMINATORS_TRIED[0], **judged)
    metrics = walked_step(training(quantizer, objective), 3)
    assert {"rate", "rate_grad_norm", "discriminator_grad_norm"} <= set(metrics)
    assert metrics["rate"].device == DEVICE


def test_a_class_conditional_step_waits_for_nothing():
    config = training(QUANTIZERS_TRIED[0])
    assert walked_step(config, 3, classes=CLASSES)["l1"].device == DEVICE


def test_sums_of_a_window_and_bad_steps_in_a_row_stay_on_the_device():
    with fake_cuda():
        metrics = {name: torch.zeros((), device=DEVICE) for name in ("l1", "skipped_steps")}
        metrics["code_counts"] = torch.zeros(32, dtype=torch.int64, device=DEVICE)
        window, bad_steps = {}, BadSteps()
        with NoWaits():
            for step in (1, 2):
                bad_steps.add(metrics["skipped_steps"], step, "")
                add_to_window(window, metrics)
        assert set(window) == {*metrics, "steps"}
        with pytest.raises(HostWaitsError), NoWaits():
            window_means(window, accelerator())


@pytest.mark.parametrize("quantizer", named(QUANTIZERS_TRIED))
def test_tokenizing_and_evaluating_a_batch_wait_for_nothing(quantizer):
    model = VQModel(VQModelConfig(backbone=BACKBONE, quantizer=quantizer)).eval()
    with fake_cuda() as fake, torch.no_grad():
        on_fake_cuda(model, fake)
        pixels = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
        with NoWaits():
            images = to_model(to_device(pixels, DEVICE))
            assert model.encode(images).device == DEVICE
            output = model(images)
            made = to_model(to_uint8(output.reconstruction))
            whole, part = (0, 0, 16, 16), (0, 2, 16, 14)
            for boxes in ([whole] * 3, [whole, part, whole]):
                assert pixel_scores(images, made, boxes).device == DEVICE
            code_counts(output.codes, model.config.quantizer_config.codebook_size, model.config.quantizer_config.depth)


def prior_of(architecture: str, **sequence):
    config = SequenceConfig(24, (4, 4), class_names=("a", "b"), **sequence)
    kinds = {"learned": {"positions": "learned"}}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **kinds.get(architecture, {})}
    return make_prior(PriorConfig(architecture=architecture, **sizes), config), config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fast", [True, False])
def test_a_priors_step_waits_for_nothing(architecture, fast):
    model, sequence = prior_of(architecture)
    objective = PriorObjective(model.train(), sequence.codebook_size, fast=fast)
    stage = object.__new__(PriorStage)
    stage.codes = SimpleNamespace(
        condition_values=lambda rows: (torch.zeros(len(rows), dtype=torch.int64), torch.zeros(len(rows)) > 0),
        codes=lambda rows: np.zeros((len(rows), 16), np.int64),
    )
    stage.config = PriorTrainingConfig(codes="codes", output_dir="run", batch_size=4, gradient_accumulation_steps=2)
    stage.sequence, stage.model, stage.device = sequence, model, DEVICE
    stage.rows, stage.order = np.arange(8), SampleOrder(8, 0)
    stage.orders = TrainingOrders(stage.config, sequence, model)
    with fake_cuda() as fake:
        on_fake_cuda(model, fake)
        host = accelerator()
        stage.run, stage.ema = SimpleNamespace(accelerator=host), EMA(model, 0.9)
        stage.learner = Learner.make(model, stage.config.optimizer, host, objective)
        with walk(host, [model]):
            metrics = stage.step(3)
    assert {value.device for value in metrics.values()} == {DEVICE}


@pytest.mark.parametrize("architecture", [name for name, record in ARCHITECTURES.items() if record.reads == "before"])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_k": 5, "top_p": 0.9, "min_p": 0.01}])
def test_sampling_waits_for_nothing(architecture, settings):
    """`sample_codes` reads once, after the last code of a batch. (Priors of other orders are not walked.)"""
    model, sequence = prior_of(architecture)
    with fake_cuda() as fake:
        on_fake_cuda(model, fake)
        decoder = Decoder(read_weights(model, sequence.codebook_size, 16), 4)
        part = Part(
            prefixes=torch.zeros(2, 1, dtype=torch.int64, device=DEVICE),
            given=torch.zeros(2, 0, dtype=torch.int64, device=DEVICE),
            order=None,
            uniforms=torch.zeros(2, 16, dtype=torch.float64, device=DEVICE),
            known=(),
        )
        with torch.no_grad(), NoWaits():
            codes, finite = sampling._sample_batch(
                decoder, sequence, part, SamplingConfig(**settings), lambda position: None, 4
            )
    assert codes.device == finite.device == DEVICE

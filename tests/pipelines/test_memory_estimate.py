"""The estimate of a training's memory against what a step takes."""

from __future__ import annotations

import gc

import pytest
import torch

from codegrid.pipelines.benchmarks.memory import peak_extra_bytes
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.memory_estimate import estimate_memory
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.tokenizer import VQModel, VQModelConfig

# The estimate lies within this factor of the measured peak. What it leaves out, chiefly oneDNN's own memory on a CPU,
# makes it too low; what backward passes free before the end of an operation, too high.
FACTOR = 1.5


@pytest.mark.parametrize(("adversarial", "rate"), [(False, False), (True, False), (False, True)])
def test_the_estimate_is_near_the_peak_of_a_step(adversarial, rate, tokenizer_config, tmp_path):
    config = tokenizer_config(
        tmp_path,
        backbone={"resolution": 64, "ch": 32, "ch_mult": (1, 2), "patch_size": 1},
        objective={"adversarial_weight": 0.5 * adversarial, "adversarial_start": 0, "rate_weight": 0.001 * rate},
        quantizer={"codebook_size": 512, "code_dim": 4},
        ema_decay=0.9,
    )
    accelerator = make_accelerator("cpu")
    model = VQModel(VQModelConfig(backbone=config.backbone, quantizer=config.quantizer))
    shape = (8, 3, 64, 64)
    images = torch.rand(shape) * 2 - 1
    learners = make_learners(
        model, config.objective, OptimizerConfig(), OptimizerConfig(), config.ema_decay, accelerator
    )
    discriminator = learners.discriminator and learners.discriminator.module
    predictor = learners.predictor and learners.predictor.module
    estimate = estimate_memory(model, discriminator, [], shape, True, "no", predictor)
    weights = sum(t.numel() * 4 for t in (*model.parameters(), *model.buffers()))
    beside = [module for module in (discriminator, predictor) if module is not None]
    judge = sum(t.numel() * 4 for module in beside for t in (*module.parameters(), *module.buffers()))
    assert estimate.weights == weights + judge
    assert estimate.kept == 3 * weights + 2 * judge
    model.train()
    train_step(learners, config, [images], 0, accelerator)  # what is made once: moments, oneDNN's kernels
    gc.collect()
    taken = peak_extra_bytes(lambda: train_step(learners, config, [images], 1, accelerator), "cpu")
    if taken is None:
        pytest.skip("this system does not tell a process's peak")
    assert taken > 50e6  # else what libraries keep for themselves would be most of it
    assert 1 / FACTOR < estimate.step / taken < FACTOR
    assert estimate.total == estimate.weights + estimate.kept + estimate.step


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_estimate_computes_nothing_and_changes_nothing(precision, tiny_vqmodel):
    before = {name: tensor.clone() for name, tensor in tiny_vqmodel.state_dict().items()}
    state = torch.get_rng_state()
    small, large = (
        estimate_memory(tiny_vqmodel, None, [], (batch, 3, 16, 16), averaged=False, mixed_precision=precision)
        for batch in (1, 1 << 20)  # terabytes, if they were there
    )
    assert large.step > 1e5 * small.step > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_vqmodel.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_vqmodel.parameters())


def test_half_precision_is_estimated_to_take_less(tiny_vqmodel):
    whole, half = (
        estimate_memory(tiny_vqmodel, None, [], (64, 3, 16, 16), averaged=False, mixed_precision=precision)
        for precision in ("no", "bf16")
    )
    assert 0.4 < half.step / whole.step < 0.9

"""Where the host does not look, masks on the device decide: the same bits, and a bad step changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.system import devices
from codegrid.pipelines.system.devices import looks, make_accelerator
from codegrid.pipelines.training import learner as learner_module
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.learner import Learner, update_together
from codegrid.pipelines.training.loop import BadSteps
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer import step as step_module
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.tokenizer import BackboneConfig, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.discriminators import PatchGANConfig
from codegrid.tokenizer.losses import ObjectiveConfig
from codegrid.tokenizer.quantizers import ResidualQuantizerConfig


def test_the_host_looks_at_every_step_of_a_cpu_and_every_tenth_of_a_gpu():
    assert all(looks(step, torch.device("cpu")) for step in range(12))
    assert [step for step in range(31) if looks(step, torch.device("cuda"))] == [0, 10, 20, 30]


@pytest.fixture
def looking(monkeypatch):
    """Whether the host looks; a function that sets it."""

    def look(whether: bool) -> None:
        for module in (learner_module, step_module):
            monkeypatch.setattr(module, "looks", lambda step, device: whether)

    return look


def trained(kind: str, gradients: list[float]) -> dict[str, torch.Tensor]:
    """Weights and moments after steps with random gradients, times these numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 6))
    one = Learner.make(net, OptimizerConfig(type=kind, learning_rate=0.1, weight_decay=0.1), make_accelerator("cpu"))
    for step, factor in enumerate(gradients):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) * factor
        update_together([one], step, 10)
    state = {f"{n}.{name}": v for n, slot in enumerate(one.optimizer.state.values()) for name, v in slot.items()}
    return {**net.state_dict(), **state}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_an_optimizer_that_decides_on_the_device_gives_the_same_bits(looking, kind, bad):
    gradients = [1.0, bad or 2.0, 0.5, bad or 1.0]
    looking(True)
    expected = trained(kind, gradients)
    looking(False)
    found = trained(kind, gradients)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_an_average_that_decides_on_the_device_has_the_same_bits():
    averages = []
    for skipped in (None, torch.zeros(()), torch.ones(())):
        torch.manual_seed(0)
        model = nn.Linear(40, 50)
        ema = EMA(model, 0.97)
        for step in range(30):
            with torch.no_grad():
                model.weight.add_(torch.randn(50, 40))
            before = ema.weights["weight"].clone()
            ema.update(step, skipped)
        averages.append(ema.weights["weight"])
        assert torch.equal(before, averages[-1]) == (skipped is not None and bool(skipped))
    assert torch.equal(averages[0], averages[1])


BACKBONE = BackboneConfig(
    resolution=16, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=8, norm_groups=4
)


@pytest.mark.parametrize("where", ["everywhere", "nowhere", "second"])
def test_a_tokenizers_steps_have_the_same_bits_wherever_it_is_decided(looking, where):
    """With averages for a codebook, a discriminator with running logits, and pictures that hold NaN in between."""
    objective = ObjectiveConfig(
        perceptual_weight=0.0,
        adversarial_start=0,
        adversarial_warmup=0,
        lecam_weight=0.1,
        discriminator=PatchGANConfig(ndf=4, n_layers=1),
    )
    config = TokenizerTrainingConfig(
        data=DataConfig("images"),
        backbone=BACKBONE,
        quantizer=VectorQuantizerConfig(codebook_size=16, code_dim=4, codebook_update="ema", revive_below=0.0),
        objective=objective,
        output_dir="run",
    )

    def run(look: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        host, model = make_accelerator("cpu"), VQModel(VQModelConfig(backbone=BACKBONE, quantizer=config.quantizer))
        learners = make_learners(model.train(), objective, config.optimizer, config.optimizer, 0.9, host)
        looking(look)
        for step in range(4):
            images = torch.rand(2, 3, 16, 16) * 2 - 1
            if where == "everywhere" or (where == "second" and step == 1):
                images[0, 0, 0, 0] = math.nan
            metrics = train_step(learners, config, [images], step, host)
            assert bool(metrics["skipped_steps"]) == bool(images.isnan().any())
        groups = (model.state_dict(), learners.discriminator.module.state_dict(), learners.ema.weights)
        found = {f"{n}.{name}": value for n, group in enumerate(groups) for name, value in group.items()}
        return {**found, **learners.running_logits}

    expected, found = run(True), run(False)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_codes_are_counted_between_restarts():
    config = VectorQuantizerConfig(codebook_size=8, code_dim=2, l2_normalize=False)
    for quantizer in (config.build(), ResidualQuantizerConfig(depth=2, shared=True, inner=config).build()):
        level = getattr(quantizer, "levels", [quantizer])[0]
        codes = torch.arange(8).repeat(2)[:, None, None, None].expand(-1, 1, 1, 2).clone()
        codes = codes if quantizer.config.depth == 2 else codes[..., 0]
        quantizer.count(codes)
        assert not level.usage.any()  # the codes are still to be placed on the data
        level.usage.fill_(1.0)
        quantizer.count(codes * 0)
        assert torch.allclose(level.usage[1:], torch.tensor(0.95))
        assert level.usage[0] > 1.0


def test_bad_steps_in_a_row_end_a_run_where_the_host_looks(monkeypatch):
    bad_steps = BadSteps()
    good, bad = torch.zeros(()), torch.ones(())
    for step, skipped in enumerate([good, *[bad] * 19, good, *[bad] * 19]):
        bad_steps.add(skipped, step, "x.png")
    with pytest.raises(TrainingError, match="20 steps in a row up to step 40"):
        bad_steps.add(bad, 40, "x.png")
    assert devices._LOOK_EVERY < 20

"""What only a GPU can tell (`make test-gpu`). Nobody has run these yet: docs/gpus.md."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path += [str(Path(__file__).parents[1] / "tokenizer"), str(Path(__file__).parents[1] / "pipelines")]

from test_quantizers import CONFIGS

from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.system.devices import computes_bf16, make_accelerator
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.memory_estimate import estimate_memory
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.switches import compile_learners, prepare_learners
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior import PriorConfig, SequenceConfig, make_prior, sample_codes
from codegrid.prior.architectures import ARCHITECTURES
from codegrid.tokenizer import BackboneConfig, VQModel, VQModelConfig
from codegrid.tokenizer.discriminators import PatchGANConfig
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.losses import ObjectiveConfig
from codegrid.tokenizer.moving import to_device
from codegrid.tokenizer.quantizers.nearest import nearest_codes

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
BACKBONE = BackboneConfig(
    resolution=16, ch=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=16, norm_groups=8
)
PLAIN = ObjectiveConfig(perceptual_weight=0.0, adversarial_weight=0.0)
ADVERSARIAL = ObjectiveConfig(
    perceptual_weight=0.0,
    adversarial_weight=0.5,
    adversarial_start=0,
    adversarial_warmup=0,
    discriminator=PatchGANConfig(ndf=8, n_layers=2),
)


def stepping(quantizer, objective=PLAIN, device="auto", precision="no", **changes):
    """What makes step number `step` of a small tokenizer, and its learners; the pictures are the same on any device."""
    config = TokenizerTrainingConfig(
        data=DataConfig("images"),
        backbone=changes.pop("backbone", BACKBONE),
        quantizer=quantizer,
        objective=objective,
        output_dir="run",
        **changes,
    )
    host = make_accelerator(device, precision, training=True, deterministic=True)
    torch.manual_seed(0)
    model = VQModel(VQModelConfig(backbone=config.backbone, quantizer=quantizer)).train()
    learners = make_learners(model, objective, OptimizerConfig(), OptimizerConfig(), 0.9, host)
    prepare_learners(learners, config)
    size = config.backbone.resolution

    def step(number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(256, (4, size, size, 3), dtype=torch.uint8, generator=generator)
        return train_step(learners, config, [to_model(to_device(pixels, host.device))], number, host)

    return step, learners, config


@pytest.mark.parametrize("quantizer", CONFIGS, ids=[f"{config.type}-{n}" for n, config in enumerate(CONFIGS)])
@pytest.mark.parametrize("objective", [PLAIN, ADVERSARIAL], ids=["plain", "adversarial"])
def test_a_step_waits_for_nothing_backward_pass_included(quantizer, objective):
    step, *_ = stepping(quantizer, objective)
    step(0)  # the host looks here: codes are placed
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (1, 2):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    step(10)


def test_what_goes_to_the_device_goes_from_pinned_memory(monkeypatch):
    pinned = []
    original = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: (pinned.append(t.is_pinned()), original(t, *a, **k))[1])
    to_device(torch.zeros(3), DEVICE)
    assert pinned == [True]


@pytest.mark.parametrize("quantizer", CONFIGS, ids=[f"{config.type}-{n}" for n, config in enumerate(CONFIGS)])
@pytest.mark.parametrize(("precision", "channels_last"), itertools.product(["no", "bf16"], [True, False]))
def test_a_step_is_finite_and_near_that_of_a_cpu(quantizer, precision, channels_last):
    if precision == "bf16" and not computes_bf16(cpu=False):
        pytest.skip("this GPU emulates bf16")
    step, *_ = stepping(quantizer, precision=precision, channels_last=channels_last)
    found = step(0)
    assert all(value.isfinite().all() for value in found.values())
    if precision == "no":
        other, *_ = stepping(quantizer, device="cpu", channels_last=channels_last)
        expected = other(0)
        assert float(found["l1"]) == pytest.approx(float(expected["l1"]), rel=1e-3)
        assert float(found["grad_norm"]) == pytest.approx(float(expected["grad_norm"]), rel=0.05)


@pytest.mark.parametrize("quantizer", CONFIGS, ids=[f"{config.type}-{n}" for n, config in enumerate(CONFIGS)])
def test_codes_are_those_of_a_cpu_but_for_ties(quantizer):
    model = VQModel(VQModelConfig(backbone=BACKBONE, quantizer=quantizer)).eval()
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model.encode(images)
    make_accelerator()  # sets TF32 off
    found = model.to(DEVICE).encode(images.to(DEVICE)).cpu()
    assert (found != expected).float().mean() < 0.005


def test_bf16_is_taken_where_the_card_computes_in_it():
    assert computes_bf16(cpu=False) == (torch.cuda.get_device_capability() >= (8, 0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_depend_on_the_batch_size_and_not_on_their_number(architecture):
    sequence = SequenceConfig(24, (4, 4), class_names=("a", "b"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    model = make_prior(PriorConfig(architecture=architecture, **sizes), sequence).eval()
    labels, seeds = [0, 1, 0, 1, 1], list(range(5))
    greedy = sample_codes(model, sequence, labels, seeds=seeds, temperature=0)
    model.to(DEVICE)
    settings = {"batch_size": 4, "guidance_scale": 2.0, "top_p": 0.9}
    whole = sample_codes(model, sequence, labels, seeds=seeds, **settings)
    part = sample_codes(model, sequence, labels[:2], seeds=seeds[:2], **settings)
    assert torch.equal(whole[:2], part)
    found = sample_codes(model, sequence, labels, seeds=seeds, temperature=0).cpu()
    assert (found != greedy).float().mean() < 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_steps", [None, 3])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_p": 0.9}, {"temperature": 0}])
def test_recorded_graphs_draw_the_codes_of_steps_that_are_not_recorded(architecture, num_steps, settings):
    if num_steps is not None and ARCHITECTURES[architecture].reads == "before":
        pytest.skip("a code a step")
    sequence = SequenceConfig(24, (4, 4), class_names=("a", "b"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    model = make_prior(PriorConfig(architecture=architecture, **sizes), sequence).eval().to(DEVICE)
    options = {"seeds": range(7), "batch_size": 4, "num_steps": num_steps, **settings}
    labels = [0, 1, 0, 1, 1, 0, 0]
    static, graph, eager = (
        sample_codes(model, sequence, labels, decoding=way, **options) for way in ("static", "graph", "eager")
    )
    assert torch.equal(static, graph)
    assert (static != eager).float().mean() < 0.05


def test_a_deterministic_run_is_resumed_bit_for_bit(image_folder, tmp_path):
    config = TokenizerTrainingConfig(
        data=DataConfig(str(image_folder)),
        backbone=BACKBONE,
        quantizer=CONFIGS[0],
        objective=ADVERSARIAL,
        preprocessing=replace(TokenizerTrainingConfig(data=DataConfig("x")).preprocessing, image_size=16),
        output_dir=str(tmp_path / "whole"),
        max_steps=14,
        batch_size=4,
        save_every=12,
        eval_every=14,
        deterministic=True,
        tracking=(),
        ema_decay=0.9,
    )
    train_tokenizer(config)
    train_tokenizer(replace(config, output_dir=str(tmp_path / "parts"), max_steps=12))
    # The schedule of the rates belongs to the length of a run: compare runs that were both continued.
    train_tokenizer(replace(config, output_dir=str(tmp_path / "other"), max_steps=12))
    found = []
    for name in ("parts", "other"):
        train_tokenizer(replace(config, output_dir=str(tmp_path / name)))
        found.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("objective", [PLAIN, ADVERSARIAL], ids=["plain", "adversarial"])
def test_the_memory_estimate_is_near_the_peak(objective):
    backbone = BackboneConfig(
        resolution=64, ch=64, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(), z_channels=64
    )
    step, learners, _ = stepping(CONFIGS[0], objective, backbone=backbone)
    step(0)
    torch.cuda.reset_peak_memory_stats()
    step(1)
    judge = None if learners.discriminator is None else learners.discriminator.module
    estimate = estimate_memory(learners.model.module, judge, [], (4, 3, 64, 64), averaged=True, mixed_precision="no")
    assert 1 / 1.5 < torch.cuda.max_memory_allocated() / estimate.total < 1.5


def test_nearest_codes_of_a_large_codebook_are_few_launches():
    rows, codebook = torch.randn(8192, 8, device=DEVICE), torch.randn(2**18, 8, device=DEVICE)
    nearest_codes(rows, codebook)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        nearest_codes(rows, codebook)
        torch.cuda.synchronize()
    assert 0 < sum(event.count for event in profiler.key_averages()) < 100


@pytest.mark.parametrize("patch_size", [1, 2])
def test_compiled_nets_train_with_an_adaptive_weight(patch_size):
    backbone = replace(BACKBONE, patch_size=patch_size)
    step, learners, _ = stepping(CONFIGS[0], ADVERSARIAL, backbone=backbone)
    expected = [float(step(number)["l1"]) for number in range(3)]
    step, learners, _ = stepping(CONFIGS[0], ADVERSARIAL, backbone=backbone)
    compile_learners(learners)
    assert [float(step(number)["l1"]) for number in range(3)] == pytest.approx(expected, rel=0.02)

"""A step's gradients, and what happens to the codebook after it, on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.training.learner import Learner
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.losses import GAN_LOSSES, clamped_ratio
from codegrid.tokenizer.quantizers import HierarchicalQuantizerConfig, VectorQuantizerConfig

STEPS_OF_TWO_RANKS = """
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
from accelerate import Accelerator

from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.tokenizer.step import _revive_codes, _update_quantizer, make_learners, train_step
from codegrid.tokenizer import BackboneConfig, VQModel, VQModelConfig
from codegrid.tokenizer.losses import ObjectiveConfig
from codegrid.tokenizer.quantizers import HierarchicalQuantizerConfig, VectorQuantizerConfig, make_quantizer

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
torch.manual_seed(0)
means = VectorQuantizerConfig(codebook_size=64, code_dim=4, l2_normalize=False, codebook_update="ema",
                              codebook_decay=0.9, revive_below=0.3, revive_decay=0.5)
quantizers = {"means": means, "kmeans": replace(means, codebook_init="kmeans", l2_normalize=True),
              "hierarchical": HierarchicalQuantizerConfig(channels=4, norm_groups=2, inner=means)}
for name, config in quantizers.items():
    module = torch.nn.ModuleDict({"quantize": make_quantizer(config)})
    module.quantize = module["quantize"]
    optimizer = SimpleNamespace(state={})
    learners = SimpleNamespace(model=SimpleNamespace(module=module, optimizer=optimizer), ema=EMA(module, 0.9))
    last = module.quantize.levels[1] if name == "hierarchical" else module.quantize
    size = 6 if name == "hierarchical" else 5
    start, moved, batches = last.embedding.weight.clone(), [], []
    for step in range(50):
        generator = torch.Generator().manual_seed(2 * step + rank)  # another batch on each rank
        features = torch.randn(2, 4, size, size, generator=generator) * (1 + rank)
        codes = module.quantize(features).codes
        _update_quantizer(module.quantize, module.quantize.statistics(codes, features), accelerator)
        updated = last.embedding.weight.clone()
        _revive_codes(learners, codes, features, step, 0, accelerator)
        moved.append(int((updated != last.embedding.weight).any(1).sum()))
        batches.append((features, codes))
    torch.save({"start": start, "moved": moved, "batches": batches, **module.quantize.state_dict()},
               f"{sys.argv[1]}/{name}-{rank}.pt")

rated = TokenizerTrainingConfig(
    data=DataConfig("images"),
    backbone=BackboneConfig(resolution=16, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(),
                            mid_attention=False, z_channels=8, norm_groups=4),
    quantizer=VectorQuantizerConfig(codebook_size=32, code_dim=4),
    objective=ObjectiveConfig(perceptual_weight=0.0, adversarial_weight=0.0, rate_weight=0.1), output_dir="run")
torch.manual_seed(0)
model = VQModel(VQModelConfig(backbone=rated.backbone, quantizer=rated.quantizer)).train()
learners = make_learners(model, rated.objective, rated.optimizer, rated.optimizer, 0.0, accelerator)
for step in range(3):
    generator = torch.Generator().manual_seed(2 * step + rank)
    pictures = [torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2)]
    train_step(learners, rated, pictures, step, accelerator)
state = {**model.state_dict(), **learners.predictor.module.state_dict()}
torch.save({"first picture": pictures[0], **state}, f"{sys.argv[1]}/rate-{rank}.pt")
"""


def test_two_ranks_keep_one_codebook_of_means_through_updates_and_revivals(tmp_path):
    (tmp_path / "script.py").write_text(STEPS_OF_TWO_RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, tmp_path / "script.py", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    for kind, prefix in {"means": "", "kmeans": "", "hierarchical": "levels.1."}.items():
        first, second = (torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert not torch.equal(first["batches"][0][0], second["batches"][0][0])
        state = [name for name in first if name not in ("start", "moved", "batches")]
        for name in ("embedding.weight", "cluster_size", "cluster_sum", "usage"):
            assert f"{prefix}{name}" in state
        for name in state:
            assert torch.equal(first[name], second[name]), name
        assert first["moved"][0] == 64  # the first revival places them all
        assert sum(first["moved"][1:]) > 0
        assert not torch.equal(first[f"{prefix}embedding.weight"], first["start"])
        # The running sizes count both ranks' features: 100 a step, where the sum goes but for what revival sets.
        assert first[f"{prefix}cluster_size"].sum() > 75
    first, second = (torch.load(tmp_path / f"rate-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first.pop("first picture"), second.pop("first picture"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_running_means_are_of_what_the_forward_pass_quantized(tokenizer_config, tmp_path):
    """Hierarchical nets move in the same step: what they would quantize after it never got these codes."""
    means = VectorQuantizerConfig(
        codebook_size=8, code_dim=3, l2_normalize=False, codebook_update="ema", codebook_decay=0.0
    )
    config = replace(
        tokenizer_config(tmp_path, optimizer=OptimizerConfig(learning_rate=0.05), revive_until=0.0),
        quantizer=HierarchicalQuantizerConfig(channels=8, norm_groups=2, inner=means),
    )
    accelerator, parts = make_accelerator("cpu"), (config.optimizer, config.discriminator_optimizer, 0.0)
    model = VQModel(VQModelConfig(backbone=config.backbone, quantizer=config.quantizer)).train()
    learners = make_learners(model, config.objective, *parts, accelerator)
    quantized = {0: [], 1: []}
    for index, level in enumerate(model.quantize.levels):
        level.register_forward_hook(
            lambda _, given, output, index=index: quantized[index].append((given[0].detach(), output.codes))
        )
    before = model.quantize.narrow.weight.detach().clone()
    train_step(learners, config, [torch.rand(4, 3, 16, 16) * 2 - 1 for _ in range(2)], 0, accelerator)
    assert not torch.equal(model.quantize.narrow.weight, before)
    for index, level in enumerate(model.quantize.levels):
        rows = torch.cat([given.movedim(1, -1).flatten(0, 2) for given, _ in quantized[index]])
        codes = torch.cat([codes.flatten() for _, codes in quantized[index]])
        for code in codes.unique():
            expected = rows[codes == code].mean(0)
            torch.testing.assert_close(level.embedding.weight[code], expected, rtol=1e-3, atol=1e-4)


class Distance(torch.nn.Module):
    """Stands for the perceptual net; counts how often it is called."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = torch.nn.Conv2d(3, 4, 3).requires_grad_(False), 0

    def forward(self, images, other):
        self.calls += 1
        return (self.layer(images).tanh() - self.layer(other).tanh()).square().flatten(1).mean(1)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradients_are_those_of_all_terms_added_up(adaptive, tokenizer_config, tmp_path, monkeypatch):
    """Against one backward pass of the whole sum, and the adaptive weight by two whole ones."""
    objective = {"adversarial_weight": 0.5, "adversarial_start": 0, "adaptive_weight": adaptive}
    config = tokenizer_config(tmp_path, objective=objective)
    accelerator, parts = make_accelerator("cpu"), (config.optimizer, config.discriminator_optimizer, 0.0)
    model = VQModel(VQModelConfig(backbone=config.backbone, quantizer=config.quantizer)).train()
    learners = make_learners(model, config.objective, *parts, accelerator)
    learners.distances["perceptual"], judge = Distance(), learners.discriminator.module
    config = replace(config, objective=replace(config.objective, perceptual_weight=1.0))  # of the net just put there
    images = torch.rand(4, 3, 16, 16) * 2 - 1

    output = model(images)
    logits = judge(output.reconstruction)
    adversarial = GAN_LOSSES["hinge"][1](logits)
    reconstruction = (images - output.reconstruction).abs().mean()
    reconstruction = reconstruction + learners.distances["perceptual"](images, output.reconstruction).mean()
    weight = 0.5 / 1001  # of the first of 1,000 steps of warm-up
    if adaptive:
        (one,) = torch.autograd.grad(reconstruction, model.last_layer, retain_graph=True)
        (other,) = torch.autograd.grad(adversarial, model.last_layer, retain_graph=True)
        weight = weight * clamped_ratio(one.norm(), other.norm(), 1e4)
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = reconstruction + sum(output.losses.values()) + weight * adversarial
    expected = dict(zip(names, torch.autograd.grad(total, parameters, allow_unused=True), strict=True))

    found, counts, clip = {}, {"generator": 0, "judge": 0}, Learner.clip

    def watched(learner):
        found.update({name: parameter.grad.clone() for name, parameter in learner.module.named_parameters()})
        return clip(learner)

    monkeypatch.setattr(Learner, "clip", watched)
    for name, module in (("generator", model), ("judge", judge)):
        module.register_forward_pre_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    learners.distances["perceptual"].calls = 0
    values = train_step(learners, config, [images], 0, accelerator)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
    assert values["adversarial"].item() == pytest.approx((weight * adversarial).item(), rel=1e-5)
    assert (counts["generator"], learners.distances["perceptual"].calls, counts["judge"]) == (1, 1, 2)

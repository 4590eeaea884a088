"""A training step of stage one beside the peers' own, at equal losses: L1, LPIPS (random trunk), hinge, codebook."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from codegrid.pipelines.benchmarks.options import BesideBefore, BesidePeers
from codegrid.pipelines.benchmarks.peers import first_version, llamagen_loss, llamagen_model, random_trunk, taming_model
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.switches import compile_learners, prepare_learners
from codegrid.pipelines.training.tokenizer.step import make_learners, train_step
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.losses import ObjectiveConfig

_CH, _SIDE, _BATCH, _CODES, _WIDTH = 64, 128, 4, 16_384, 8
_RATE = 1e-4
_WIDTHS = {"model": 14, "precision": 9, "ms": 9, "spread": 6, "images/s": 8, "ratio": 6}

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class TrainStep(BesidePeers, BesideBefore):
    """A step of stage one at 128x128.

    A row for each model and precision; a ratio is to the first model's time in the same precision. On a GPU all compute
    as in training, with TF32.
    """

    name = "train-step"
    parts = (("no", "bf16"),)

    def measure(self) -> list[Row]:
        print_row({}, _WIDTHS, header=True)
        rows = []
        for precision in filter(self.wants, self.precisions()):
            for name, timing in in_turn(_steps(self, precision), self.repeats).items():
                rate = _BATCH / timing.seconds
                rows.append({"model": name, "precision": precision, "images/s": rate, **timing.columns()})
                print_row(rows[-1], _WIDTHS)
        return rows


def _steps(asked: TrainStep, precision: str) -> dict[str, Step]:
    accelerator = asked.accelerator(precision, training=True)
    device = accelerator.device
    images = torch.rand(_BATCH, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1
    trunk, steps = random_trunk(), {}
    if asked.before:
        earlier = first_version(asked.before, "pipelines.benchmarks.train_step")
        steps["be0a219"] = earlier.our_step(trunk, images, precision, compiled=False)
    if asked.taming:
        model = taming_model(asked.taming, _CH, _SIDE, _CODES, _WIDTH, trunk)
        steps["taming"] = _taming_step(model.to(device), images, accelerator)
    if asked.llamagen:
        model, loss = llamagen_model(asked.llamagen, _CH, _CODES), llamagen_loss(asked.llamagen, _SIDE, trunk)
        steps["LlamaGen"] = _llamagen_step(model.to(device), loss.to(device), images, accelerator)
    steps["ours"] = our_step(trunk, images, accelerator, compiled=False)
    if asked.compile:
        steps["ours compiled"] = our_step(trunk, images, accelerator, compiled=True)
    return steps


def our_step(trunk: dict[str, Tensor], images: Tensor, accelerator: Accelerator, compiled: bool) -> Step:
    """`train_step` of a preset-like config whose discriminator is on."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(trunk, Path(folder) / "trunk.safetensors")
        objective = ObjectiveConfig(
            perceptual_weights=f"{folder}/trunk.safetensors", adversarial_start=0, adversarial_warmup=0
        )
        config = TokenizerTrainingConfig(
            data=DataConfig("none: one batch again and again"),
            backbone=BackboneConfig(resolution=_SIDE, ch=_CH, attn_resolutions=(_SIDE // 16,)),
            quantizer=VectorQuantizerConfig(codebook_size=_CODES, code_dim=_WIDTH, l2_normalize=False),
            preprocessing=Preprocessing(image_size=_SIDE),
            objective=objective,
        )
        torch.manual_seed(0)
        parts = {"backbone": config.backbone, "quantizer": config.quantizer, "preprocessing": config.preprocessing}
        model = VQModel(VQModelConfig(**parts)).train()
        optimizers = (config.optimizer, config.discriminator_optimizer)
        learners = make_learners(model, objective, *optimizers, 0.0, accelerator)
    prepare_learners(learners, config)
    if compiled:
        compile_learners(learners)
    return lambda: train_step(learners, config, [images], 1, accelerator)


def _taming_step(model: nn.Module, images: Tensor, accelerator: Accelerator) -> Step:
    """Lightning's loop over taming's two optimizers, each with the other's weights frozen."""
    model.learning_rate = _RATE
    optimizers, _ = model.train().configure_optimizers()
    owned = [[weight for group in optimizer.param_groups for weight in group["params"]] for optimizer in optimizers]
    batch = {"image": images.permute(0, 2, 3, 1)}

    def step() -> None:
        for index, optimizer in enumerate(optimizers):
            for other, weights in enumerate(owned):
                for weight in weights:
                    weight.requires_grad_(other == index)
            with accelerator.autocast():
                loss = model.training_step(batch, 0, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def _llamagen_step(model: nn.Module, loss: nn.Module, images: Tensor, accelerator: Accelerator) -> Step:
    """The body of the loop in LlamaGen's vq_train.py, which is in no function of its own."""
    model.train()
    loss.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE, betas=(0.9, 0.95))
    discriminator_optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=_RATE, betas=(0.9, 0.95))
    options = {"global_step": 1, "last_layer": model.decoder.last_layer, "logger": SimpleNamespace(), "log_every": 2}

    def step() -> None:
        optimizer.zero_grad()
        with accelerator.autocast():
            reconstruction, codebook_loss = model(images)
            of_generator = loss(codebook_loss, images, reconstruction, optimizer_idx=0, **options)
        of_generator.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        discriminator_optimizer.zero_grad()
        with accelerator.autocast():
            of_discriminator = loss(codebook_loss, images, reconstruction, optimizer_idx=1, **options)
        of_discriminator.backward()
        nn.utils.clip_grad_norm_(loss.discriminator.parameters(), 1.0)
        discriminator_optimizer.step()

    return step

"""One training step of the tokenizer: the generator's and the discriminator's on a single shared forward pass."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.training.config import TokenizerTrainingConfig
from pipelines.training.ema import EMA
from pipelines.training.learner import Learner
from pipelines.training.optim import OptimizerConfig
from pipelines.training.randomness import torch_generator
from pipelines.training.run import TrainingError
from tokenizer import VQModel
from tokenizer.discriminators import PatchGAN
from tokenizer.losses import (
    ObjectiveConfig,
    adaptive_weight,
    clamped_ratio,
    hinge_discriminator_loss,
    hinge_generator_loss,
    make_perceptual,
    reconstruction_terms,
    warmup_factor,
)
from tokenizer.metrics import code_counts
from tokenizer.quantizers import Quantizer

# Features that dead codes of a level may be moved onto, from each rank and step: enough, and little to send around.
_REVIVAL_CANDIDATES = 1024


@dataclass
class TokenizerLearners:
    """All that a tokenizer's training changes."""

    model: Learner
    discriminator: Learner | None
    ema: EMA
    perceptual: nn.Module | None
    # Sums since the last line of metrics: part of the checkpoint, so that a resumed run writes the same lines.
    window: dict[str, Tensor] = field(default_factory=dict)


def make_learners(
    model: VQModel,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    discriminator_optimizer: OptimizerConfig,
    ema_decay: float,
    accelerator: Accelerator,
) -> TokenizerLearners:
    try:
        perceptual = make_perceptual(objective)
    except RuntimeError as error:  # its weights cannot be had: the message says how to get them
        raise TrainingError(str(error)) from error
    discriminator = None
    if objective.adversarial_weight:
        patchgan = PatchGAN(objective.discriminator, model.config.backbone_config.in_channels)
        discriminator = Learner.make(patchgan, discriminator_optimizer, accelerator)
    learner = Learner.make(model, optimizer, accelerator)
    if perceptual is not None:
        perceptual.to(accelerator.device)
    return TokenizerLearners(learner, discriminator, EMA(model, ema_decay), perceptual)


def train_step(
    learners: TokenizerLearners,
    config: TokenizerTrainingConfig,
    micro_batches: list[Tensor],
    step: int,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One optimizer step of generator and discriminator over this rank's `micro_batches`, each [B, C, S, S] in [-1, 1].

    Returns:
        scalars by name, and `code_counts` [depth * codebook_size]; means over the micro-batches, of this rank alone.
    """
    model, discriminator, objective = learners.model, learners.discriminator, config.objective
    factor = warmup_factor(step, objective.adversarial_start, objective.adversarial_warmup) if discriminator else 0.0
    values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    all_codes, all_features = [], []
    for index, images in enumerate(micro_batches):
        share = 1 / len(micro_batches)
        last = index == len(micro_batches) - 1
        with contextlib.ExitStack() as stack:
            for learner in (model, discriminator) if factor else (model,):
                stack.enter_context(learner.exchanging_gradients(accelerator, last))
            with accelerator.autocast():
                output = model.wrapped(images)
            terms = reconstruction_terms(objective, learners.perceptual, images, output.reconstruction)
            losses = {**terms, **output.losses}
            if factor:
                losses.update(
                    _adversarial_terms(
                        learners, objective, sum(terms.values()), output.reconstruction, factor, accelerator
                    )
                )
            accelerator.backward(sum(losses[name] for name in losses if name != "adaptive_weight") * share)
            if factor:
                judged = _discriminator_terms(discriminator, images, output.reconstruction.detach(), accelerator)
                accelerator.backward(judged["discriminator"] * share)
                losses.update(judged)
        for name, value in losses.items():
            values[name] = values[name] + value.detach().float() * share
        all_codes.append(output.codes)
        all_features.append(output.features.detach())
    values["grad_norm"] = torch.tensor(model.update(step, config.max_steps), device=accelerator.device)
    if factor:
        values["discriminator_grad_norm"] = torch.tensor(
            discriminator.update(step, config.max_steps), device=accelerator.device
        )
    codes, features = torch.cat(all_codes), torch.cat(all_features)
    if values["grad_norm"].isfinite():  # else features may be NaN, and no weight is to change
        _update_quantizer(model.module.quantize, codes, features, accelerator)
        if step < config.revive_until * config.max_steps:
            _revive_codes(learners, codes, features, step, config.seed, accelerator)
    learners.ema.update(step)
    quantizer = model.module.config.quantizer_config
    values["code_counts"] = code_counts(codes, quantizer.codebook_size, quantizer.depth)
    return dict(values)


def _adversarial_terms(
    learners: TokenizerLearners,
    objective: ObjectiveConfig,
    reconstruction_loss: Tensor,
    reconstruction: Tensor,
    factor: float,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """The generator's term: weight * warm-up * lambda * -E[D(x_hat)], with D frozen.

    The bare discriminator judges: its wrapper would wait for gradients that a frozen module never gets.
    """
    judge = learners.discriminator.module.requires_grad_(False)
    with accelerator.autocast():
        logits = judge(reconstruction)
    judge.requires_grad_(True)
    loss = hinge_generator_loss(logits.float())
    ratio = torch.ones((), device=reconstruction.device)
    if objective.adaptive_weight:
        norms = torch.stack(adaptive_weight(reconstruction_loss, loss, learners.model.module.last_layer))
        norms = accelerator.reduce(norms, "mean")
        ratio = clamped_ratio(norms[0], norms[1], objective.adaptive_weight_max)
    return {"adversarial": objective.adversarial_weight * factor * ratio * loss, "adaptive_weight": ratio}


def _discriminator_terms(
    discriminator: Learner, images: Tensor, reconstruction: Tensor, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Real and fake images in one call."""
    with accelerator.autocast():
        logits = discriminator.wrapped(torch.cat([images, reconstruction.to(images.dtype)]))
    real, fake = logits.float().chunk(2)
    loss = hinge_discriminator_loss(real, fake)
    return {"discriminator": loss, "logits_real": real.mean().detach(), "logits_fake": fake.mean().detach()}


def _update_quantizer(quantizer: Quantizer, codes: Tensor, features: Tensor, accelerator: Accelerator) -> None:
    """The sums of all ranks are the same on each, so that codebooks without a gradient stay the same too."""
    statistics = quantizer.statistics(codes, features)
    if statistics:
        quantizer.update(accelerator.reduce(statistics, "sum"))


@torch.no_grad()
def _revive_codes(
    learners: TokenizerLearners, codes: Tensor, features: Tensor, step: int, seed: int, accelerator: Accelerator
) -> None:
    """Dead codes start anew: all ranks see the same codes and the same candidates, and so move the same."""
    model = learners.model.module
    candidates = features.permute(0, 2, 3, 1).flatten(0, 2)  # [N, D]
    stride = max(1, len(candidates) // (_REVIVAL_CANDIDATES * model.quantize.config.depth))
    codes, candidates = accelerator.gather((codes.contiguous(), candidates[::stride].contiguous()))
    moved = model.quantize.revive(codes, candidates, torch_generator(seed, "revival", step))
    parameters = dict(model.quantize.named_parameters())  # a codebook of running means is none of them
    for name, rows in moved.items():
        learners.ema.copy_rows(f"quantize.{name}", rows)
        for slot in learners.model.optimizer.state.get(parameters.get(name), {}).values():
            if slot.dim() == 2:
                slot[rows] = 0.0  # the moments of a code that is no more

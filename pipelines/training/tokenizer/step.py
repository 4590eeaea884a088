"""One training step of the tokenizer: generator and discriminator share a single forward pass."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codegrid.pipelines.system.devices import looks
from codegrid.pipelines.system.randomness import torch_generator
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.ema import EMA
from codegrid.pipelines.training.learner import Learner, not_finite, update_together
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.tokenizer.adversarial import (
    discriminator_terms,
    generator_terms,
    update_running_logits,
)
from codegrid.pipelines.training.tokenizer.rate import make_predictor, rate_terms
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.discriminators import make_discriminator
from codegrid.tokenizer.losses import ObjectiveConfig, make_distances, reconstruction_terms, warmup_factor
from codegrid.tokenizer.metrics import code_counts
from codegrid.tokenizer.quantizers import Quantizer


@dataclass
class TokenizerLearners:
    """All state that a tokenizer's training changes."""

    model: Learner
    discriminator: Learner | None
    ema: EMA
    distances: dict[str, nn.Module]  # frozen nets that compare images, by term name
    predictor: Learner | None = None  # the small prior of the rate
    # Running means of the logits, "real" and "fake", if LeCAM needs them; empty before its first step.
    running_logits: dict[str, Tensor] = field(default_factory=dict)
    # Sums since the last line of metrics. A checkpoint saves them, so that a resumed run writes the same lines.
    window: dict[str, Tensor] = field(default_factory=dict)


def make_learners(
    model: VQModel,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    discriminator_optimizer: OptimizerConfig,
    ema_decay: float,
    accelerator: Accelerator,
    num_classes: int = 0,
) -> TokenizerLearners:
    """`num_classes` is the data's number of classes, for a class-conditional discriminator."""
    distances = make_distances(objective)
    discriminator = None
    if objective.adversarial_weight:
        judge = make_discriminator(objective.discriminator, model.config.backbone_config.in_channels, num_classes)
        discriminator = Learner.make(judge, discriminator_optimizer, accelerator)
    learner = Learner.make(model, optimizer, accelerator)
    # Made last, so that a seed gives the other nets the same weights with and without it.
    predictor = make_predictor(model, accelerator) if objective.rate_weight else None
    for distance in distances.values():
        distance.to(accelerator.device)
    return TokenizerLearners(learner, discriminator, EMA(model, ema_decay), distances, predictor)


def train_step(
    learners: TokenizerLearners,
    config: TokenizerTrainingConfig,
    micro_batches: list[Tensor],
    step: int,
    accelerator: Accelerator,
    labels: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """One optimizer step of generator and discriminator over this rank's `micro_batches`, each [B, C, H, W] in [-1, 1].

    Args:
        labels: labels of each micro-batch, int64 [B], if decoder or discriminator are class-conditional.

    Returns:
        values of this rank alone: scalars by name, as means over the micro-batches, and `code_counts`
        (tokenizer/metrics.py).
    """
    model, discriminator, objective = learners.model, learners.discriminator, config.objective
    factor = warmup_factor(step, objective.adversarial_start, objective.adversarial_warmup) if discriminator else 0.0
    active = {"grad_norm": model}
    if factor:
        active["discriminator_grad_norm"] = discriminator
    if objective.is_active("rate", step):
        active["rate_grad_norm"] = learners.predictor
    draws = torch_generator(config.seed, "gradient penalty", step, accelerator.process_index)
    values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    all_codes, all_features = [], []
    for index, images in enumerate(micro_batches):
        share = 1 / len(micro_batches)
        last = index == len(micro_batches) - 1
        with contextlib.ExitStack() as stack:
            for learner in active.values():
                stack.enter_context(learner.exchanging_gradients(accelerator, last))
            classes = labels[index] if labels else None
            with accelerator.autocast():
                output = model.wrapped(images, classes if model.module.config.num_classes else None)
            terms = reconstruction_terms(objective, learners.distances, images, output.reconstruction, step)
            losses, judged, notes, logits = {**terms, **output.losses}, {}, {}, {}
            if factor:
                adversarial, notes, gradient = generator_terms(
                    model,
                    discriminator,
                    objective,
                    sum(terms.values()),
                    output.reconstruction,
                    classes,
                    factor,
                    accelerator,
                )
                losses.update(adversarial)
                # Its gradient at the reconstruction is `gradient`: the backward pass above that point is done already.
                loss = sum(output.losses.values()) + (gradient * output.reconstruction).sum()
            else:
                loss = sum(losses.values())
            if "rate_grad_norm" in active:
                rate, learned = rate_terms(learners.predictor, model.module, output, accelerator)
                loss, notes["rate"] = loss + objective.rate_weight * rate + learned, rate
            accelerator.backward(loss * share)
            if factor:
                judged, logits = discriminator_terms(
                    discriminator,
                    objective,
                    learners.running_logits,
                    images,
                    output.reconstruction,
                    classes,
                    step,
                    draws,
                    accelerator,
                )
                accelerator.backward(sum(judged.values()) * share)
        for name, value in {**losses, **notes, **judged, **logits}.items():
            values[name] = values[name] + value.detach().float() * share
        all_codes.append(output.codes)
        all_features.append(output.features.detach())
    codes = torch.cat(all_codes)
    _finish_step(learners, active, values, codes, torch.cat(all_features), step, config, accelerator)
    quantizer = model.module.config.quantizer_config
    values["code_counts"] = code_counts(codes, quantizer.codebook_size, quantizer.depth)
    return dict(values)


def _finish_step(
    learners: TokenizerLearners,
    active: dict[str, Learner],
    values: dict[str, Tensor],
    codes: Tensor,
    features: Tensor,
    step: int,
    config: TokenizerTrainingConfig,
    accelerator: Accelerator,
) -> None:
    """Update all state, or nothing if a gradient is not finite. `values` records what happened.

    Where the host does not look, the device decides, and codes are counted but not restarted.

    Args:
        active: the learners that got gradients, by the names under which their norms are logged.
    """
    quantizer = learners.model.module.quantize
    frozen = "quantizer" in config.freeze
    # Compute the statistics before the optimizer's step, with the weights of the forward pass.
    statistics = {} if frozen else quantizer.statistics(codes, features)
    norms = update_together(list(active.values()), step, config.max_steps)
    values.update(zip(active, norms, strict=True))
    skipped = values["skipped_steps"] = not_finite(norms)  # the same on all ranks, like the gradients
    known = looks(step, skipped.device)
    if known and skipped:
        return
    undecided = None if known else skipped
    with _kept(quantizer, undecided):
        _update_quantizer(quantizer, statistics, accelerator)
        if not frozen and step < config.revive_until * config.max_steps:
            if known:
                _revive_codes(learners, codes, features, step, config.seed, accelerator)
            else:
                quantizer.count(accelerator.gather(codes.contiguous()))
    if config.objective.lecam_weight and "logits_real" in values:
        decay = config.objective.lecam_decay
        update_running_logits(learners.running_logits, values, decay, accelerator, undecided)
    learners.ema.update(step, undecided)


@contextlib.contextmanager
def _kept(module: nn.Module, skipped: Tensor | None) -> Iterator[None]:
    """Context after which the module's buffers are as before if `skipped`, a scalar on the device, is 1."""
    if skipped is None:
        yield
        return
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    yield
    for name, buffer in before.items():
        module.get_buffer(name).copy_(torch.where(skipped > 0, buffer, module.get_buffer(name)))


def _update_quantizer(quantizer: Quantizer, statistics: dict[str, Tensor], accelerator: Accelerator) -> None:
    """Sum the statistics over all ranks, so that codebooks without a gradient stay the same on every rank."""
    if statistics:
        quantizer.update(accelerator.reduce(statistics, "sum"))


@torch.no_grad()
def _revive_codes(
    learners: TokenizerLearners, codes: Tensor, features: Tensor, step: int, seed: int, accelerator: Accelerator
) -> None:
    """Dead-code restart. All ranks see the same codes and candidates, so their codebooks stay the same."""
    model = learners.model.module
    candidates = model.quantize.candidates(features)  # [M, D]
    codes, candidates = accelerator.gather((codes.contiguous(), candidates.contiguous()))
    moved = model.quantize.revive(codes, candidates, torch_generator(seed, "revival", step))
    parameters = dict(model.quantize.named_parameters())  # a codebook of running means is not a parameter
    for name, rows in moved.items():
        learners.ema.copy_rows(f"quantize.{name}", rows)
        for slot in learners.model.optimizer.state.get(parameters.get(name), {}).values():
            if slot.dim() == 2:
                slot[rows] = 0.0  # drop the moments of the old code

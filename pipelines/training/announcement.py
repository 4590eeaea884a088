"""What a run prints before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from codegrid.names import shown
from codegrid.pipelines.data.records import ImageSource
from codegrid.pipelines.data.understood import describe_channels, describe_reading
from codegrid.pipelines.system.devices import product_rate
from codegrid.pipelines.system.numbers import duration, memory, number
from codegrid.pipelines.training.config import PriorTrainingConfig, TokenizerTrainingConfig
from codegrid.pipelines.training.memory_estimate import MemoryEstimate, estimate_memory, estimate_prior_memory
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.run import Run
from codegrid.pipelines.training.tokenizer.step import TokenizerLearners
from codegrid.pipelines.training.tracking import how_to_watch
from codegrid.prior import PriorObjective, SequenceConfig
from codegrid.prior.architectures import architecture_of
from codegrid.tokenizer import VQModel


def announce_tokenizer(
    run: Run,
    config: TokenizerTrainingConfig,
    learners: TokenizerLearners,
    train_images: ImageSource,
    validation_images: ImageSource | None,
    start: int,
    notes: str = "",
) -> float:
    """Print the sizes, what a picture becomes, the data, and the resolved values of the config.

    Args:
        notes: further lines about the pictures, each ended.

    Returns:
        operations of one picture's forward and backward pass; 0 on other ranks, which print nothing.
    """
    if not run.is_main:
        return 0.0
    estimate = estimate_of_tokenizer(run, config, learners)
    run.peak_flops = product_rate(run.accelerator.device, _dtype(run))
    held_out = f"{len(validation_images)} held out" if validation_images is not None else "none held out"
    run.log(
        f"Tokenizer: {_parameters(learners, config)}.\n"
        f"{describe_codes(learners.model.module)}\n"
        f"Images: {train_images.description}, {len(train_images)} to train on, {held_out}.\n"
        f"{describe_reading(train_images)}"
        f"{notes}"
        f"{describe_channels(config.backbone.in_channels)}"
        f"Training: steps {start} to {config.max_steps}, {describe_batch(run)} images a step on {run.devices}; "
        f"{_learning_rates(config, learners)}.\n"
        f"{_describe_memory(estimate)}\n"
        f"{_describe_folder(run)}"
    )
    return estimate.flops / run.micro_batch_size


def announce_prior(
    run: Run,
    config: PriorTrainingConfig,
    objective: PriorObjective,
    sequence: SequenceConfig,
    num_rows: int,
    num_held_out: int,
    start: int,
    estimated: Callable[[], MemoryEstimate],
) -> float:
    """Print the sizes, the data, the resolved values of the config, and the least time and memory that training takes.

    Args:
        estimated: gives the estimate of a micro-batch's memory.

    Returns:
        operations of one row's forward and backward pass; 0 on other ranks, which print nothing.
    """
    if not run.is_main:
        return 0.0
    run.peak_flops = product_rate(run.accelerator.device, _dtype(run))
    estimate = estimated()
    run.log(
        f"Prior: {_count(objective.model)} parameters, {sequence.length} codes of {sequence.codebook_size} "
        f"{'an image' if sequence.axes is None else 'a row'}, {sequence.conditioning.describe()}"
        f"{_tokens_before(sequence)}{_frozen(config)}.\n"
        f"Codes: {config.codes}, {num_rows} rows to train on, {num_held_out} held out.\n"
        f"Training: steps {start} to {config.max_steps}, {describe_batch(run)} rows a step on {run.devices}, "
        f"learning rate {describe_learning_rate(config.optimizer, config.batch_size)}.\n"
        f"{_describe_memory(estimate)}\n"
        f"{_describe_time(run, objective, sequence, config.max_steps - start)}\n"
        f"{_describe_folder(run)}"
    )
    return float(flops_a_token(objective, sequence) * (sequence.prefix_length + sequence.length - 1))


def _tokens_before(sequence: SequenceConfig) -> str:
    """How many tokens the condition adds; nothing for classes, which are one."""
    if sequence.condition is None:
        return ""
    return f": {sequence.prefix_length + sequence.length} tokens a row"


def flops_a_token(objective: PriorObjective, sequence: SequenceConfig) -> int:
    """Floating-point operations of the forward and backward pass per token, those of the prefix included: 6 per weight
    of a matrix product (arXiv:2001.08361), plus those of attention, half of whose scores are masked. Logits are of the
    codes alone.
    """
    config = objective.model.config
    tables = {objective.model.get_input_embeddings(), objective.model.get_output_embeddings()}
    record = architecture_of(objective.model)
    layers = (nn.Linear,) if record is None else record.matrix_layers
    matrices = [m.weight for m in objective.model.modules() if isinstance(m, layers) and m not in tables]
    weights = sum(weight.numel() for weight in matrices)
    tokens = sequence.prefix_length + sequence.length - 1
    attention = config.num_hidden_layers * config.hidden_size * tokens
    head = objective.num_codes * config.hidden_size * sequence.length / tokens
    return round(6 * (weights + head + attention))


def describe_batch(run: Run) -> str:
    """The total batch size and its factors."""
    config, ranks = run.config, run.accelerator.num_processes
    if run.micro_batch_size == config.batch_size:
        return str(config.batch_size)
    parts = f"{run.micro_batch_size} x {ranks} devices x {config.gradient_accumulation_steps} micro-steps"
    return f"{config.batch_size} ({parts})"


def describe_learning_rate(config: OptimizerConfig, batch_size: int) -> str:
    """The learning rate in use and, if the batch size scaled it, how it was computed."""
    used = config.for_batch(batch_size).learning_rate
    if used == config.learning_rate:
        return f"{used:g}"
    rule = config.batch_scaling.replace("_", " ")
    return f"{number(used)} ({config.learning_rate:g} at a batch of {config.base_batch_size}, {rule} rule)"


def describe_codes(model: VQModel) -> str:
    """Tokens per image, bits per pixel, and the compression ratio against the pixels' bits."""
    config = model.config
    tokens, size = math.prod(config.codes_shape), config.quantizer_config.codebook_size
    preprocessing, channels = config.preprocessing_config, config.backbone_config.in_channels
    pixels = math.prod(preprocessing.size)
    bits, shape = tokens * math.log2(size), "x".join(map(str, config.codes_shape))
    return (
        f"An image of {preprocessing.size_text} becomes {tokens} tokens ({shape}) of {size} codes: "
        f"{number(bits / pixels, 3)} bits a pixel, {8 * channels * pixels / bits:.0f} times fewer than the pixels' "
        f"{8 * channels}."
    )


def _frozen(config: TokenizerTrainingConfig | PriorTrainingConfig) -> str:
    return f"; frozen: {', '.join(config.freeze)}, as in {shown(config.init_from or '')}" if config.freeze else ""


def _parameters(learners: TokenizerLearners, config: TokenizerTrainingConfig) -> str:
    model = learners.model.module
    parts = {"encoder": model.encoder, "decoder": model.decoder, "quantizer": model.quantize}
    counts = ", ".join(f"{name} {_count(module)}" for name, module in parts.items())
    text = f"{_count(model)} parameters ({counts}){_frozen(config)}"
    if learners.discriminator is not None:
        text += f"; discriminator {_count(learners.discriminator.module)}"
    if learners.predictor is not None:
        text += f"; a small prior for the rate {_count(learners.predictor.module)}, not kept"
    for name, net in learners.distances.items():
        text += f"; net of the {name} term {_count(net)}, not trained"
    return text


def _count(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.2f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def _learning_rates(config: TokenizerTrainingConfig, learners: TokenizerLearners) -> str:
    text = f"learning rate {describe_learning_rate(config.optimizer, config.batch_size)}"
    if learners.discriminator is not None:
        text += f", discriminator's {describe_learning_rate(config.discriminator_optimizer, config.batch_size)}"
    return text


def estimate_of_prior(
    run: Run, config: PriorTrainingConfig, objective: PriorObjective, sequence: SequenceConfig, num_samples: int
) -> MemoryEstimate:
    """Memory of a micro-batch; `num_samples` images are sampled at an evaluation."""
    tokens = (run.micro_batch_size, sequence.prefix_length + sequence.length)
    precision = run.accelerator.mixed_precision
    return estimate_prior_memory(objective, tokens, bool(config.ema_decay), precision, num_samples)


def estimate_of_tokenizer(run: Run, config: TokenizerTrainingConfig, learners: TokenizerLearners) -> MemoryEstimate:
    """Memory of a micro-batch."""
    return estimate_memory(
        learners.model.module,
        None if learners.discriminator is None else learners.discriminator.module,
        learners.distances.values(),
        (run.micro_batch_size, config.backbone.in_channels, *config.preprocessing.size),
        bool(config.ema_decay),
        run.accelerator.mixed_precision,
        None if learners.predictor is None else learners.predictor.module,
    )


def _dtype(run: Run) -> torch.dtype:
    return torch.bfloat16 if run.accelerator.mixed_precision == "bf16" else torch.float32


def _describe_folder(run: Run) -> str:
    watch = how_to_watch(run.config.tracking, run.folder)
    return f"The run goes to {shown(run.folder)}.{' ' if watch else ''}{watch}"


def _describe_time(run: Run, objective: PriorObjective, sequence: SequenceConfig, steps: int) -> str:
    """A lower bound of a step's time: matrix products alone, at the rate that this device reaches now.

    Small models take many times as long, so that no total is made of it.
    """
    rows = run.micro_batch_size * (sequence.prefix_length + sequence.length - 1)
    flops = flops_a_token(objective, sequence) * rows * run.config.gradient_accumulation_steps
    if run.config.gradient_checkpointing:
        flops = flops * 4 // 3
    width = objective.model.config.hidden_size
    rate = product_rate(run.accelerator.device, _dtype(run), rows, width)
    return (
        f"Time, at least: {duration(flops / rate)} a step ({number(flops / 1e9, 2)} GFLOP at {number(rate / 1e9, 3)} "
        f"a second). "
        f"After the first steps a line says how long the {steps:,} steps take."
    )


def _describe_memory(estimate: MemoryEstimate) -> str:
    samples = f" or {memory(estimate.samples)} an evaluation's samples" if estimate.samples > estimate.step else ""
    return (
        f"Memory, an estimate: {memory(estimate.total)} a device ({memory(estimate.weights)} weights, "
        f"{memory(estimate.kept)} optimizer and average, {memory(estimate.step)} the step{samples})."
    )

"""Optimizer and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from codegrid.errors import require
from codegrid.pipelines.system.devices import computes_bf16
from codegrid.pipelines.training.muon import Muon
from codegrid.tokenizer.fields import younger


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) or Muon, with linear warm-up and cosine decay to `min_learning_rate`.

    Args:
        type: "adamw", or "muon" for the matrices and convolutions between the first and the last layer, with AdamW for
            the rest. Convolutional tokenizers learn faster with Muon (docs/benchmarks.md).
        learning_rate: peak learning rate, for a batch of `base_batch_size` samples.
        base_batch_size: total batch size (over all ranks and micro-steps) that the learning rates are meant for. A run
            with another batch size scales them and says so. 0 never scales them.
        batch_scaling: "square_root" multiplies by sqrt(batch / base), which keeps Adam's noise the same (Malladi et al.
            2022, https://arxiv.org/abs/2205.10287); "linear" multiplies by batch / base, the rule for SGD (Goyal et al.
            2017, https://arxiv.org/abs/1706.02677), which taming-transformers also uses with Adam.
        warmup_steps: steps over which the learning rate rises from 0.
        min_learning_rate: final value of the cosine decay, at the last step; scaled alike.
        beta1: decay of the first moment of AdamW.
        beta2: decay of the second moment of AdamW.
        momentum: decay of Muon's momentum.
        muon_precision: precision of the products that orthogonalize Muon's updates. "bfloat16" is what its authors take
            on GPUs that compute in it; "auto" takes it where the device computes in it (docs/experiments.md).
        weight_decay: applies to matrices and convolutions only, not to biases, norms and codebooks.
        max_grad_norm: gradients with a larger norm are clipped to it; 0 for no clipping.
    """

    type: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    base_batch_size: int = 0
    batch_scaling: Literal["square_root", "linear"] = "square_root"
    warmup_steps: int = 0
    min_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    muon_precision: Literal["auto", "float32", "bfloat16"] = younger("float32")
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate is {self.learning_rate}.", "It must be positive.")
        for name in ("base_batch_size", "warmup_steps", "min_learning_rate", "weight_decay", "max_grad_norm"):
            require(getattr(self, name) >= 0, f"optimizer.{name} is {getattr(self, name)}.", "It must not be negative.")
        for name in ("beta1", "beta2"):
            require(
                0 <= getattr(self, name) < 1, f"optimizer.{name} is {getattr(self, name)}.", "It must lie in [0, 1)."
            )
        require(0 < self.momentum < 1, f"optimizer.momentum is {self.momentum}.", "It must lie between 0 and 1.")

    def for_batch(self, batch_size: int) -> OptimizerConfig:
        """The config for `batch_size` samples per step, with scaled learning rates."""
        if not self.base_batch_size:
            return self
        factor = batch_size / self.base_batch_size
        if self.batch_scaling == "square_root":
            factor = math.sqrt(factor)
        rates = {name: factor * getattr(self, name) for name in ("learning_rate", "min_learning_rate")}
        return replace(self, **rates, base_batch_size=0)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Weight decay applies to matrices, not to tables and vectors. With "muon", hidden matrices get a `momentum` group.

    A module describes its own parameters: `no_decay = True` marks a table of vectors (an `nn.Embedding` needs no mark),
    `not_hidden = True` a net's first or last layer, which Muon leaves to AdamW (Jordan et al. 2024).
    """
    tables, ends = _said_by_modules(model)
    hidden, matrices, others = [], [], []
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        if parameter.dim() < 2 or id(parameter) in tables:
            others.append(parameter)
        elif config.type == "muon" and id(parameter) not in ends:
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": hidden, "weight_decay": config.weight_decay, "momentum": config.momentum},
    ]
    kind = Muon if config.type == "muon" else torch.optim.AdamW
    optimizer = kind(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    if isinstance(optimizer, Muon):
        device = next(model.parameters()).device
        able = config.muon_precision == "auto" and computes_bf16(cpu=device.type == "cpu")
        optimizer.rounded = able or config.muon_precision == "bfloat16"
    return optimizer


def _said_by_modules(model: nn.Module) -> tuple[set[int], set[int]]:
    """The ids of the parameters of tables, and those of first and last layers."""
    tables, ends = set(), set()
    # transformers' models have no mark for the output layer. If it is tied to the input embedding, it is a table.
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    for module in model.modules():
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.Embedding) or getattr(module, "no_decay", False):
            tables |= own
        elif module is head or getattr(module, "not_hidden", False):
            ends |= own
    return tables, ends


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Learning rate of a step in 0, ..., max_steps - 1."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value

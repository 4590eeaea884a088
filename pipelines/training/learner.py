"""A module that is trained, with its optimizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.training.optim import OptimizerConfig, learning_rate, make_optimizer, set_learning_rate


@dataclass
class Learner:
    """A module that is trained: bare, as Accelerate wraps it for several ranks, and its optimizer."""

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    config: OptimizerConfig

    @classmethod
    def make(cls, module: nn.Module, config: OptimizerConfig, accelerator: Accelerator) -> Learner:
        module.to(accelerator.device)
        optimizer = make_optimizer(module, config)
        wrapped = accelerator.prepare_model(module)
        return cls(module, wrapped, optimizer, config)

    def update(self, step: int, max_steps: int) -> float:
        """Clip, step, clear; gives the gradients' norm before clipping. A norm that is not finite changes no weight."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or float("inf")))
        if math.isfinite(norm):
            set_learning_rate(self.optimizer, learning_rate(self.config, step, max_steps))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextlib.contextmanager
    def exchanging_gradients(self, accelerator: Accelerator, exchange: bool) -> Iterator[None]:
        """Within, backward passes exchange gradients between the ranks, or keep them to themselves."""
        with contextlib.nullcontext() if exchange else accelerator.no_sync(self.wrapped):
            yield

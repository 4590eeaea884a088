"""A trained module with its optimizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from codegrid.pipelines.training.optim import OptimizerConfig, learning_rate, make_optimizer, set_learning_rate


@dataclass
class Learner:
    """A trained module, its optimizer, and the callable for the loss, which Accelerate wraps for several ranks."""

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    config: OptimizerConfig

    @classmethod
    def make(
        cls, module: nn.Module, config: OptimizerConfig, accelerator: Accelerator, called: nn.Module | None = None
    ) -> Learner:
        """`called` is a module around `module` with the same weights; None means `module` itself."""
        module.to(accelerator.device)
        optimizer = make_optimizer(module, config)
        wrapped = accelerator.prepare_model(called or module)
        return cls(module, wrapped, optimizer, config)

    def clip(self) -> float:
        """Clip the gradients to `max_grad_norm` and return their norm before."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        return float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or float("inf")))

    def update(self, step: int, max_steps: int) -> None:
        """One step of the optimizer."""
        set_learning_rate(self.optimizer, learning_rate(self.config, step, max_steps))
        self.optimizer.step()

    @contextlib.contextmanager
    def exchanging_gradients(self, accelerator: Accelerator, exchange: bool) -> Iterator[None]:
        """Context in which backward passes exchange gradients between ranks, or do not."""
        with contextlib.nullcontext() if exchange else accelerator.no_sync(self.wrapped):
            yield


def update_together(learners: list[Learner], step: int, max_steps: int) -> list[float]:
    """Clip, step and clear all learners. If any norm is not finite, only clear: no weight of any learner changes.

    Returns:
        the gradients' norms before clipping.
    """
    norms = [learner.clip() for learner in learners]
    for learner in learners:
        if all(map(math.isfinite, norms)):
            learner.update(step, max_steps)
        learner.optimizer.zero_grad(set_to_none=True)
    return norms

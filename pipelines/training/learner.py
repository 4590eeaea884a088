"""A trained module with its optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from codegrid.pipelines.system.devices import looks
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
        """`called` is a module around `module` with the same weights; None means `module` itself.

        One that is divided among the ranks (`FSDPModule`) exchanges its gradients itself.
        """
        called = called or module
        divided = isinstance(called, FSDPModule)
        module = module if divided else module.to(accelerator.device)
        optimizer = make_optimizer(module, config)
        wrapped = called if divided else accelerator.prepare_model(called)
        return cls(module, wrapped, optimizer, config)

    def clip(self) -> Tensor:
        """Clip the gradients to `max_grad_norm` and return their norm before, a scalar on the device."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or float("inf"))
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, step: int, max_steps: int, skipped: Tensor | None = None) -> None:
        """One step of the optimizer; none if `skipped`, a scalar on the device, is 1."""
        set_learning_rate(self.optimizer, learning_rate(self.config, step, max_steps))
        self.optimizer.found_inf = skipped  # which torch's fused optimizers, and Muon, read on the device
        self.optimizer.step()

    @contextlib.contextmanager
    def exchanging_gradients(self, accelerator: Accelerator, exchange: bool) -> Iterator[None]:
        """Context in which backward passes exchange gradients between ranks, or do not."""
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(exchange)
            yield
            return
        with contextlib.nullcontext() if exchange else accelerator.no_sync(self.wrapped):
            yield


def update_together(learners: list[Learner], step: int, max_steps: int) -> list[Tensor]:
    """Clip, step and clear all learners. If any norm is not finite, only clear: no weight of any learner changes.

    The host decides where it `looks`; elsewhere the optimizers do, on the device.

    Returns:
        the gradients' norms before clipping, scalars on the device.
    """
    norms = [learner.clip() for learner in learners]
    skipped = not_finite(norms)
    known = looks(step, skipped.device)
    for learner in learners:
        if not known or not skipped:
            learner.update(step, max_steps, None if known else skipped)
        learner.optimizer.zero_grad(set_to_none=True)
    return norms


def not_finite(norms: list[Tensor]) -> Tensor:
    """1 if any of the norms is infinite or NaN, else 0: a float32 scalar on their device."""
    return 1.0 - torch.stack([norm.detach() for norm in norms]).isfinite().all().float()

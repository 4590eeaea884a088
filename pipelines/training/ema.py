"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from codegrid.pipelines.training.divided import divided_like, is_divided, local


class EMA:
    """theta_ema <- d theta_ema + (1 - d) theta after every step, d = min(decay, (1 + step) / (10 + step)).

    Buffers (codebook usage, a codebook of running means) are copied, not averaged. With `decay` 0 the EMA is the model
    itself and costs nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {}
        if decay:
            self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None = None) -> None:
        """Average the weights after a step; not if `skipped`, a scalar on the device, is 1."""
        if self.weights:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            averages = [local(self.weights[name]) for name, _ in self.model.named_parameters()]
            parameters = [local(parameter.detach()) for parameter in self.model.parameters()]
            if skipped is None:
                torch._foreach_lerp_(averages, parameters, share)
            else:
                torch._foreach_lerp_(averages, parameters, [share * (1.0 - skipped)] * len(averages))

    @torch.no_grad()
    def copy_rows(self, name: str, rows: Tensor) -> None:
        """Copy rows of a parameter without averaging: restarted codes have no past worth averaging."""
        if name in self.weights:
            self.weights[name][rows] = self.model.get_parameter(name)[rows]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        if not self.weights:
            yield
            return
        if any(map(is_divided, self.weights.values())):  # what gathers them has them by their place in memory
            self._exchange()
            try:
                yield
            finally:
                self._exchange()
            return
        kept = {name: parameter.data for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.data = self.weights[name]
        try:
            yield
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.data = kept[name]

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.model.named_parameters():
            weights, average = local(parameter.detach()), local(self.weights[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def load(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.weights.items():
            tensor.copy_(divided_like(weights[name], tensor))

"""Muon: momentum whose update of each matrix is made orthogonal.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, https://arxiv.org/abs/2502.16982 (the
update's size is that of AdamW's, so that both go by one learning rate).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of the quintic iteration: singular values end between about 0.7 and 1.2 after five steps (Jordan et al.).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Root mean square of AdamW's usual updates, in units of the learning rate (Liu et al., section 2.2).
_ADAMW_RMS = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `momentum` above 0: their parameters (matrices, or convolutions as matrices
    [out, in * kernel]) get W <- W - lr (0.2 sqrt(max(rows, columns)) orthogonal(momentum) + weight_decay W).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        groups = self.param_groups
        # AdamW steps over all the groups that it sees.
        self.param_groups = [group for group in groups if not group.get("momentum")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("momentum"):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _step_matrix(self, parameter: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        update = parameter.grad.lerp(state["momentum_buffer"], momentum)  # Nesterov's
        matrix = orthogonalized(update.flatten(1))
        size = _ADAMW_RMS * max(matrix.shape) ** 0.5
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(matrix.view(parameter.shape), alpha=-lr * size)


def orthogonalized(matrix: Tensor) -> Tensor:
    """U V' of the singular value decomposition U S V', about, by Newton-Schulz iterations: [M, N] -> [M, N]."""
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    for _ in range(_ITERATIONS):
        gram = x @ x.t()
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.t() if tall else x

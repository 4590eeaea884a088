"""Muon: momentum with an orthogonalized update of each matrix.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, https://arxiv.org/abs/2502.16982 (the
update is scaled to AdamW's size, so that both share one learning rate).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Coefficients of the quintic iteration. Five steps bring singular values to about 0.7 to 1.2 (Jordan et al.).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Root mean square of AdamW's usual updates, in units of the learning rate (Liu et al., section 2.2).
_ADAMW_RMS = 0.2
# Matrices of the same shape are orthogonalized together, up to this many elements (16 MB): for small matrices, launch
# overhead dominates.
_AT_ONCE = 2**22


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with `momentum` above 0. Their parameters (matrices, or convolutions as matrices
    [out, in * kernel]) get W <- W - lr (0.2 sqrt(max(rows, columns)) orthogonal(momentum) + weight_decay W).

    Like torch's fused AdamW, it changes nothing if its attribute `found_inf`, a scalar on the device, is 1.
    """

    found_inf: Tensor | None = None
    rounded = False  # whether the updates are orthogonalized in bfloat16

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        groups = self.param_groups
        # AdamW steps every group that it sees, so hide Muon's groups from it.
        self.param_groups = [group for group in groups if not group.get("momentum")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("momentum"):
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                self._step_matrices(parameters, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _step_matrices(self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients, kept = [parameter.grad for parameter in parameters], 1 - lr * weight_decay
        skipped = None if self.found_inf is None else self.found_inf > 0
        if skipped is not None:  # an average that moves towards itself stays
            pairs = zip(averages, gradients, strict=True)
            gradients = [torch.where(skipped, average, gradient) for average, gradient in pairs]
            kept = torch.where(skipped, 1.0, kept)
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov momentum
        torch._foreach_mul_(parameters, kept)
        for alike in _of_one_shape(updates):
            matrices = orthogonalized(torch.stack([updates[index].flatten(1) for index in alike]), self.rounded)
            if skipped is not None:
                matrices = matrices.masked_fill(skipped, 0.0)
            size = _ADAMW_RMS * max(matrices.shape[1:]) ** 0.5
            for index, matrix in zip(alike, matrices, strict=True):
                parameters[index].add_(matrix.view(parameters[index].shape), alpha=-lr * size)


def _of_one_shape(tensors: list[Tensor]) -> Iterator[list[int]]:
    """Indices of matrices of the same shape, in chunks."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        alike[len(tensor), tensor.numel(), tensor.dtype, tensor.device].append(index)
    for (_, size, *_), indices in alike.items():
        number = max(1, _AT_ONCE // size)
        yield from (indices[first : first + number] for first in range(0, len(indices), number))


def orthogonalized(matrices: Tensor, rounded: bool = False) -> Tensor:
    """Approximate U V' of the singular value decomposition U S V' by Newton-Schulz: [B, M, N] -> [B, M, N].

    With `rounded` the products are computed in bfloat16, as Jordan et al. do; the norm before them is not.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    x = x.bfloat16() if rounded else x
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)

"""The rate of codes in training: their cross-entropy under a model of codes, softened so that it has a gradient."""

from __future__ import annotations

from torch import Tensor

_SMALLEST_SCALE = 1e-6  # of squared distances: features that lie on their codes would divide by 0


def soft_assignments(distances: Tensor) -> Tensor:
    """p = softmax(-|z - e|^2 / s) over the codes: |z - e|^2 [N, K] -> [N, K] (RDVQ, https://arxiv.org/abs/2604.10546).

    s is the mean of the rows' smallest distances, without a gradient: assignments are as soft as quantizing is coarse.
    """
    scale = distances.detach().amin(1).mean().clamp_min(_SMALLEST_SCALE)
    return (-distances.clamp_min(0) / scale).softmax(1)


def soft_rate(assignments: Tensor, log_probabilities: Tensor) -> Tensor:
    """E[-sum_k p_k log q_k] in nats a code: assignments p and the model's log q, both [N, K] -> scalar."""
    return -(assignments * log_probabilities).sum(1).mean()

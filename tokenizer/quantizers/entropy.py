"""The entropy term: it makes each feature's assignment certain and the use of the codes even."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean of the rows' entropies minus the entropy of the mean row, for p = softmax(logits): [N, K] -> scalar.

    E[H(p)] - H(E[p]) lies in [-log K, 0] (Yu et al. 2023, arXiv:2310.05737). It is computed from logarithms: at low
    temperatures most p are 0 in float32, and there the gradient of p log p is not finite.
    """
    log_p = logits.log_softmax(1)  # [N, K]
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))  # [K]
    of_rows = -(log_p.exp() * log_p).sum(1).mean()
    of_mean = -(log_mean.exp() * log_mean).sum()
    return of_rows - of_mean

"""Distances between two sets of features: pure functions of float [N, D] tensors, computed in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from codegrid.errors import require

# torch-fidelity's values, so that figures can be compared.
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE, SPLITS, SHUFFLE_SEED = 100, 1000, 10, 2020
_NUMBERS_AT_ONCE = 16_777_216  # most float64 numbers in a block of distances: 128 MB


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, D] -> mean [D] and unbiased covariance [D, D], float64.

    Raises:
        CodegridError: N is below 2.
    """
    require(
        len(features) >= 2,
        f"There are {len(features)} images with features, and a covariance needs at least two.",
        "Give more images.",
    )
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features [N, D] and [M, D] (Heusel et al. 2017, arXiv:1706.08500).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).
    """
    return frechet_of_moments(mean_and_covariance(features), mean_and_covariance(reference))


def frechet_of_moments(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Frechet distance between two Gaussians, each a mean [D] and a covariance [D, D], float64."""
    (mean, cov), (other_mean, other_cov) = one, other
    # C C' has the eigenvalues of C^(1/2) C' C^(1/2), which is symmetric, so rounding gives no complex roots.
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * _without_rounding(values).sqrt() @ vectors.T
    product = _without_rounding(torch.linalg.eigvalsh(root @ other_cov @ root))
    distance = (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * product.sqrt().sum()
    return distance.clamp(min=0).item()


def _without_rounding(values: Tensor) -> Tensor:
    """Set eigenvalues that are only rounding to 0: with few images, their roots would add up."""
    noise = values.abs().amax() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, 0.0)


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    subsets: int = KERNEL_SUBSETS,
    subset_size: int = KERNEL_SUBSET_SIZE,
    seed: int = SHUFFLE_SEED,
) -> tuple[float, float]:
    """Squared MMD of the kernel (x.y / D + 1)^3, unbiased (Binkowski et al. 2018, arXiv:1801.01401): mean, deviation.

    The mean is over random subsets, drawn as in torch-fidelity. Their size is at most the number of images.
    """
    size = min(subset_size, len(features), len(reference))
    require(
        size >= 2,
        f"There are {size} images with features, and a kernel distance needs at least two.",
        "Give more images.",
    )
    draws = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        x, y = (
            part[torch.from_numpy(draws.choice(len(part), size, replace=False))].double()
            for part in (features, reference)
        )
        within = sum(kernel.sum() - kernel.trace() for kernel in (_kernel(x, x), _kernel(y, y)))
        found.append((within / (size * (size - 1)) - 2 * _kernel(x, y).mean()).item())
    return float(np.mean(found)), float(np.std(found))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def classifier_score(logits: Tensor, splits: int = SPLITS, seed: int = SHUFFLE_SEED) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)) of logits [N, classes] (Salimans et al. 2016, arXiv:1606.03498): mean, deviation.

    The score is in [1, classes]. The mean is over `splits` parts of the shuffled images; at least `splits` images are
    needed. With Inception's logits it is the Inception score.
    """
    require(
        len(logits) >= splits,
        f"There are {len(logits)} images, and a score in {splits} parts needs at least {splits}.",
        "Give more images.",
    )
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(logits)))
    log_p = logits[order].double().log_softmax(1)
    found = []
    for part in range(splits):
        chunk = log_p[part * len(log_p) // splits : (part + 1) * len(log_p) // splits]
        marginal = chunk.exp().mean(0)
        found.append((chunk.exp() * (chunk - marginal.log())).nan_to_num(0.0).sum(1).mean().exp().item())
    return float(np.mean(found)), float(np.std(found))


def precision_recall(features: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of features [N, D] within the reference's manifold, and vice versa (arXiv:1904.06991): both in [0, 1].

    A set's manifold is the union of balls around its features; each reaches to the `neighbours`-th nearest other one.

    Raises:
        CodegridError: a set has no more than `neighbours` features.
    """
    least = min(len(features), len(reference))
    require(
        least > neighbours,
        f"There are {least} images on one side, and precision and recall need more than {neighbours}.",
        "Give more images.",
    )
    features, reference = features.double(), reference.double()
    return _covered(features, reference, neighbours), _covered(reference, features, neighbours)


def _covered(features: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Share of `features` that lie in a ball of `manifold`."""
    block = max(1, _NUMBERS_AT_ONCE // max(len(features), len(manifold)))
    # The nearest neighbour is the feature itself, at distance 0.
    radii = torch.cat(
        [torch.cdist(part, manifold).kthvalue(neighbours + 1, dim=1).values for part in manifold.split(block)]
    )
    inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in features.split(block)]
    return torch.cat(inside).double().mean().item()

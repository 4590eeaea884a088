"""A judge of class agreement that blur does not fool: a linear classifier of a frozen net's pooled features.

A small net trained on the reference pictures themselves learns cues that survive blur, such as colours and outlines.
The features of a net for photographs change with edges and texture, and a linear classifier (a probe: Alain & Bengio
2016, https://arxiv.org/abs/1610.01644) can only weigh them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import require

SEEDS = (0, 1, 2)
HELD_OUT = 0.2  # share of the pictures of each class that tests the probe
_DECAY = 1e-3  # factor of |W|^2 / 2, beside a mean cross-entropy over standardized features
_ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """logits = (features - mean) / std @ weight + bias.

    Attributes:
        mean, std: of the training features, float32 [D].
        weight: float32 [D, K].
        bias: float32 [K].
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """The likeliest class of each picture: float32 [N, D] -> int64 [N]."""
        return ((features.float() - self.mean) / self.std @ self.weight + self.bias).argmax(1)


@dataclass(frozen=True)
class Agreement:
    """Share of the pictures of a class that a probe sees as that class, as a mean over the classes.

    Attributes:
        mean: mean over probes of several seeds, in [0, 1].
        spread: standard deviation between these probes; 0 with one.
    """

    mean: float
    spread: float


@dataclass(frozen=True)
class Probes:
    """Probes of several splits of the same pictures.

    Attributes:
        held_out: for each probe the pictures that it was not fitted to, bool [N].
        of_real: agreement on these.
    """

    probes: tuple[Probe, ...]
    held_out: tuple[Tensor, ...]
    of_real: Agreement

    def agreement(self, features: Tensor, labels: Tensor) -> Agreement:
        """Agreement on other pictures: features [N, D], labels int64 [N], all known."""
        return _summary([balanced_accuracy(probe.predict(features), labels) for probe in self.probes])

    def agreement_of_versions(self, features: Tensor, rows: Tensor, labels: Tensor) -> Agreement:
        """Agreement on other versions of pictures that the probes were made with, each judged where it was held out.

        Args:
            features: of the versions, float32 [M, D].
            rows: the picture of each version, as a row of what `fit_probes` was given, int64 [M].
            labels: of all pictures that `fit_probes` was given, int64 [N].

        Raises:
            CodegridError: no version is of a picture that a probe was not fitted to.
        """
        reached = []
        for probe, held_out in zip(self.probes, self.held_out, strict=True):
            of_unseen = held_out[rows]
            require(of_unseen.any(), "None of these pictures was held out.", "Give more of them.")
            reached.append(balanced_accuracy(probe.predict(features[of_unseen]), labels[rows[of_unseen]]))
        return _summary(reached)


def fit_probes(features: Tensor, labels: Tensor, num_classes: int, seeds: Sequence[int] = SEEDS) -> Probes:
    """A probe per seed, each tested on a fifth of the pictures of each class, which a seed chooses.

    Args:
        features: pooled features of real pictures, float32 [N, D].
        labels: their classes, int64 [N]; pictures with a negative label count nowhere.
        num_classes: number of classes K.
        seeds: seeds of the splits.

    Raises:
        CodegridError: fewer than two classes have two pictures.
    """
    features, known = features.float(), labels >= 0
    several = (torch.bincount(labels[known], minlength=num_classes) >= 2).sum().item()
    require(
        several >= 2,
        f"{several} of {num_classes} classes have two pictures, and a probe tells at least two classes apart.",
        "Give more pictures with labels.",
    )
    splits = tuple(_held_out(labels, num_classes, seed) for seed in seeds)
    probes, reached = [], []
    for held_out in splits:
        fitted = known & ~held_out
        probes.append(fit_probe(features[fitted], labels[fitted], num_classes))
        reached.append(balanced_accuracy(probes[-1].predict(features[held_out]), labels[held_out]))
    return Probes(tuple(probes), splits, _summary(reached))


def fit_probe(features: Tensor, labels: Tensor, num_classes: int) -> Probe:
    """Multinomial logistic regression with equal weight for every class that has pictures, by L-BFGS.

    Args:
        features: float32 [N, D].
        labels: int64 [N], in [0, num_classes).
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs = (features - mean) / std
    counts = torch.bincount(labels, minlength=num_classes)
    weights = torch.where(counts > 0, 1.0 / counts.clamp_min(1), 0.0)  # [K]: of a class's pictures together 1
    weight = torch.zeros(features.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight + bias, labels, weights) + _DECAY / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return Probe(mean, std, weight.detach(), bias.detach())


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur in `labels` of the share of their pictures that are predicted: [N], [N]."""
    right = (predicted == labels).double()
    return torch.stack([right[labels == label].mean() for label in labels.unique()]).mean().item()


def _held_out(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """A fifth of each class's pictures, at least one where there are two: bool [N]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        own = (labels == label).nonzero().flatten()
        number = max(1, round(HELD_OUT * len(own))) if len(own) >= 2 else 0
        chosen[own[torch.randperm(len(own), generator=generator)[:number]]] = True
    return chosen


def _summary(values: Sequence[float]) -> Agreement:
    shares = torch.tensor(values, dtype=torch.float64)
    return Agreement(shares.mean().item(), shares.std(correction=0).item())

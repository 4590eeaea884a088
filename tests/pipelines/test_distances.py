"""The distances against torch-fidelity, scipy, closed forms and direct loops, on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from codegrid.pipelines.evaluation import distances
from codegrid.pipelines.evaluation.distances import (
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features [300, 24] and [260, 24] of two different distributions."""
    mix = torch.randn(24, 24)
    return torch.randn(300, 24) @ mix, torch.randn(260, 24) @ (mix + 0.3 * torch.randn(24, 24)) + 0.2


def test_frechet_distance_is_that_of_torch_fidelity_and_of_scipy(features):
    ours = frechet_distance(*features)
    statistics = [fid_features_to_statistics(part.double()) for part in features]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-6)
    means, covs = zip(*[(x.double().mean(0).numpy(), np.cov(x.double().numpy().T)) for x in features], strict=True)
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * root)
    assert ours == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_fewer_images_than_dimensions():
    """tr (C C')^(1/2) is the nuclear norm of A A'^T, with A, A' the centred features over sqrt(N - 1)."""
    x, y = torch.randn(12, 40).double(), torch.randn(9, 40).double() * 2 + 1
    a, b = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.matrix_norm(a @ b.T, "nuc")
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_that_of_torch_fidelity_on_the_same_subsets(features):
    theirs = kid_features_to_metric(
        *(part.double() for part in features), kid_subsets=7, kid_subset_size=50, verbose=False
    )
    mean, deviation = kernel_distance(*features, subsets=7, subset_size=50)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_kernel_distance_of_all_images_is_the_unbiased_mmd():
    x, y = torch.randn(6, 5).double(), torch.randn(6, 5).double() + 1

    def kernel(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs) / 30
    expected -= 2 * sum(kernel(a, b) for a in x for b in y) / 36
    mean, deviation = kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(expected, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_classifier_score_is_that_of_torch_fidelity_and_has_its_bounds():
    logits = 3 * torch.randn(103, 7)
    theirs = isc_features_to_metric(logits)
    mean, deviation = classifier_score(logits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    assert classifier_score(torch.zeros(20, 5))[0] == pytest.approx(1)
    sure = torch.full((10, 5), -1e9).scatter_(1, torch.arange(10)[:, None] % 5, 0.0)
    assert classifier_score(sure, splits=1)[0] == pytest.approx(5)


@pytest.mark.parametrize("block", [1 << 24, 100])
def test_precision_and_recall_are_those_of_a_direct_loop(monkeypatch, block):
    monkeypatch.setattr(distances, "_NUMBERS_AT_ONCE", block)
    made, real = torch.randn(40, 3).double(), 1.5 * torch.randn(50, 3).double() + 0.5

    def covered(points, manifold):
        hits = 0
        for point in points:
            for index, centre in enumerate(manifold):
                others = sorted(float((centre - other).norm()) for j, other in enumerate(manifold) if j != index)
                if float((point - centre).norm()) <= others[2]:
                    hits += 1
                    break
        return hits / len(points)

    expected = covered(made, real), covered(real, made)
    assert 0.1 < expected[0] < 1
    assert precision_recall(made, real) == pytest.approx(expected)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real + 100, real) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda x: frechet_distance(x[:1], x), "at least two"),
        (lambda x: kernel_distance(x[:1], x), "at least two"),
        (lambda x: classifier_score(x), "at least 10"),
        (lambda x: precision_recall(x[:3], x), "more than 3"),
    ],
)
def test_too_few_images_are_refused(measure, message):
    with pytest.raises(ValueError, match=message):
        measure(torch.randn(5, 4))

"""The linear probe that judges class agreement."""

import pytest
import torch
import torch.nn.functional as F

from codegrid.errors import CodegridError
from codegrid.pipelines.evaluation.probe import balanced_accuracy, fit_probe, fit_probes


def _clouds(counts: list[int], spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around a corner per class, in 16 dimensions of different scales."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    scale = torch.logspace(-3, 3, 16)
    points = F.one_hot(labels, 16).float() + spread * torch.randn(len(labels), 16, generator=draw)
    return points * scale + 5 * scale, labels


def test_a_probe_is_where_its_loss_has_no_slope():
    points, labels = _clouds([40, 25, 10], 0.6)
    probe = fit_probe(points, labels, 3)
    weight, bias = (t.double().requires_grad_() for t in (probe.weight, probe.bias))
    inputs = ((points - probe.mean) / probe.std).double()
    share = 1 / torch.bincount(labels).double()
    loss = F.cross_entropy(inputs @ weight + bias, labels, share) + 5e-4 * weight.square().sum()
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-3


def test_a_class_counts_as_much_as_any_other():
    # The large class alone: 90% of the pictures are right, and half of the classes.
    labels = torch.tensor([0] * 9 + [1])
    assert balanced_accuracy(torch.zeros(10, dtype=torch.int64), labels) == 0.5
    points, labels = _clouds([400, 20], 0.8)
    probe = fit_probe(points, labels, 2)
    per_class = [(probe.predict(points)[labels == label] == label).float().mean().item() for label in (0, 1)]
    assert abs(per_class[0] - per_class[1]) < 0.1, per_class


def test_agreement_falls_as_classes_blend_and_is_that_of_pictures_held_out():
    reached = []
    for spread in (0.1, 0.7, 10.0):
        points, labels = _clouds([60, 60, 60], spread)
        probes = fit_probes(points, labels, 3)
        reached.append(probes.of_real.mean)
        other, other_labels = _clouds([60, 60, 60], spread, seed=1)
        assert abs(probes.agreement(other, other_labels).mean - probes.of_real.mean) < 0.2
    assert reached[0] == 1.0 > reached[1] > reached[2]
    assert reached[2] < 0.5  # a probe that is scored on what it learned would say far more than a third


def test_versions_are_judged_where_a_probe_has_not_seen_their_picture():
    """Noise without any class is told apart in what a probe was fitted to, and not in what it was not."""
    draw = torch.Generator().manual_seed(0)
    points, labels = torch.randn(60, 64, generator=draw), torch.arange(60) % 3
    probes = fit_probes(points, labels, 3)
    assert probes.agreement(points, labels).mean > 0.8
    rows = torch.arange(0, 60, 2)
    versions = probes.agreement_of_versions(points[rows], rows, labels)
    assert versions.mean < 0.6
    whole = probes.agreement_of_versions(points, torch.arange(60), labels)
    assert whole == probes.of_real


def test_the_same_seeds_give_the_same_and_unlabelled_pictures_count_nowhere():
    points, labels = _clouds([30, 30], 0.7)
    alone = fit_probes(points, labels, 2)
    mixed = fit_probes(
        torch.cat([torch.full((5, 16), 1e6), points]), torch.cat([torch.full((5,), -1), labels]), num_classes=2
    )
    assert alone.of_real == mixed.of_real
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(alone.probes, mixed.probes, strict=True))


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 0, 1], [-1, -1, -1]])
def test_one_class_is_no_question(labels: list[int]):
    with pytest.raises(CodegridError, match="two classes apart"):
        fit_probes(torch.zeros(3, 4), torch.tensor(labels), 2)

"""Randomness is counted: the order of the samples and the keys of the draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codegrid.pipelines.data.batches import Augmented, AugmentedImages, Picture, image_batches
from codegrid.pipelines.system.randomness import SampleOrder, key, numpy_generator, seed_step, torch_generator


def test_every_epoch_is_a_permutation_of_its_own():
    order = SampleOrder(10, seed=3)
    positions = order.positions(0, 30)
    assert [epoch for epoch, _ in positions] == [0] * 10 + [1] * 10 + [2] * 10
    epochs = [[index for _, index in positions[start : start + 10]] for start in (0, 10, 20)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    assert SampleOrder(10, seed=3).positions(0, 30) == positions
    assert SampleOrder(10, seed=4).positions(0, 30) != positions


def test_any_part_of_the_order_can_be_asked_for_first():
    whole = SampleOrder(7, seed=0).positions(0, 40)
    for start in (0, 6, 7, 33):
        assert SampleOrder(7, seed=0).positions(start, 7) == whole[start : start + 7]


def test_weights_say_how_often_an_epoch_has_a_sample():
    weights = np.array([0.25, 0.25, 1.5, 2.0, 1.0])
    order = SampleOrder(5, seed=0, weights=weights)
    epochs = [order.indices(5 * epoch, 5) for epoch in range(400)]
    counts = np.stack([np.bincount(epoch, minlength=5) for epoch in epochs])  # [epochs, samples]
    assert counts.min(axis=0).tolist() == [0, 0, 1, 2, 1]
    assert counts.max(axis=0).tolist() == [1, 1, 2, 2, 1]
    assert np.abs(counts.mean(axis=0) - weights).max() < 0.1
    assert len({tuple(epoch) for epoch in epochs}) > 20
    again = SampleOrder(5, seed=0, weights=weights)
    assert again.indices(8, 9).tolist() == np.concatenate(epochs)[8:17].tolist()


class Recorder(AugmentedImages):
    """Gives what it was asked for instead of an image."""

    def __init__(self, size: int) -> None:
        self.source, self.seed = range(size), 0

    def __getitem__(self, item):
        return Augmented(Picture(str(item[1]), 0, np.array(item)[None]), {}, {})


def test_batches_do_not_depend_on_the_number_of_ranks_or_where_one_starts():
    def batches(start, stop, size, ranks):
        per_rank = [image_batches(Recorder(10), start, stop, size, rank, ranks, 0) for rank in range(ranks)]
        steps = zip(*per_rank, strict=True)
        return [{tuple(item) for batch in step for item in batch.pixels.tolist()} for step in steps]

    one = batches(0, 6, 4, 1)
    assert len(one) == 6
    assert all(len(batch) == 4 for batch in one)
    assert batches(0, 6, 2, 2) == one
    assert batches(0, 6, 1, 4) == one
    assert batches(4, 6, 4, 1) == one[4:]
    order = SampleOrder(10, seed=0)
    assert one[3] == set(order.positions(12, 4))


def test_keys_differ_by_seed_purpose_and_counters():
    keys = [
        key(seed, purpose, *counters)
        for seed in (0, 1)
        for purpose in ("order", "augmentation", "step")
        for counters in ((), (0,), (1,), (0, 1), (1, 0), (11,), (1, 1))
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= found < 2**63 for found in keys)
    assert key(0, "order", 1) == 4672741961019256271  # the same in every process and version: runs are resumed by it


def test_generators_repeat_themselves():
    assert numpy_generator(1, "a", 2).random() == numpy_generator(1, "a", 2).random()
    assert numpy_generator(1, "a", 2).random() != numpy_generator(1, "b", 2).random()
    one, other = (torch.rand(3, generator=torch_generator(1, "a", step)) for step in (1, 2))
    assert torch.equal(one, torch.rand(3, generator=torch_generator(1, "a", 1)))
    assert not torch.equal(one, other)


def test_a_step_seeds_the_global_generator_for_its_rank():
    drawn = []
    for step, rank in ((3, 0), (3, 0), (3, 1), (4, 0)):
        seed_step(0, step, rank)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(("start", "count"), [(0, 7), (3, 1), (5, 30), (14, 0)])
def test_the_indices_are_those_of_the_positions(start, count):
    expected = [index for _, index in SampleOrder(7, 1).positions(start, count)]
    assert SampleOrder(7, 1).indices(start, count).tolist() == expected

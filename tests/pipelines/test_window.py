"""The windows of all ranks in a checkpoint, and what a rank gets back."""

from __future__ import annotations

import pytest
import torch

from codegrid.pipelines.training import window as module
from codegrid.pipelines.training.window import gather_windows, own_window


class Rank:
    def __init__(self, index: int, number: int) -> None:
        self.process_index, self.num_processes = index, number


@pytest.fixture
def gathered(monkeypatch):
    """As two ranks gather: their losses are 3 and 5."""
    parts = [{"loss": torch.tensor(value), "steps": torch.tensor(2.0)} for value in (3.0, 5.0)]
    monkeypatch.setattr(module, "gather_object", lambda own: parts)
    return gather_windows({}, Rank(0, 2))


def test_each_rank_gets_its_own(gathered):
    assert sorted(gathered) == ["0/loss", "0/steps", "1/loss", "1/steps"]
    assert [float(own_window(gathered, Rank(index, 2))["loss"]) for index in (0, 1)] == [3.0, 5.0]


@pytest.mark.parametrize("ranks", [1, 3])
def test_another_number_of_ranks_shares_the_mean(gathered, ranks):
    assert {name: float(value) for name, value in own_window(gathered, Rank(0, ranks)).items()} == {
        "loss": 4.0,
        "steps": 2.0,
    }


def test_a_checkpoint_of_one_window_for_all():
    old = {"loss": torch.tensor(3.0)}
    assert own_window(old, Rank(0, 1)) == old
    assert own_window(old, Rank(1, 2)) == old
    assert own_window({}, Rank(1, 2)) == {}

"""The windows of all ranks in a checkpoint, and what a rank gets back."""

from __future__ import annotations

import pytest
import torch

from codegrid.pipelines.training import window as module
from codegrid.pipelines.training.window import add_to_window, gather_windows, own_window, window_means

GOOD = {"skipped_steps": torch.zeros(())}


class Rank:
    def __init__(self, index: int, number: int) -> None:
        self.process_index, self.num_processes, self.device = index, number, torch.device("cpu")

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor


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


def test_counts_of_a_large_codebook_are_tables_in_the_window():
    """Rows of a code's number and its count; after a change of the number of ranks, a window has their mean."""
    window = {}
    for counts in ([[3, 1], [9, 2]], [[0, 5], [9, 1]]):
        add_to_window(window, {"code_counts": torch.tensor(counts), "loss": torch.tensor(1.0), **GOOD})
    assert window["code_counts"].tolist() == [[0, 5], [3, 1], [9, 3]]
    values, counts = window_means(window, Rank(0, 1))
    assert values == {"loss": 1.0, "skipped_steps": 0}
    assert counts["code_counts"].tolist() == [[0, 5], [3, 1], [9, 3]]
    saved = {"0/code_counts": window["code_counts"], "1/code_counts": torch.tensor([[3, 1], [7, 2], [8, 2]])}
    assert torch.equal(own_window(saved, Rank(1, 2))["code_counts"], saved["1/code_counts"])
    shared = own_window(saved, Rank(0, 1))
    assert shared["code_counts"].tolist() == [[0, 2.5], [3, 1], [7, 1], [8, 1], [9, 1.5]]
    add_to_window(shared, {"code_counts": torch.tensor([[0, 1], [1, 1]]), **GOOD})
    assert shared["code_counts"].tolist() == [[0, 3.5], [1, 1], [3, 1], [7, 1], [8, 1], [9, 1.5]]

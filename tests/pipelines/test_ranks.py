"""Sums over the processes of a job, here of two that have the same."""

from __future__ import annotations

import torch

from codegrid.pipelines.system import ranks
from codegrid.pipelines.system.ranks import counts_of_all_ranks, sum_over_ranks


class TwoRanks:
    num_processes = 2

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.seen: list[torch.dtype] = []

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.seen.append(tensor.dtype)
        return tensor + tensor


def test_sums_of_several_ranks_keep_their_digits():
    """float32 rounded a sum of PSNR over 64,000 images by 0.1 dB, and scores depended on the number of ranks."""
    sums = torch.tensor([64_000 * 23.123456789, 1e-9], dtype=torch.float64)
    accelerator = TwoRanks()
    assert torch.equal(sum_over_ranks(sums, accelerator), 2 * sums)
    assert accelerator.seen == [torch.float64]


def test_counts_of_several_ranks(monkeypatch):
    assert counts_of_all_ranks(torch.tensor([1, 0, 3]), TwoRanks()).tolist() == [2, 0, 6]
    other = torch.tensor([[0, 5], [7, 1]])
    monkeypatch.setattr(ranks, "gather_object", lambda own: [*own, other])
    assert counts_of_all_ranks(torch.tensor([[7, 2]]), TwoRanks()).tolist() == [[0, 5], [7, 3]]

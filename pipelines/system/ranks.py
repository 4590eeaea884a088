"""Sums over the ranks of a job."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from codegrid.tokenizer.metrics import add_counts


def sum_over_ranks(sums: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum float64 [N] on the CPU over all ranks; the result is there too. Rounds only if the device has no float64."""
    if accelerator.num_processes == 1:
        return sums
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    return accelerator.reduce(sums.to(accelerator.device, dtype), "sum").cpu().double()


def counts_of_all_ranks(counts: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum the `tokenizer.metrics.code_counts` of all ranks."""
    if counts.dim() == 1:
        return accelerator.reduce(counts, "sum")
    return add_counts(*gather_object([counts.cpu()]))  # the ranks' tables differ in length

"""How many images fit into the free memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")  # has a container's limit (cgroup v2), which psutil does not see
_SHARE = 0.5  # of the free memory: other processes and the libraries need some


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None if the device does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    available = psutil.virtual_memory().available
    limit, used = ((_CGROUP / f"memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        available = min(available, max(0, int(text) - int(used.read_text())))
    return available


def batch_that_fits(bytes_an_image: int, most: int, device: torch.device) -> int:
    """The largest of 1, 2, 4, ... and `most` (at most `most`) whose images fit into half of the free memory.

    With enough memory it is `most`, so that two runs on one machine have the same batches.
    """
    free = free_memory(device)
    fitting = most if free is None else int(_SHARE * free) // max(1, bytes_an_image)
    return most if fitting >= most else 1 << max(0, fitting.bit_length() - 1)

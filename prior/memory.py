"""How many images fit into the memory that is free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")  # a container's limit (cgroup v2), which psutil does not see
_SHARE = 0.5  # of the free memory: others want some, and so do the libraries


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where it does not say."""
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
    """The most images, of 1, 2, 4, ... up to `most` and `most` itself, that take half of the free memory.

    With memory to spare it is `most`, so that what runs on a machine twice has the same batches.
    """
    free = free_memory(device)
    fitting = most if free is None else int(_SHARE * free) // max(1, bytes_an_image)
    return most if fitting >= most else 1 << max(0, fitting.bit_length() - 1)

"""How much memory a call needs beyond what is held already."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM, the peak, back to what is resident now


def peak_extra_bytes(run: Callable[[], object], device: torch.device | str) -> int | None:
    """Peak of the memory that `run` takes on its device beyond what was held before it; None where nobody says.

    On a CUDA device it is what torch allocated there. On the CPU it is the process's resident memory, which counts what
    libraries take for themselves too; what an earlier call left for reuse is given back first.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if kind != "cpu" or not _CLEAR.exists():
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    _CLEAR.write_text(_RESET_PEAK)
    before = _read("VmRSS")
    run()
    return max(0, _read("VmHWM") - before)


def peak_extra_megabytes(run: Callable[[], object], device: torch.device | str) -> float | None:
    """`peak_extra_bytes`, for a table."""
    taken = peak_extra_bytes(run, device)
    return None if taken is None else taken / 1e6


def _read(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0

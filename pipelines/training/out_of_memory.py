"""What a run says when a step does not fit into the device's memory."""

from __future__ import annotations

import psutil
import torch

from codegrid.pipelines.system.numbers import memory
from codegrid.pipelines.training.memory_estimate import MemoryEstimate
from codegrid.pipelines.training.run import Run, TrainingError

_SHARE = 0.9  # of the memory: libraries take some, and what is freed is in pieces


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch had no memory left, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def fitting_parts(estimate: MemoryEstimate, micro_batch: int, total: int) -> int:
    """Into how many parts, at least two, a micro-batch that did not fit has to be divided to fit; 0 if none fits.

    A step's memory grows with the micro-batch; weights, moments and the average stay. That it did not fit says that the
    step takes at least what they leave, whatever the estimate is.

    Args:
        estimate: of `micro_batch` samples.
        total: bytes of the device.
    """
    fixed = estimate.weights + estimate.kept
    step = max(estimate.step, total - fixed)
    divisors = (parts for parts in range(2, micro_batch + 1) if micro_batch % parts == 0)
    return next((parts for parts in divisors if fixed + step / parts <= _SHARE * total), 0)


def out_of_memory(run: Run, estimate: MemoryEstimate | None, step: int) -> TrainingError:
    """The error of a run whose step had no memory left, with the settings that fit."""
    total, size = _total_memory(run.accelerator.device), run.micro_batch_size
    what = f"Step {step + 1} does not fit into the {memory(total)} of this device with a micro-batch of {size}."
    parts = 0 if estimate is None else fitting_parts(estimate, size, total)
    if estimate is None or not parts:
        return TrainingError(what, "Take a smaller model or smaller pictures, or --gradient-checkpointing.")
    fixed = estimate.weights + estimate.kept
    fits = fixed + max(estimate.step, total - fixed) // parts
    return TrainingError(
        what,
        f"Set --gradient-accumulation-steps {run.config.gradient_accumulation_steps * parts}: micro-batches of "
        f"{size // parts} take about {memory(fits)}, and a step has the same {run.config.batch_size} samples. "
        "--gradient-checkpointing takes less, too.",
    )


def _total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total

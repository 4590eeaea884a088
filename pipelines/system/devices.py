"""Which device, which precision: decided once, by Accelerate."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def make_accelerator(device: str = "auto", mixed_precision: str = "no") -> Accelerator:
    """Accelerate on the device it finds, or on the CPU.

    Args:
        device: "auto" or "cpu".
        mixed_precision: "no", "bf16", or "auto": bf16 where the device computes in it.
    """
    # Under torchrun without an accelerator, Accelerate picks gloo only when told that it is to use the CPU.
    cpu = device == "cpu" or not torch.accelerator.is_available()
    if mixed_precision == "auto":
        mixed_precision = "bf16" if computes_bf16(cpu) else "no"
    # Its state is shared within the process and refuses another precision: one stage must not bind the next.
    AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision)


def computes_bf16(cpu: bool) -> bool:
    """Whether the device has instructions for bf16. A CPU without them emulates it, about a hundred times slower."""
    if cpu:
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    if torch.accelerator.current_accelerator().type != "cuda":
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)  # cuDNN has no bf16 convolutions before Ampere


def patient_barrier(accelerator: Accelerator) -> Callable[[], None]:
    """A meeting point for ranks that share out work without a word to each other; all have to call this, together.

    It waits a day for the slowest, where torch's own gives up after minutes, and ends at once when a rank has died.
    """
    if accelerator.num_processes == 1:
        return lambda: None
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))
    return lambda: torch.distributed.barrier(group)


@contextlib.contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Within, the modules are in evaluation mode and nothing records gradients."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def machine() -> str:
    """For people: versions, processor, threads."""
    return f"torch {torch.__version__}, {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

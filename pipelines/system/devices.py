"""Choice of device, precision and determinism, made once per command."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


@dataclass(frozen=True)
class Policy:
    """How a device computes. It is decided once, printed, and recorded with the results.

    Attributes:
        device: "cpu", "cuda", "mps", ...
        precision: precision of matrix products and convolutions, "float32" or "bfloat16" (by autocast).
        tf32: whether float32 products on an NVIDIA GPU keep 10 bits of mantissa instead of 23. This is faster, and
            used only in training. Codes are never computed in TF32, because a CPU could not reproduce them.
        deterministic: whether to use only operations that give the same bits every time; a GPU has faster ones.
    """

    device: str
    precision: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = False
    deterministic: bool = False

    @classmethod
    def decide(cls, device: str, mixed_precision: str, training: bool, deterministic: bool) -> Policy:
        kind = "cpu"
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device != "cpu" and found is not None:
            kind = found.type
        if mixed_precision == "auto":
            mixed_precision = "bf16" if computes_bf16(kind == "cpu") else "no"
        precision = "bfloat16" if mixed_precision == "bf16" else "float32"
        return cls(kind, precision, training and kind == "cuda" and not deterministic, deterministic)

    def apply(self) -> Accelerator:
        """Set torch's process-wide options and start Accelerate."""
        if self.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
            torch.backends.cudnn.benchmark = self.tf32  # training has fixed shapes, so a kernel search pays off
            torch.backends.cudnn.deterministic = self.deterministic
            if self.deterministic:  # cuBLAS reads it when it starts
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(self.deterministic)
        # Accelerate's state is process-wide and refuses a second precision: reset it, so that stages stay independent.
        AcceleratorState._reset_state()
        # Under torchrun without an accelerator, Accelerate picks gloo only when told to use the CPU.
        mixed_precision = "bf16" if self.precision == "bfloat16" else "no"
        return Accelerator(cpu=self.device == "cpu", mixed_precision=mixed_precision)

    def __str__(self) -> str:
        extra = ["TF32"] * self.tf32 + ["deterministic"] * self.deterministic
        return ", ".join([self.device, self.precision, *extra])


def make_accelerator(
    device: str = "auto", mixed_precision: str = "no", training: bool = False, deterministic: bool = False
) -> Accelerator:
    """An Accelerator on the device that Accelerate finds, or on the CPU. Its `policy` says how it computes.

    Args:
        device: "auto" or "cpu".
        mixed_precision: "no", "bf16", or "auto" (bf16 if the device has instructions for it).
        training: True for training, False for tokenization and evaluation; see `Policy.tf32`.
        deterministic: see `Policy`.
    """
    policy = Policy.decide(device, mixed_precision, training, deterministic)
    accelerator = policy.apply()
    accelerator.policy = policy
    accelerator.patiently = patient_barrier(accelerator)
    return accelerator


def computes_bf16(cpu: bool) -> bool:
    """Whether the device has instructions for bf16. A CPU without them emulates it, about a hundred times slower."""
    if cpu:
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    found = torch.accelerator.current_accelerator()
    if found is None or found.type != "cuda":
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)  # cuDNN has no bf16 convolutions before Ampere


# Steps between two looks of the host at what an accelerator computes: a look waits for the device.
_LOOK_EVERY = 10


def looks(step: int, device: torch.device) -> bool:
    """Whether the host reads at this step what the device computed. On a CPU it does at every step: that costs nothing.

    An accelerator would have to be waited for: every tenth step, the first included. In between, masks on it decide.
    """
    return device.type == "cpu" or step % _LOOK_EVERY == 0


def patient_barrier(accelerator: Accelerator) -> Callable[[], None]:
    """A barrier for ranks that work without exchanging messages. All ranks must call this function together.

    The barrier waits up to a day for the slowest rank (torch's own gives up after minutes) and fails at once when a
    rank has died.
    """
    if accelerator.num_processes == 1:
        return lambda: None
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))
    return lambda: torch.distributed.barrier(group)


def wait_patiently(accelerator: Accelerator) -> None:
    """Wait until all ranks are here, wherever one of them may work alone for long: `patient_barrier`.

    torch's own barrier, and a collective operation of NCCL that waits for a rank, end the job after ten minutes.
    """
    if accelerator.num_processes > 1:
        accelerator.patiently()


@contextlib.contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Context in which the modules are in evaluation mode and gradients are off."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def product_rate(device: torch.device, dtype: torch.dtype, rows: int = 1024, width: int = 1024) -> float:
    """Operations per second of the matrix product [rows, width] x [width, 4 width], best of several; rows <= 4096.

    On a GPU several products are timed together between two events: launch overhead would dominate a single one.
    """
    rows = min(rows, 4096)
    left = torch.ones(rows, width, dtype=dtype, device=device)
    right = torch.ones(width, 4 * width, dtype=dtype, device=device)
    seconds = _cuda_seconds(left, right) if device.type == "cuda" else _seconds(left, right)
    return 8 * rows * width**2 / seconds


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        float((left @ right)[0, 0])  # this is a sync point: it waits for the device
        best = min(best, time.perf_counter() - began)
    return best


def _cuda_seconds(left: torch.Tensor, right: torch.Tensor, number: int = 20) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = math.inf
    for _ in range(3):
        begin.record()
        for _ in range(number):
            torch.matmul(left, right)
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / number)
    return best


def machine(kind: str = "cpu") -> str:
    """Versions, processor, threads and, if the device is a GPU of this kind ("cuda", "mps", ...), its name."""
    gpu = torch.cuda.get_device_name() if kind == "cuda" else kind
    known = [f"torch {torch.__version__}", _processor(), f"{torch.get_num_threads()} threads", *[gpu] * (kind != "cpu")]
    return ", ".join(known)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Tensors that believe to be on a GPU, on machines that have none.

Under torch's FakeTensorMode a tensor of the device "cuda" needs no CUDA. It has a shape and a type, and no values: an
operation that mixes devices raises an error, and so does one that reads a value, which on a GPU is a wait of the host
for the device. `NoWaits` adds what fake tensors do not say: copies between devices. A backward pass cannot be walked
(torch's engine asks CUDA for a context), so `walk` puts zeros into its place. Tensors of the CPU keep their values, so
that what the host prepares is computed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE, CPU = torch.device("cuda", 0), torch.device("cpu")


class HostWaitsError(AssertionError):
    """What would have waited for the device."""


class CudaWithoutValues(FakeTensorMode):
    """A FakeTensorMode that computes what has to do with the CPU alone."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf != CPU) for leaf in leaves):
            return super().dispatch(func, types, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class NoWaits(TorchDispatchMode):
    """Refuses copies from the device, reads of values, and copies to the device for which the host would wait.

    Args:
        looks: so many copies from the device and reads are allowed. They give zeros, or True; `looks` counts down.
    """

    def __init__(self, looks: int = 0) -> None:
        super().__init__()
        self.looks = looks

    def _look(self, what: str) -> None:
        if self.looks == 0:
            raise HostWaitsError(what)
        self.looks -= 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and function.namespace == "aten":
            with self:  # operations come whole there: `to`, which is a copy, and `item`, which is a read
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in given}
        name = function._schema.name
        if name == "aten::_local_scalar_dense" and "cuda" in devices:
            self._look(f"{name} reads a value of the device")
            return True if given[0].dtype == torch.bool else 0
        if name == "aten::nonzero" and "cuda" in devices:
            raise HostWaitsError(f"{name} asks the device for a size")
        if name.startswith("aten::index") and "cuda" in devices and "cpu" in {t.device.type for t in given if t.dim()}:
            raise HostWaitsError(f"{name} takes an index to the device, or reads at one of the device")
        if name == "aten::_to_copy" and devices == {"cuda"} and kwargs.get("device") == CPU:
            self._look(f"{name} copies {list(given[0].shape)} from the device")
            return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        result = function(*args, **kwargs)
        if name in ("aten::_to_copy", "aten::copy_"):
            source = given[-1].device.type
            target = result.device.type
            free = (source, target) == ("cpu", "cuda") and (
                kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2])
            )
            if source != target and not free:
                raise HostWaitsError(f"{name} copies {list(result.shape)} from {source} to {target}")
        return result


def on_fake_cuda(module: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """The module with weights of the device "cuda" without values. (`nn.Module.to` cannot swap them.)"""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                twin = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=DEVICE)
                part._parameters[name] = nn.Parameter(twin, requires_grad=parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty_strided(
                    buffer.shape, buffer.stride(), dtype=buffer.dtype, device=DEVICE
                )
    frozen = getattr(module, "frozen", None)  # of a discriminator: a net that it uses and does not own
    if frozen is not None:
        on_fake_cuda(frozen, fake)
    return module


def accelerator(ranks: int = 1) -> SimpleNamespace:
    """What the steps ask an Accelerator for."""
    return SimpleNamespace(
        device=DEVICE,
        num_processes=ranks,
        process_index=0,
        is_main_process=True,
        autocast=lambda: contextlib.nullcontext(),
        no_sync=lambda model: contextlib.nullcontext(),
        reduce=lambda value, reduction="sum": value,
        gather=lambda value: value,
        prepare_model=lambda module: module,
        mixed_precision="no",
    )


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """The fake device. Pinned memory is memory here, since pinning asks CUDA for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        still = mock.patch.object(nn.Module, "_apply", lambda module, fn, recurse=True: module)  # `on_fake_cuda` moves
        pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor)
        once = mock.patch.object(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist())  # one copy, as on a GPU
        with CudaWithoutValues(allow_non_fake_inputs=True) as fake, still, pinned, once:
            yield fake


def _no_gradients(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    return tuple(torch.zeros_like(each) for each in inputs)


@contextlib.contextmanager
def walk(host: SimpleNamespace, modules: list[nn.Module]) -> Iterator[None]:
    """Context in which a step may be walked: nothing may wait, and backward passes give zeros."""

    def backward(loss: Tensor) -> None:
        assert loss.device == DEVICE
        for module in modules:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

    host.backward = backward
    with mock.patch.object(torch.autograd, "grad", _no_gradients), NoWaits():
        yield

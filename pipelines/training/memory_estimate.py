"""Estimates the memory of training by running a step on fake tensors, which have no storage."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from codegrid.prior import PriorObjective
from codegrid.prior.modeling import cached_width
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.losses import soft_assignments, soft_rate

_MOMENTS = 2  # AdamW's moments per weight


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. `weights` is the size of all nets, `kept` that of the moments and the EMA, `step` the peak
    of activations and gradients in one micro-batch. `flops` is the number of operations of a micro-batch's forward and
    backward pass, as torch counts them; 0 if it was not counted. `samples` is what an evaluation's samples take, when
    activations and gradients are gone.
    """

    weights: int
    kept: int
    step: int
    flops: int = 0
    samples: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kept + max(self.step, self.samples)


def estimate_memory(
    model: VQModel,
    discriminator: nn.Module | None,
    distances: Iterable[nn.Module],
    images: tuple[int, int, int, int],
    averaged: bool,
    mixed_precision: str,
    predictor: nn.Module | None = None,
) -> MemoryEstimate:
    """An estimate, not a guarantee: it excludes the memory of the quantizer and of the libraries themselves.

    Args:
        distances: the frozen nets that compare images, as in `TokenizerLearners`.
        images: shape of a micro-batch, [B, C, H, W].
        averaged: whether an EMA of the weights is kept.
        mixed_precision: "no" or "bf16".
        predictor: the small prior of the rate (`CodePredictor`).
    """
    parts = (model, discriminator, predictor)
    trained = [module for module in parts if module is not None]
    nets = list(distances)
    weights = sum(map(_bytes, (*trained, *nets, *_frozen(discriminator))))
    kept = _MOMENTS * sum(map(_bytes, trained)) + (_bytes(model) if averaged else 0)
    device = model.device
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=mixed_precision == "bf16")
    fake = FakeTensorMode()
    model, discriminator, predictor, *nets = (_twin(module, fake) for module in (*parts, *nets))
    with fake, FlopCounterMode(display=False) as counter, _LiveBytes() as live:
        batch = torch.empty(images, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(len(batch), dtype=torch.int64, device=device)
        with autocast():
            # Skip the search for codes, whose result depends on values: the features go to the decoder directly.
            features = model.quant_conv(model.encoder(batch)).float()
            condition = model.class_embedding(labels) if model.config.num_classes else None
            reconstruction = model.decoder(model.post_quant_conv(features), condition)
            loss = (reconstruction - batch).abs().mean()
            if discriminator is not None:
                known = (labels,) if discriminator.config.conditional else ()
                loss = loss + discriminator(reconstruction, *known).float().mean()
        if predictor is not None:
            loss = loss + _rate(model, predictor, features, autocast)
        for net in nets:
            loss = loss + net(batch, reconstruction).mean()
        loss.backward()
        del loss, features
        if discriminator is not None:
            with autocast():
                known = tuple(torch.cat([each, each]) for each in known)
                judged = discriminator(torch.cat([batch, reconstruction.detach().to(batch.dtype)]), *known)
            judged.float().mean().backward()
        return MemoryEstimate(weights, kept, live.peak, counter.get_total_flops())


def _rate(model: VQModel, predictor: nn.Module, features: Tensor, autocast: Callable[[], Any]) -> Tensor:
    """What a step computes of the rate, whose [N, K] matrices are large (`rate_terms`)."""
    codes = torch.zeros((len(features), *model.config.grid_shape), dtype=torch.int64, device=features.device)
    with autocast():
        log_probabilities = predictor(codes)
    return soft_rate(soft_assignments(model.quantize.distances(features)), log_probabilities)


def estimate_prior_memory(
    objective: PriorObjective, tokens: tuple[int, int], averaged: bool, mixed_precision: str, num_samples: int = 0
) -> MemoryEstimate:
    """The same estimate for a prior.

    Args:
        tokens: shape of a micro-batch, [B, 1 + L].
        num_samples: images that an evaluation samples at once, with guidance.
    """
    model = objective.model
    fake = FakeTensorMode()
    twin = _twin(objective, fake)
    with fake, _LiveBytes() as live:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            loss = twin(torch.zeros(tokens, dtype=torch.int64, device=model.device))
        loss.backward()
    samples = 0
    if num_samples:  # keys and values of two branches and, on a CPU, a copy of the weights laid out for decoding
        cached = 2 * cached_width(model.config) * (tokens[1] - 1) * model.dtype.itemsize
        samples = (_bytes(model) if model.device.type == "cpu" else 0) + 2 * num_samples * cached
    return MemoryEstimate(_bytes(model), (_MOMENTS + averaged) * _bytes(model), live.peak, samples=samples)


def _twin(module: Any, fake: FakeTensorMode) -> Any:
    """A copy whose weights have shapes but no storage."""
    if module is None:
        return None
    tensors = [tensor for part in (module, *_frozen(module)) for tensor in _tensors(part)]
    weights = {id(t): fake.from_tensor(t.detach()).requires_grad_(t.requires_grad) for t in tensors}
    return copy.deepcopy(module, weights).train()


def _frozen(module: nn.Module | None) -> list[nn.Module]:
    """The frozen net that a discriminator uses but does not own (`DinoDiscriminator.frozen`), if it has one."""
    frozen = getattr(module, "frozen", None)
    return [] if frozen is None else [frozen]


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations allocated and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))

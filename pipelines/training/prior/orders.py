"""The orders and the known codes of a batch in training, and those of the held-out rows. All are counted randomness."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.pipelines.system.randomness import torch_generator
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.prior import SequenceConfig
from codegrid.prior.architectures import architecture_of
from codegrid.prior.orders import random_orders, raster_order
from codegrid.prior.transfer import becomes_any_order
from codegrid.tokenizer.moving import to_device

_FALLS = (0.5, 0.75)  # shares of an annealed run's steps: RAR's share of random orders falls between them


class Orders(NamedTuple):
    """Arguments of `prior_loss`: the orders of some images [B, L], or what a masked prior sees, bool [B, L]."""

    order: Tensor | None = None
    known: Tensor | None = None

    def part(self, mine: slice) -> Orders:
        return Orders(*(None if value is None else value[mine] for value in self))

    def to(self, device: torch.device) -> Orders:
        return Orders(*(None if value is None else to_device(value, device) for value in self))


RASTER = Orders()


class TrainingOrders:
    """Draws what a prior that is no raster prior reads; gives `RASTER` for one that is."""

    def __init__(self, config: PriorTrainingConfig, sequence: SequenceConfig, model: PreTrainedModel) -> None:
        record = architecture_of(model)
        self.config, self.sequence = config, sequence
        self.reads = "before" if record is None else record.reads

    def of_step(self, step: int) -> Orders:
        """Of the samples of the global batch, the same on all ranks."""
        if self.reads == "before":
            return RASTER
        generator = torch_generator(self.config.seed, "code order", step)
        number, length = self.config.batch_size, self.sequence.length
        orders, draws = random_orders(number, self.sequence, generator), torch.rand(number, 1, generator=generator)
        if self.reads == "around":  # MaskGIT's cosine: a share cos(pi u / 2) is unknown, and at least one code
            known = (length * (1 - torch.cos(math.pi / 2 * draws))).floor().clamp(max=length - 1)
            return Orders(known=_known(orders, known))
        return Orders(torch.where(draws < self.random_share(step), orders, raster_order(self.sequence)))

    def random_share(self, step: int) -> float:
        """Share of the samples of a step in random order."""
        if self.config.order == "random":
            return 1.0
        if self.config.order == "mixed":
            return self.config.random_share
        first, last = (share * self.config.max_steps for share in _FALLS)
        way = min(1.0, max(0.0, (step - first) / max(1.0, last - first)))
        return 1 + (self.config.random_share - 1) * way

    def held_out(self, rows: np.ndarray) -> tuple[Orders, Orders | None]:
        """Of held-out rows: those of the loss, and random ones of a prior of any order. A row's are always the same."""
        if self.reads == "before":
            return RASTER, None
        generators = [torch_generator(self.config.seed, "held-out order", int(row)) for row in rows]
        orders = torch.cat([random_orders(1, self.sequence, generator) for generator in generators])
        if self.reads == "any order":
            return Orders(raster_order(self.sequence).expand_as(orders)), Orders(orders)
        known = [torch.randint(self.sequence.length, (1,), generator=generator) for generator in generators]
        return Orders(known=_known(orders, torch.stack(known))), None


def check_order(config: PriorTrainingConfig, model: PreTrainedModel) -> None:
    """Refuse to go on from a prior that reads in another way than `config.order` trains, and cannot become one."""
    record = architecture_of(model)
    any_order = record is not None and record.reads == "any order"
    if config.order != "raster" and becomes_any_order(model):
        return
    require(
        any_order == (config.order != "raster"),
        f"order is {config.order!r}, and the prior {config.init_from} is a {type(model).__name__}, "
        + ("of codes in any order." if any_order else "which does not become one of codes in any order."),
        "Set --order to 'annealed'."
        if any_order
        else "Leave --order out, start from a Llama or GPT-2 of raster order, or from fresh weights.",
    )


def _known(orders: Tensor, numbers: Tensor) -> Tensor:
    """The first `numbers` [B, 1] tokens of each order: bool [B, L]."""
    return orders.argsort(1) < numbers

"""Orders in which an image's codes are trained, scored and drawn.

An order is a permutation of the code tokens of a sequence, [L] int64: the first entry is the token that comes first.
Tokens are counted as in `SequenceConfig`. The codes of one position of the grid follow each other, coarse to fine.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.prior.sequence_config import SequenceConfig

OrderName = Literal["raster", "random", "halton"]


def order_of_cells(ranks: Tensor, sequence: SequenceConfig) -> Tensor:
    """Ranks of the grid's positions [B, h * w], the lowest first -> orders [B, L] of the tokens."""
    places = sequence.code_of_token.to(ranks.device)  # [L]
    by_rank = ranks.argsort(dim=1, stable=True).argsort(1)  # ranks without ties
    return (by_rank[:, places // sequence.depth] * sequence.depth + places % sequence.depth).argsort(1)


def raster_order(sequence: SequenceConfig) -> Tensor:
    """[L]: the order of the sequence itself."""
    return torch.arange(sequence.length)


def random_orders(number: int, sequence: SequenceConfig, generator: torch.Generator | None = None) -> Tensor:
    """Orders [number, L] in which every position is equally likely at every rank."""
    height, width = sequence.grid_shape
    return order_of_cells(torch.rand(number, height * width, generator=generator, dtype=torch.float64), sequence)


def named_orders(name: str, uniforms: Tensor, sequence: SequenceConfig) -> Tensor:
    """Orders [B, L] by name, from the images' own random numbers in [0, 1).

    Args:
        name: "raster"; "random"; or "halton", a low-discrepancy sequence that spreads the positions of a step over the
            grid (https://arxiv.org/abs/2503.17076), which starts at a place of its own in each image.
        uniforms: [B, h * w] float64.

    Raises:
        CodegridError: the name is another one.
    """
    if name == "raster":
        return raster_order(sequence).expand(len(uniforms), -1)
    if name == "random":
        return order_of_cells(uniforms, sequence)
    if name == "halton":
        cells = _halton_cells(*sequence.grid_shape)  # [C]
        ranks = torch.empty_like(cells).scatter_(0, cells, torch.arange(len(cells)))
        starts = (uniforms[:, :1] * len(cells)).long()  # [B, 1]
        return order_of_cells((ranks - starts) % len(cells), sequence)
    raise CodegridError(f"order is {name!r}.", "Give 'raster', 'random', 'halton', or a tensor of the tokens' order.")


def given_orders(order: Tensor, images: int, sequence: SequenceConfig) -> Tensor:
    """A user's order [L] or [B, L] -> [B, L] int64.

    Raises:
        CodegridError: it is no permutation of the tokens, or not one for each image.
    """
    length = sequence.length
    order = order.detach().cpu()
    require(
        not order.is_floating_point() and order.shape in {(length,), (images, length)},
        f"order is {order.dtype} {list(order.shape)}.",
        f"Give integers of shape [{length}], or [{images}, {length}].",
    )
    order = order.long().expand(images, length)
    require(
        torch.equal(order.sort(1).values, torch.arange(length).expand_as(order)),
        "order does not name every token once.",
        f"Give a permutation of 0 to {length - 1}.",
    )
    return order


def known_first(order: Tensor, known: Tensor) -> Tensor:
    """Orders [B, L] with the `known` tokens (bool [B, L], by token) first; within the two parts nothing moves."""
    unknown = ~known.gather(1, order)
    return order.gather(1, unknown.to(torch.int8).argsort(dim=1, stable=True))


def place_pairs(order: Tensor, prefix_length: int) -> tuple[Tensor, Tensor]:
    """Orders [B, L] -> the own and the target place of every input, each [B, n + L - 1], n = `prefix_length`."""
    prefix = torch.arange(prefix_length, device=order.device).expand(len(order), -1)
    places = torch.cat([prefix, prefix_length + order], 1)  # [B, n + L]
    return places[:, :-1], places[:, 1:]


def codes_per_step(unknown: int, num_steps: int | None) -> list[int]:
    """How many codes each step draws: few at first and many later, by MaskGIT's cosine (arXiv:2202.04200).

    After step s of S a share cos(pi s / 2 S) is unknown. Every step draws at least one code; None is a code a step.
    """
    steps = unknown if num_steps is None else min(num_steps, unknown)
    sizes, left = [], unknown
    for step in range(1, steps + 1):
        wanted = math.floor(unknown * math.cos(math.pi / 2 * step / steps) + 1e-9)  # cos(pi / 2) is not quite 0
        after = max(min(wanted, left - 1), steps - step)
        sizes.append(left - after)
        left = after
    return sizes


def _halton_cells(height: int, width: int) -> Tensor:
    """[h * w]: the cells in the order in which the Halton sequence of bases 2 and 3 first meets them."""
    seen: dict[int, None] = {}
    for index in range(1, 32 * height * width):
        seen.setdefault(int(_radical_inverse(index, 2) * height) * width + int(_radical_inverse(index, 3) * width))
    for cell in range(height * width):  # the few that were not met
        seen.setdefault(cell)
    return torch.tensor(list(seen))


def _radical_inverse(index: int, base: int) -> float:
    value, share = 0.0, 1.0
    while index:
        share /= base
        value += share * (index % base)
        index //= base
    return value

"""Grids of codes larger than those a prior was trained on: in which window each code is predicted.

Windows of the trained grid's size cover the large one and overlap (the sliding windows of Esser et al. 2021,
https://arxiv.org/abs/2012.09841). A position is predicted in the first window that has it, with the window's codes that
are known by then as context, and at the place that it has in that window. So each code is predicted as one of a trained
grid. taming-transformers moves the window by one position for each code and computes all of it again. Here a window
predicts all of its codes that are not known yet one after the other, so that a key/value cache serves it as a whole.

Windows that need none of each other's codes are drawn or coded together: a round. The memory is that of a round,
whatever the size of the grid. `window_sampling.py` draws by such a plan; `window_coding.py` gives the logits for
coding.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.prior.orders import known_first
from codegrid.prior.sequence_config import MOST_POSITIONS, SequenceConfig

AT_ONCE = 16  # windows of a round, at most: a limit of the memory that does not depend on the machine


class Round(NamedTuple):
    """Windows that are drawn or coded together.

    Attributes:
        corners: row and column of each window's first position in the grid, int64 [m, 2].
        codes: by token of the window, the index of its code among the grid's codes [H, W, depth], int64 [m, L].
        new: by token, whether it is predicted in this window, bool [m, L]; the others are known.
    """

    corners: Tensor
    codes: Tensor
    new: Tensor

    def orders(self, reads: str) -> Tensor | None:
        """Orders of the windows' tokens [m, L] in which a prior of any order reads them: what is known comes first.
        None for a prior of raster order. `reads` is `Architecture.reads`."""
        if reads == "before":
            return None
        return known_first(torch.arange(self.new.shape[1]).expand_as(self.new), ~self.new)


@dataclass(frozen=True)
class WindowPlan:
    """Which window predicts each position of a grid, and in which order.

    Attributes:
        sequence: of the prior; its `grid_shape` is the windows' size.
        grid_shape: rows and columns of the large grid.
        starts: first rows and first columns of the windows.
        known: bool [H, W], the positions whose codes are given; None is none.
        outward: whether windows with the most known codes come first; otherwise they come from the upper left corner.
    """

    sequence: SequenceConfig
    grid_shape: tuple[int, int]
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    known: Tensor | None = None
    outward: bool = False

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """[H, W], or [H, W, depth] if a position has several codes."""
        return self.grid_shape if self.sequence.depth == 1 else (*self.grid_shape, self.sequence.depth)

    @property
    def all_corners(self) -> Tensor:
        """Row and column of the first position of every window, row by row: int64 [W, 2]."""
        return torch.cartesian_prod(*(torch.tensor(starts) for starts in self.starts)).view(-1, 2)

    def rounds(self) -> Iterator[Round]:
        """The rounds in their order. Every position that is not known is new in one window of them."""
        shape = self.grid_shape
        known = (
            torch.zeros(shape, dtype=torch.bool)
            if self.known is None
            else self.known.clone(memory_format=torch.contiguous_format)
        )
        own = self._positions()  # [h * w]
        depth, places = self.sequence.depth, self.sequence.code_of_token
        for corners in self._outward(known) if self.outward else self._from_the_corner():
            positions = (corners[:, :1] * shape[1] + corners[:, 1:]) + own  # [m, h * w]
            new = ~known.flatten()[positions]
            some = new.any(1)
            if some.any():
                positions, new = positions[some], new[some]
                known.view(-1)[positions.flatten()] = True
                codes = (positions[:, :, None] * depth + torch.arange(depth)).flatten(1)  # [m, L]
                yield Round(corners[some], codes[:, places], new.repeat_interleave(depth, 1)[:, places])

    def corners(self) -> Tensor:
        """Row and column of the first position of the window that predicts each position, int64 [H, W, 2].

        A position minus its corner is its place in the window. Of a known position it is -1.
        """
        found = torch.full((*self.grid_shape, 2), -1)
        depth = self.sequence.depth
        for one in self.rounds():
            for corner, codes, new in zip(*one, strict=True):
                found.view(-1, 2)[codes[new] // depth] = corner
        return found

    def _positions(self) -> Tensor:
        height, width = self.sequence.grid_shape
        return (torch.arange(height)[:, None] * self.grid_shape[1] + torch.arange(width)).flatten()

    def _from_the_corner(self) -> Iterator[Tensor]:
        """Windows by diagonals: each needs codes of windows above and to the left of it only."""
        rows, columns = self.starts
        for diagonal in range(len(rows) + len(columns) - 1):
            first, last = max(0, diagonal - len(columns) + 1), min(diagonal, len(rows) - 1)
            corners = [(rows[row], columns[diagonal - row]) for row in range(first, last + 1)]
            yield from torch.tensor(corners).split(AT_ONCE)

    def _outward(self, known: Tensor) -> Iterator[Tensor]:
        """Always the windows with the most known codes, of `known` [H, W], to which the caller adds.

        Two windows of a round have no unknown position in common. Without known codes the first window begins.
        """
        height, width = self.sequence.grid_shape
        corners = self.all_corners
        while not known.all():
            sums = torch.zeros(known.shape[0] + 1, known.shape[1] + 1, dtype=torch.int64)
            sums[1:, 1:] = known.long().cumsum(0).cumsum(1)
            (top, left), (bottom, right) = corners.T, (corners + torch.tensor([height, width])).T
            counts = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]  # [n]
            counts[counts == height * width] = -1
            best, claimed, chosen = counts.max(), torch.zeros_like(known), []
            for corner in corners[counts == best].tolist():
                window = slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width)
                if not (claimed[window] & ~known[window]).any():
                    claimed[window] = True
                    chosen.append(corner)
                if best == 0 or len(chosen) == AT_ONCE:
                    break
            yield torch.tensor(chosen)


def window_plan(
    sequence: SequenceConfig,
    grid_shape: tuple[int, int],
    *,
    overlap: int | tuple[int, int] | None = None,
    known: Tensor | None = None,
    outward: bool = False,
) -> WindowPlan:
    """The windows of a grid. A grid of the trained size has one.

    Args:
        grid_shape: rows and columns, each at least those of `sequence.grid_shape`.
        overlap: rows and columns, or one number for both, that a window has in common with its neighbour: at least 0
            and fewer than the window has. More is more context for each code, and more windows. None is half a window.
            The last windows of a row or column overlap more where the grid ends.
        known: bool [H, W], the positions whose codes are given.
        outward: see `WindowPlan`; for priors of any order.

    Raises:
        CodegridError: the grid is smaller than the trained one or has too many codes, or an argument is wrong.
    """
    shape = _pair("grid_shape", grid_shape)
    trained = sequence.grid_shape
    require(
        all(size >= least for size, least in zip(shape, trained, strict=True)),
        f"A grid of {shape[0]} x {shape[1]} codes is asked for, and the prior was trained on {trained[0]} x "
        f"{trained[1]}.",
        f"Give at least {trained[0]} rows and {trained[1]} columns of codes.",
    )
    require(
        shape[0] * shape[1] * sequence.depth <= MOST_POSITIONS,
        f"A grid of {shape[0]} x {shape[1]} positions with {sequence.depth} codes each is asked for.",
        f"Give one of at most {MOST_POSITIONS:,} codes.",
    )
    require(
        known is None or (known.dtype == torch.bool and tuple(known.shape) == shape),
        f"known is {known.dtype if known is not None else None} {list(known.shape) if known is not None else None}.",
        f"Give bool of shape {list(shape)}.",
    )
    common = [size // 2 for size in trained] if overlap is None else _pair("overlap", overlap, 0)
    require(
        all(0 <= own < size for own, size in zip(common, trained, strict=True)),
        f"overlap is {overlap}, and a window has {trained[0]} x {trained[1]} positions.",
        "Give fewer rows and columns than the window has.",
    )
    sizes = zip(shape, trained, common, strict=True)
    rows, columns = ((*range(0, size - own, own - both), size - own) for size, own, both in sizes)
    return WindowPlan(sequence, shape, (rows, columns), None if known is None else known.cpu(), outward)


def _pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    try:
        both = (value, value) if isinstance(value, int) else tuple(value)
        pair = tuple(operator.index(one) for one in both)
    except TypeError as error:
        raise CodegridError(f"{name} is {value!r}.", "Give two whole numbers, rows and columns.") from error
    require(
        len(pair) == 2 and min(pair) >= least,
        f"{name} is {value!r}.",
        f"Give two whole numbers of at least {least}, rows and columns.",
    )
    return pair[0], pair[1]

"""Draws grids of codes larger than those a prior was trained on, or goes on from given codes on any side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.architectures import architecture_of
from codegrid.prior.distribution import SamplingConfig
from codegrid.prior.laid_out import LaidOut
from codegrid.prior.linear_maps import WeightFormat
from codegrid.prior.sampling import Drawing, draw_batches, prefixes_and_streams, prepared
from codegrid.prior.sequence import check_codes
from codegrid.prior.sequence_config import SequenceConfig
from codegrid.prior.static_decoding import Decoding, check_decoding
from codegrid.prior.way import way_to_draw
from codegrid.prior.windows import WindowPlan, window_plan


def iterate_windows(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    grid_shape: tuple[int, int],
    labels: Tensor | Sequence[int] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    known_codes: Tensor | None = None,
    redraw: Tensor | None = None,
    overlap: int | tuple[int, int] | None = None,
    order: str | None = None,
    num_steps: int | None = None,
    choice_temperature: float = 4.5,
    batch_size: int | None = None,
    weights: WeightFormat = "exact",
    decoding: Decoding = "eager",
    laid_out: LaidOut | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    drop: Tensor | None = None,
    window_labels: Tensor | None = None,
    **settings: Any,
) -> Iterator[Tensor]:
    """Draw grids of any size from the trained one on, by overlapping windows (`windows.py`).

    A grid of the trained size is what `sample_codes` gives. An image depends on what it depends on there, on the size
    and on the overlap. The memory is that of `batch_size` windows besides the codes.

    Args:
        grid_shape: rows and columns [H, W], each at least the trained ones.
        known_codes, redraw: grids [B, H, W(, depth)], and the positions that are drawn again, bool [H, W] or
            [B, H, W]. A prior of any order, or a masked one, goes on from any known codes, the windows that know most
            first. A prior of raster order goes on at the bottom and at the right of the upper left part.
        overlap: see `window_plan`.
        order: a name, as in `sample_codes`: the order within each window.
        batch_size: windows at once; the rest as in `sample_codes`.
        labels, seeds, generators, num_steps, choice_temperature, weights, decoding, settings: as in `sample_codes`.
        drop: as in `sample_codes`.
        window_labels: what each window follows, where that is not `labels` for all: int64 [W, B, *value_shape], in the
            order of `WindowPlan.all_corners`.
        laid_out: as in `iterate_codes`.
        on_progress: called with the number of drawn codes and of all that are to be drawn.

    Yields:
        [n, H, W] or [n, H, W, depth] int64 in [0, codebook_size), on the CPU, of at most `batch_size` images, as soon
        as they are drawn. The call itself raises the errors about arguments.

    Raises:
        CodegridError: an argument is out of its range, the grid is smaller than the trained one, or a prior of raster
            order is asked to go on at the top or at the left.
    """
    config = SamplingConfig(**settings)
    require(batch_size is None or batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    require(order is None or isinstance(order, str), "order is a tensor.", "Windows take an order by its name.")
    prefixes, generators = prefixes_and_streams(config, labels, seeds, generators, sequence, drop)
    record = architecture_of(model)
    reads = "before" if record is None else record.reads
    way = way_to_draw(reads, sequence, len(generators), order, num_steps, choice_temperature)
    if decoding != "eager":
        check_decoding(decoding, model.device)
    way = replace(way, decoding=decoding)
    plan = window_plan(sequence, grid_shape, overlap=overlap)
    prefixes = prefixes[None]  # [1, B, P], or [W, B, P]
    if window_labels is not None:
        _check_window_labels(window_labels, plan, len(generators))
        each = [prefixes_and_streams(config, own, None, generators, sequence, drop)[0] for own in window_labels]
        prefixes = torch.stack(each)
    codes, again = _start(plan, len(generators), known_codes, redraw)
    if known_codes is None:
        again = again[:0]
    elif reads == "before":
        for mask in again.unique(dim=0):
            check_raster(mask)
    if not generators:
        return iter(())
    drawing = prepared(model, sequence, config, way, batch_size, weights, laid_out)
    return _images(drawing, plan, prefixes, codes, again, generators, on_progress)


def sample_windows(
    model: PreTrainedModel, sequence: SequenceConfig, grid_shape: tuple[int, int], labels: Any = None, **options: Any
) -> Tensor:
    """All grids of `iterate_windows`, which has the arguments: [B, H, W] or [B, H, W, depth] int64 on the CPU."""
    shape = window_plan(sequence, grid_shape).codes_shape
    grids = iterate_windows(model, sequence, grid_shape, labels, **options)
    return torch.cat([torch.empty(0, *shape, dtype=torch.int64), *grids])


def check_raster(redraw: Tensor) -> None:
    """Refuse what a prior of raster order cannot go on from; `redraw` is bool [H, W].

    Raises:
        CodegridError: the known positions are not the grid's upper left part.
    """
    known = ~redraw
    rows, columns = int(known.any(1).sum()), int(known.any(0).sum())
    require(
        bool(known[:rows, :columns].all()),
        "This prior knows raster order only: it goes on at the bottom and at the right of the grid's upper left part, "
        "and other codes are known.",
        "Extend at these two sides, or train a prior of any order: `codegrid train-prior ... --order annealed`.",
    )


def _check_window_labels(labels: Tensor, plan: WindowPlan, images: int) -> None:
    windows = len(plan.all_corners)
    require(
        tuple(labels.shape[:2]) == (windows, images),
        f"window_labels have the shape {list(labels.shape)}.",
        f"Give one for each of {windows} windows and {images} images.",
    )


def _images(
    drawing: Drawing,
    plan: WindowPlan,
    prefixes: Tensor,
    codes: Tensor,
    again: Tensor,
    streams: Sequence[torch.Generator],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[Tensor]:
    """Grids of `batch_size` images at a time. `again` has no rows if nothing is known."""
    wanted = again.sum() if len(again) else len(codes) * plan.grid_shape[0] * plan.grid_shape[1]
    report = _Report(int(wanted) * plan.sequence.depth, on_progress)
    for batch in torch.arange(len(codes)).split(drawing.batch_size):
        masks = again[batch] if len(again) else None
        for mask in [None] if masks is None else masks.unique(dim=0):
            own, members = plan, batch
            if mask is not None and masks is not None:
                own = replace(plan, known=~mask, outward=drawing.way.reads != "before")
                members = batch[(masks == mask).flatten(1).all(1)]
            begins = [streams[index] for index in members.tolist()]
            codes[members] = _drawn(drawing, own, prefixes[:, members], codes[members], begins, report)
        yield codes[batch].view(len(batch), *plan.codes_shape)


def _drawn(
    drawing: Drawing,
    plan: WindowPlan,
    prefixes: Tensor,
    codes: Tensor,
    streams: Sequence[torch.Generator],
    report: _Report,
) -> Tensor:
    """Codes [n, C] of images with the same known positions; prefixes are [1, n, P], or of each window [W, n, P]."""
    images, corners = len(codes), plan.all_corners
    for one in plan.rounds():
        begin, wanted, parts, done = report.done, int(one.new.sum()) * images, [], 0
        rank = one.new.sum(1).argsort(stable=True)  # in several steps a batch has as many known codes everywhere
        places, new = one.codes[rank], one.new[rank]  # [m, L]
        given = codes[:, places].masked_fill(new, -1).transpose(0, 1).flatten(0, 1)  # [m * n, L]
        own = torch.zeros(len(new), dtype=torch.int64)
        if len(prefixes) > 1:
            own = (one.corners[rank, None] == corners).all(-1).long().argmax(1)  # [m]
        for part in draw_batches(drawing, prefixes[own].flatten(0, 1), given, [*streams] * len(new)):
            parts.append(part.cpu())
            done += len(part)
            report(begin + wanted * done // len(given))
        drawn = torch.cat(parts).unflatten(0, (len(new), images)).transpose(0, 1)  # [n, m, L]
        codes[:, places[new]] = drawn[:, new]
    return codes


@dataclass
class _Report:
    """Counts the codes that are drawn, and tells the caller."""

    total: int
    told: Callable[[int, int], None] | None
    done: int = 0

    def __call__(self, done: int) -> None:
        self.done = done
        if self.told is not None:
            self.told(done, self.total)


def _start(plan: WindowPlan, images: int, known_codes: Tensor | None, redraw: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes [B, C], and which positions are drawn, bool [B, H, W]."""
    shape, grid = plan.codes_shape, plan.grid_shape
    length = grid[0] * grid[1] * plan.sequence.depth
    if known_codes is None and redraw is None:
        return torch.zeros(images, length, dtype=torch.int64), torch.ones(images, *grid, dtype=torch.bool)
    if known_codes is None or redraw is None:
        require(False, "Of known_codes and redraw one is missing.", "Give both: the codes, and which are drawn again.")
        raise AssertionError
    numbers = not (known_codes.is_floating_point() or known_codes.dtype == torch.bool)
    require(
        numbers and tuple(known_codes.shape) == (images, *shape),
        f"known_codes are {known_codes.dtype} {list(known_codes.shape)}.",
        f"Give integers of shape {[images, *shape]}.",
    )
    redraw = redraw.cpu()
    require(
        redraw.dtype == torch.bool and redraw.shape in {grid, (images, *grid)},
        f"redraw is {redraw.dtype} {list(redraw.shape)}.",
        f"Give bool of shape {list(grid)}, or one for each image.",
    )
    again = redraw.expand(images, *grid)
    codes = known_codes.cpu().long().reshape(images, length)
    codes = codes.masked_fill(again.flatten(1).repeat_interleave(plan.sequence.depth, 1), 0)
    check_codes(codes, plan.sequence)
    return codes, again

"""What a call of sampling asks for besides the distribution: the order, the steps, the known codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.prior.orders import OrderName, given_orders, known_first, named_orders
from codegrid.prior.sequence import check_codes, flat_codes
from codegrid.prior.sequence_config import SequenceConfig
from codegrid.prior.steps import Part

_STEPS = 12  # of a masked prior by default; MaskGIT has 8 to 12


@dataclass(frozen=True)
class Way:
    """How codes are drawn.

    Args:
        reads: `Architecture.reads`.
        order: a name, orders [B, L], "confidence", or None for a prior of raster order.
        num_steps: None is a code a step.
        choice_temperature, decoding: see `sample_codes`.
    """

    reads: str
    order: str | Tensor | None
    num_steps: int | None
    choice_temperature: float
    decoding: str = "eager"

    def batches(self, given: Tensor, batch_size: int) -> Iterator[slice]:
        """Slices of at most `batch_size` images. In several steps all images of a batch have as many known codes:
        how many codes a step draws then depends on the image alone."""
        counts = (given >= 0).sum(1).tolist()
        start = 0
        while start < len(counts):
            end = min(start + batch_size, len(counts))
            if self.num_steps is not None:
                end = next((index for index in range(start, end) if counts[index] != counts[start]), end)
            yield slice(start, end)
            start = end

    def numbers(self, sequence: SequenceConfig) -> int:
        """Random numbers of an image: one a code, then those of its order."""
        if self.order == "confidence":
            return (1 + (self.num_steps or 0)) * sequence.length
        named = isinstance(self.order, str) and self.order != "raster"
        return sequence.length + (sequence.length // sequence.depth if named else 0)

    def part(
        self,
        sequence: SequenceConfig,
        batch: slice,
        prefixes: Tensor,
        given: Tensor,
        drawn: Tensor,
        greedy: bool,
        device: torch.device,
    ) -> Part:
        """The images of a batch on the device, where the host does not wait for it.

        `prefixes` and `given` are of all images; `drawn` has the `numbers` of the batch, [n, ...]. All are on the CPU.
        """

        def there(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        prefixes, given, length = there(prefixes[batch]), given[batch], sequence.length
        uniforms = drawn[:, :length]
        uniforms = None if greedy else uniforms if device.type == "mps" else there(uniforms)  # mps has no float64
        if self.order is None:
            known = tuple((given >= 0).sum(0).tolist())
            return Part(prefixes, there(given), None, uniforms, known)
        whole = torch.full((len(given), length), -1)
        whole[:, : given.shape[1]] = given
        if self.order == "confidence":
            noise = there(drawn[:, length:].unflatten(1, (-1, length)).float())
            known = (len(whole),) * int((whole[0] >= 0).sum())
            return Part(prefixes, there(whole), None, uniforms, known, noise)
        if isinstance(self.order, Tensor):
            order = self.order[batch]
        else:
            order = named_orders(self.order, drawn[:, length:] if self.order != "raster" else drawn, sequence)
        order = known_first(order, whole >= 0)
        known = tuple((whole.gather(1, order) >= 0).sum(0).tolist())
        return Part(prefixes, there(whole), there(order), uniforms, known)


def way_to_draw(
    reads: str,
    sequence: SequenceConfig,
    images: int,
    order: str | Tensor | None,
    num_steps: int | None,
    choice_temperature: float,
) -> Way:
    """Check the arguments of `sample_codes` that say how.

    Raises:
        CodegridError: the prior cannot draw so, or a value is out of its range.
    """
    require(num_steps is None or num_steps >= 1, f"num_steps is {num_steps}.", "Give at least 1, or None.")
    require(choice_temperature >= 0, f"choice_temperature is {choice_temperature}.", "Give a number of at least 0.")
    if reads == "before":
        is_raster = order is None or (isinstance(order, str) and order == "raster")
        require(
            is_raster and num_steps is None,
            f"This prior draws a code a step in raster order; asked for are order {_said(order)} and num_steps "
            f"{num_steps}.",
            "Leave both out, or train a prior of any order (`codegrid train-prior ... --order annealed`).",
        )
        return Way(reads, None, None, choice_temperature)
    require(
        num_steps is None or sequence.depth == 1,
        f"num_steps is {num_steps}, and there are {sequence.depth} codes at each position, which follow each other.",
        "Leave num_steps out.",
    )
    if reads == "around" and num_steps is None:
        num_steps = _STEPS
    if order is None:
        order = "raster" if num_steps is None else "halton"
    if isinstance(order, Tensor):
        order = given_orders(order, images, sequence)
        return Way(reads, order, num_steps, choice_temperature)
    names = (*get_args(OrderName), *(("confidence",) if reads == "around" else ()))
    require(order in names, f"order is {order!r}.", f"Give one of {', '.join(names)}, or a permutation of the tokens.")
    return Way(reads, order, num_steps, choice_temperature)


def known_tokens(
    reads: str,
    sequence: SequenceConfig,
    images: int,
    known_codes: Tensor | None,
    redraw: Tensor | None,
    prefix_codes: Tensor | None,
) -> Tensor:
    """Codes by token [B, L] int64, -1 at the positions that are drawn again.

    Raises:
        CodegridError: one of the two is missing, a shape or a code is wrong, or the prior knows raster order only.
    """
    require(
        reads != "before",
        "known_codes is given, and this prior knows raster order only: it goes on from first codes (prefix_codes).",
        "Train one that fills in any part: `codegrid train-prior ... --order annealed`.",
    )
    require(prefix_codes is None, "known_codes and prefix_codes are both given.", "Give one of them.")
    if known_codes is None or redraw is None:
        require(False, "Of known_codes and redraw one is missing.", "Give both: the codes, and which are drawn again.")
        raise AssertionError
    codes = flat_codes(known_codes.cpu(), sequence)  # [B, L], position by position
    check_codes(codes, sequence)
    require(len(codes) == images, f"known_codes are of {len(codes)} images of {images}.", "Give one grid an image.")
    grid = sequence.grid_shape
    redraw = redraw.cpu()
    require(
        redraw.dtype == torch.bool and redraw.shape in {grid, (images, *grid)},
        f"redraw is {redraw.dtype} {list(redraw.shape)}.",
        f"Give bool of shape {list(grid)}, or one for each image.",
    )
    again = redraw.expand(images, *grid).flatten(1).repeat_interleave(sequence.depth, 1)
    return codes.masked_fill(again, -1)[:, sequence.code_of_token]


def _said(order: str | Tensor | None) -> str:
    return repr(order) if order is None or isinstance(order, str) else f"of shape {list(order.shape)}"

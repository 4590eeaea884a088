"""Outpainting: a picture is kept, and a prior goes on from its codes on some of its sides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.generation.arguments import whole_number
from codegrid.pipelines.generation.larger import known_in
from codegrid.pipelines.generation.output import ImagePipelineOutput
from codegrid.prior.architectures import architecture_of

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

SIDES = ("top", "bottom", "left", "right")


class Outpainting:
    """The method of `ImageGenerationPipeline` that extends pictures."""

    def outpaint(
        self: ImageGenerationPipeline,
        images: Any,
        class_labels: Any = None,
        *,
        sides: Mapping[str, int] | Sequence[str] | str | None = None,
        size: tuple[int, int] | None = None,
        whole: bool = False,
        composite: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput:
        """Extend pictures; their codes stay.

        A larger grid than the trained one is drawn by windows, those first that know most of it. A prior of any order
        and a masked one go on at all sides, a prior of raster order at the bottom and at the right, where each code
        knows what is above it and to the left.

        Args:
            images: pictures as in `encode`; codes [N, h, w(, depth)] of any size; or what the pipeline gave.
            class_labels: a class for each picture, or one for all. None is the null class, without guidance.
            sides: how many pixels of which side, such as {"right": 32, "bottom": 16}, multiples of what a code stands
                for; or names of sides ("left", or ["left", "right"]), each by half a picture.
            size: height and width of the results instead, the picture in the middle (half a code off if need be).
            whole: see `inpaint`.
            composite: keep the picture's pixels; False gives all of the decoded picture.
            options: `condition`, `prompt`, `num_images_per_image`, `seed`, `order`, ... as in `inpaint`. A picture to
                follow is one of the whole result.

        Raises:
            CodegridError: a side or size cannot be used, or the prior does not go on at a side.
        """
        start = self._start(images, None, whole)
        factor = self.tokenizer.config.pixels_per_position
        before = start.codes.shape[1], start.codes.shape[2]
        added = _added(sides, size, before, self.sequence.grid_shape, factor)
        self._check_sides(added)
        after = (before[0] + added["top"] + added["bottom"], before[1] + added["left"] + added["right"])
        codes, redraw = known_in(start.codes, after, added["top"], added["left"])
        pixels, _ = known_in(
            start.pixels.movedim(1, -1),
            (after[0] * factor, after[1] * factor),
            added["top"] * factor,
            added["left"] * factor,
        )
        mask = redraw.repeat_interleave(factor, 0).repeat_interleave(factor, 1).expand(len(codes), -1, -1)
        canvas = type(start)(pixels.movedim(-1, 1), codes, mask)
        return self._drawn_again(
            canvas, redraw.expand(len(codes), -1, -1), class_labels, composite=composite, **options
        )

    def _check_sides(self: ImageGenerationPipeline, added: Mapping[str, int]) -> None:
        record = architecture_of(self.prior)
        wrong = [side for side in ("top", "left") if added[side]]
        require(
            not wrong or (record is not None and record.reads != "before"),
            f"This pipeline's prior ({type(self.prior).__name__}) knows raster order only: it goes on at the bottom "
            f"and at the right, not at the {' and the '.join(wrong)}.",
            "Extend at these two sides, or train a prior of any order: `codegrid train-prior ... --order annealed`.",
        )


def _added(sides: Any, size: Any, before: tuple[int, int], trained: tuple[int, int], factor: int) -> dict[str, int]:
    """Rows and columns of codes that each side gets."""
    require(
        (sides is None) != (size is None),
        f"{'Neither' if sides is None else 'Both'} of sides and size {'is' if sides is None else 'are'} given.",
        "Give one of them.",
    )
    added = dict.fromkeys(SIDES, 0)
    if size is not None:
        wanted = _size(size, factor)
        for (first, last), own, now in zip((("top", "bottom"), ("left", "right")), before, wanted, strict=True):
            require(
                now >= own,
                f"size is {wanted[0] * factor}x{wanted[1] * factor} pixels, and the picture has "
                f"{before[0] * factor}x{before[1] * factor} (height x width).",
                "Give a larger size.",
            )
            added[first], added[last] = (now - own) // 2, math.ceil((now - own) / 2)
    else:
        for side, pixels in _pixels_of_sides(sides, trained, factor).items():
            added[side] = pixels // factor
    require(any(added.values()), "No side gets any pixel.", f"Give at least {factor} pixels for one.")
    return added


def _pixels_of_sides(sides: Any, trained: tuple[int, int], factor: int) -> dict[str, int]:
    if not isinstance(sides, Mapping):
        half = {"top": trained[0], "bottom": trained[0], "left": trained[1], "right": trained[1]}
        names = [sides] if isinstance(sides, str) else list(sides)
        sides = {name: math.ceil(half[name] / 2) * factor if name in half else 0 for name in names}
    pixels = {}
    for side, value in sides.items():
        require(side in SIDES, f"There is no side {shown(str(side))}.", f"Give {', '.join(SIDES)}.")
        pixels[side] = _multiple(side, value, factor)
    return pixels


def _size(size: Any, factor: int) -> tuple[int, int]:
    try:
        height, width = size
    except (TypeError, ValueError) as error:
        raise CodegridError(f"size is {size!r}.", "Give height and width in pixels.") from error
    return _multiple("The height of size", height, factor) // factor, _multiple(
        "The width of size", width, factor
    ) // factor


def _multiple(name: str, value: Any, factor: int) -> int:
    pixels = whole_number(name, value, 0)
    below = pixels // factor * factor
    require(
        pixels == below,
        f"{name} is {pixels} pixels, and a code stands for {factor}x{factor}.",
        f"Give a multiple of {factor}: {below} or {below + factor}.",
    )
    return pixels

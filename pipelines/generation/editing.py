"""Editing pictures by their codes: a part of the codes is kept, and a prior of any order draws the others again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.generation.arguments import streams_of_images, whole_number
from codegrid.pipelines.generation.larger import grid_of_size, iterate_grids
from codegrid.pipelines.generation.masks import cells_of, composite, filled, prepared_mask, read_masks
from codegrid.pipelines.generation.output import CodesBar, ImagePipelineOutput, OutputType, as_output
from codegrid.pipelines.generation.wanted import Wanted, wanted_images
from codegrid.pipelines.system.devices import evaluating
from codegrid.prior.architectures import architecture_of
from codegrid.tokenizer.images import check_colours, open_picture, to_images, to_model
from codegrid.tokenizer.images.squares import prepare
from codegrid.tokenizer.moving import to_device

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline


@dataclass(frozen=True)
class _Start:
    """Pictures to edit: pixels [N, C, H, W] in [-1, 1], codes [N, h, w(, depth)], masks bool [N, H, W] or None."""

    pixels: Tensor
    codes: Tensor
    masks: Tensor | None


class Editing:
    """The methods of `ImageGenerationPipeline` that edit. Each takes the keyword arguments of `_drawn_again` too.

    `images` are pictures as in `encode`; or codes [N, h, w(, depth)]; or what an edit gave, whose codes are then
    the start, and not its pixels: after many edits elsewhere the codes of a part are those of the first picture.
    """

    def inpaint(
        self: ImageGenerationPipeline,
        images: Any,
        mask_images: Any,
        class_labels: Any = None,
        *,
        whole: bool = False,
        composite: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput:
        """Draw what lies under a mask again.

        A code is drawn again if a pixel of its cell is in the mask; no other code changes. What lies under the mask is
        filled from outside before the picture is encoded, so it has no influence on any code.

        Args:
            images: see the class.
            mask_images: white is drawn again; see `masks.read_masks`. A picture's mask has the size of the picture.
            class_labels: a class for each picture, or one for all. None is the null class; without anything to follow
                there is no guidance.
            whole: keep the pictures' own size, which is at least the trained one, in multiples of the pixels of a code;
                otherwise they are prepared as in training. Larger ones are drawn by windows.
            composite: keep the pixels outside of the mask; False gives the decoded picture.
            options: `condition`, `prompt`, `num_images_per_image`, `seed`, `order`, `num_steps`, ... (`_drawn_again`),
                fields of `SamplingConfig`.

        Raises:
            CodegridError: the prior knows raster order only, or a picture, mask, class or setting cannot be used.
        """
        self._check_editing()
        start = self._start(images, mask_images, whole)
        assert start.masks is not None
        redraw = cells_of(start.masks, tuple(start.codes.shape[1:3]))
        return self._drawn_again(start, redraw, class_labels, composite=composite, **options)

    def variations(
        self: ImageGenerationPipeline,
        images: Any,
        keep: float = 0.5,
        class_labels: Any = None,
        *,
        whole: bool = False,
        **options: Any,
    ) -> ImagePipelineOutput:
        """Keep a share of the codes, in places drawn for each result, and draw the others again.

        Args:
            images, class_labels, whole, options: as in `inpaint`.
            keep: share of the positions that are kept, in [0, 1).

        Raises:
            CodegridError: see `inpaint`.
        """
        require(0 <= keep < 1, f"keep is {keep}.", "Give a share of at least 0 and below 1.")
        self._check_editing()
        return self._drawn_again(self._start(images, None, whole), float(keep), class_labels, **options)

    def edit(
        self: ImageGenerationPipeline, images: Any, class_labels: Any = None, strength: float = 0.8, **options: Any
    ) -> ImagePipelineOutput:
        """Draw a share of the codes again as those of another class, picture or text.

        Args:
            images, options: as in `inpaint`.
            class_labels: the class of the results, for each picture or one for all; or `condition` or `prompt`.
            strength: share of the positions that are drawn again, in (0, 1].

        Raises:
            CodegridError: see `inpaint`.
        """
        require(0 < strength <= 1, f"strength is {strength}.", "Give a share above 0 and of at most 1.")
        follows = (class_labels, options.get("condition"), options.get("prompt"))
        require(
            any(value is not None for value in follows),
            "edit has no class_labels.",
            "Name the class (or give the condition or prompt that the prior follows), or call `variations`.",
        )
        return self.variations(images, 1 - strength, class_labels, **options)

    def _check_editing(self: ImageGenerationPipeline) -> None:
        record = architecture_of(self.prior)
        require(
            record is not None and record.reads != "before",
            f"This pipeline's prior ({type(self.prior).__name__}) knows raster order only, and cannot fill in a part.",
            "Train one that does: `codegrid train-prior ... --order annealed`.",
        )

    def _start(self: ImageGenerationPipeline, images: Any, mask_images: Any, whole: bool = False) -> _Start:
        if isinstance(images, ImagePipelineOutput) or (isinstance(images, Tensor) and not _is_float(images)):
            return self._start_of_codes(images, mask_images)
        config = self.tokenizer.config
        preprocessing, channels = config.preprocessing_config, config.backbone_config.in_channels
        if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4 and _is_float(images):
            pixels = to_images(images, preprocessing, channels)
            if whole:
                grid_of_size(config, *pixels.shape[-2:])
            masks = None if mask_images is None else self._masks_of(mask_images, pixels)
        else:
            pixels, masks = self._opened(images, mask_images, whole)
        if masks is not None:
            pixels = torch.stack([filled(image, mask) for image, mask in zip(pixels, masks, strict=True)])
        with evaluating(self.tokenizer):  # not `encode`, which wonders about a picture that is all fill
            codes = self.tokenizer.encode(to_device(pixels, self.tokenizer.device)).cpu()
        return _Start(pixels, codes, masks)

    def _opened(
        self: ImageGenerationPipeline, images: Any, mask_images: Any, whole: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Pictures as in training, or whole. They are filled before they are scaled: scaling mixes neighbours."""
        config = self.tokenizer.config
        preprocessing, channels = config.preprocessing_config, config.backbone_config.in_channels
        check_colours(channels, "Editing pictures (not floats, codes or outputs)")
        several = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        pictures = list(images) if several else [images]
        require(bool(pictures), "There is no picture.", "Give at least one.")
        opened = [open_picture(picture, preprocessing, channels) for picture in pictures]
        opened = [one.convert("L" if channels == 1 else "RGB") for one in opened]
        if whole:
            sizes = sorted({(one.height, one.width) for one in opened})
            require(len(sizes) == 1, f"The pictures are of {len(sizes)} sizes.", "Edit those of one size in a call.")
            grid_of_size(config, *sizes[0])

        def ready(picture: Any) -> np.ndarray:
            return np.atleast_3d(np.array(picture)) if whole else prepare(picture, preprocessing, channels)

        if mask_images is None:
            return to_model(np.stack([ready(one) for one in opened])), None
        prepared, cut = [], []
        for one, mask in zip(opened, read_masks(mask_images, len(opened)), strict=True):
            _check_mask_size(mask.shape, (one.height, one.width))
            array = torch.from_numpy(np.atleast_3d(np.array(one))).permute(2, 0, 1).double()
            full = filled(array, torch.from_numpy(mask)).round().clamp(0, 255).to(torch.uint8)
            prepared.append(ready(_pil(full.permute(1, 2, 0).numpy())))
            cut.append(mask if whole else prepared_mask(mask, preprocessing))
        return to_model(np.stack(prepared)), torch.from_numpy(np.stack(cut))

    def _start_of_codes(self: ImageGenerationPipeline, images: Any, mask_images: Any) -> _Start:
        codes = images.codes if isinstance(images, ImagePipelineOutput) else images
        depth = self.sequence.depth
        require(
            codes.dim() == 3 + (depth > 1) and len(codes) > 0 and tuple(codes.shape[3:]) == (depth,) * (depth > 1),
            f"codes are {codes.dtype} {list(codes.shape)}.",
            f"Give integers of shape [N, h, w{f', {depth}' if depth > 1 else ''}].",
        )
        pixels = None if not isinstance(images, ImagePipelineOutput) else images.images
        if pixels is None:
            labels = images.labels if isinstance(images, ImagePipelineOutput) else None
            pixels = self.decode(codes, labels)
        elif not isinstance(pixels, Tensor):
            pixels = to_model(np.stack([np.atleast_3d(np.asarray(picture)) for picture in pixels]))
        return _Start(pixels, codes, None if mask_images is None else self._masks_of(mask_images, pixels))

    def _masks_of(self: ImageGenerationPipeline, mask_images: Any, pixels: Tensor) -> Tensor:
        masks = read_masks(mask_images, len(pixels))
        for mask in masks:
            _check_mask_size(mask.shape, tuple(pixels.shape[-2:]))
        return torch.from_numpy(np.stack(masks))

    def _drawn_again(
        self: ImageGenerationPipeline,
        start: _Start,
        redraw: Tensor | float,
        class_labels: Any,
        *,
        composite: bool = True,
        condition: Any = None,
        prompt: str | Sequence[str] | None = None,
        num_images_per_image: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        order: str | Tensor | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        progress: bool = True,
        callback: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> ImagePipelineOutput:
        """The results of an edit, `num_images_per_image` of each picture one after the other.

        Args:
            redraw: positions bool [N, h, w], or the share that is kept, in places of each result's own.
            condition, prompt: what the results follow beside the class, as in `stream`: one a picture, or one for all.
            seed, generator: as in `stream`, for the results.
            order, num_steps, batch_size: as in `codegrid.prior.sample_codes`.
            output_type, progress, callback: as in `stream`.
            settings: fields of `SamplingConfig`.
        """
        per = whole_number("num_images_per_image", num_images_per_image)
        if output_type == "pil":
            check_colours(start.pixels.shape[1], 'output_type "pil" (not "np", "pt", "codes")')
        codes = start.codes.repeat_interleave(per, 0)
        number, grid = len(codes), tuple(codes.shape[1:3])
        wanted = self._wanted_of(class_labels, condition, prompt, len(start.codes), per, grid)
        given = {name: value for name, value in settings.items() if value is not None}
        sampling = self.sampling
        if wanted.values is None:
            sampling = replace(sampling, guidance_scale=1.0, part_guidance=None)
        streams = streams_of_images(seed, generator, number)
        if isinstance(redraw, float):
            cells = grid[0] * grid[1]
            kept = min(cells - 1, round(redraw * cells))
            ranks = torch.stack([torch.rand(cells, generator=one, device=one.device).cpu() for one in streams])
            again = (ranks.argsort(1).argsort(1) >= kept).view(number, *grid)
        else:
            again = redraw.repeat_interleave(per, 0)
        bar = CodesBar(codes.numel(), progress, callback)
        with bar:
            drawn = iterate_grids(
                self.prior,
                self.sequence,
                grid,
                wanted.values,
                drop=wanted.drop,
                window_labels=wanted.windows,
                generators=streams,
                known_codes=codes,
                redraw=again,
                order=order,
                num_steps=None if num_steps is None else whole_number("num_steps", num_steps),
                batch_size=batch_size or self.default_batch_size(output_type != "codes", grid),
                laid_out=self.laid_out,
                on_progress=bar,
                **replace(sampling, **given).to_dict(),
            )
            codes = torch.cat(list(drawn)).cpu()
        if output_type == "codes":
            return ImagePipelineOutput(None, codes, wanted.labels)
        pixels = self._pixels_of(start, codes, wanted.labels, composite)
        return ImagePipelineOutput(as_output(pixels, output_type), codes, wanted.labels)

    def _pixels_of(
        self: ImageGenerationPipeline, start: _Start, codes: Tensor, labels: list[Any] | None, keeps: bool
    ) -> Tensor:
        at_once, per = self.default_batch_size(grid_shape=tuple(codes.shape[1:3])), len(codes) // len(start.codes)
        parts = range(0, len(codes), at_once)
        after = torch.cat(
            [self.decode(codes[i : i + at_once], None if labels is None else labels[i : i + at_once]) for i in parts]
        )
        if start.masks is None or not keeps:
            return after
        return composite(start.pixels.repeat_interleave(per, 0), after, start.masks.repeat_interleave(per, 0))

    def _wanted_of(
        self: ImageGenerationPipeline,
        class_labels: Any,
        condition: Any,
        prompt: Any,
        pictures: int,
        per: int,
        grid: tuple[int, int],
    ) -> Wanted:
        given = {"class_labels": class_labels, "condition": condition, "prompt": prompt}
        names = [name for name, value in given.items() if value is not None]
        if not names:
            return Wanted(pictures * per)
        wanted = wanted_images(self, class_labels, condition, prompt, 1, None, grid)
        require(
            wanted.number in (1, pictures),
            f"There are {wanted.number} {' and '.join(names)} for {pictures} pictures.",
            "Give one, or one a picture.",
        )
        return wanted.of((torch.arange(pictures) % wanted.number).repeat_interleave(per))


def _is_float(values: Tensor | np.ndarray) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"


def _pil(array: np.ndarray) -> Any:
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))


def _check_mask_size(mask: tuple[int, ...], picture: tuple[int, ...]) -> None:
    require(
        tuple(mask) == tuple(picture),
        f"A mask has {mask[0]}x{mask[1]} pixels (height x width), its picture {picture[0]}x{picture[1]}.",
        "Give a mask of the picture's size (of floats, codes and outputs the size of the tokenizer's pictures).",
    )

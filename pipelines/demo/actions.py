"""The demo page's actions, without the page: map an image's codes, change codes, and decode them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from codegrid.errors import require
from codegrid.names import printable
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.devices import evaluating
from codegrid.prior.conditions import TextCondition, classes_of, parts_of
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_images, to_pil

DIFFERENCE_GAIN = 4
_SIDE = 384
_LEAST_CELL_WITH_NUMBER = 22
_GOLDEN_RATIO = 0.6180339887
_FIELDS = {"class": "Class", "picture": "Picture to follow", "text": "Prompt"}  # of the page, by what they are for


class Cell(NamedTuple):
    """A position in the code grid."""

    row: int
    column: int


def generate(
    pipe: ImageGenerationPipeline,
    label: int | None,
    num_images: int,
    guidance_scale: float | Sequence[float],
    temperature: float,
    seed: int,
    prompt: str | None = None,
    condition: str | Path | None = None,
) -> list[tuple[Image.Image, str]]:
    """Enlarged samples, captioned with their class, and with the prompt as the prior reads it: a long one is cut.

    Args:
        label: None takes all classes in turn; beside pictures and texts, no class.
        guidance_scale: one, or one for each part of what the prior follows.
        prompt, condition: a text and a picture's file, for priors that follow them.

    Raises:
        CodegridError: a number is out of range, the class is unknown, or there is nothing to follow.
        BadImage: the picture cannot be used.
    """
    settings: dict[str, Any] = {"temperature": temperature, "seed": seed, "progress": False}
    if isinstance(guidance_scale, Sequence):
        settings["part_guidance"] = tuple(guidance_scale)
    elif pipe.sequence.can_be_guided:
        settings["guidance_scale"] = guidance_scale
    given = {"class_labels": label, "prompt": prompt, "condition": condition}
    given = {name: value for name, value in given.items() if value is not None}
    parts = parts_of(pipe.sequence.conditioning)
    check_something_to_follow(pipe, given)
    several = bool(given)
    output = pipe(**given, **{"num_images_per_label" if several else "num_images": num_images}, **settings)
    names = classes_of(pipe.sequence.conditioning)
    captions = [""] * len(output.codes)
    if names and (label is not None or not several):
        captions = [printable(names[label]) for label in output.labels or ()]
    if prompt is not None:
        read = next(part.name(part.encode(prompt)[0]) for part in parts if isinstance(part, TextCondition))
        captions = [f"{caption} {printable(read)}".strip() for caption in captions]
    return [(enlarged(image, 128), caption) for image, caption in zip(output.images or (), captions, strict=True)]


def check_something_to_follow(pipe: ImageGenerationPipeline, given: Mapping[str, Any]) -> None:
    """Refuse a new sample of a prior of pictures or texts, where nothing is `given`.

    Raises:
        CodegridError: nothing is; the message names the fields of the page.
    """
    parts = parts_of(pipe.sequence.conditioning)
    fields = " or ".join(_FIELDS[part.type] for part in parts if part.type in _FIELDS)
    require(bool(given) or not conditions_of(pipe), "There is nothing to follow.", f"Fill in {fields}.")


def conditions_of(pipe: ImageGenerationPipeline) -> set[str]:
    """What the prior follows beside classes: "picture", "text"."""
    return {part.type for part in parts_of(pipe.sequence.conditioning)} & {"picture", "text"}


def read_image(model: VQModel, file: str | Path) -> Tensor:
    """A picture as the tokenizer sees it: [1, C, H, W] in [-1, 1].

    Raises:
        BadImage: the picture cannot be used; the message says why.
    """
    preprocessing, channels = model.config.preprocessing_config, model.config.backbone_config.in_channels
    return to_images(file, preprocessing, channels)


def encode(model: VQModel, image: Tensor) -> Tensor:
    """[1, C, H, W] in [-1, 1] -> codes [h, w] or [h, w, depth] on the CPU."""
    with evaluating(model):
        return model.encode(image.to(model.device))[0].cpu()


def decode(pipe: ImageGenerationPipeline, codes: Tensor, label: int | None = None) -> Tensor:
    """Codes [h, w] or [h, w, depth] -> [1, C, H, W] in [-1, 1] on the CPU.

    `label` is for a tokenizer with a class-conditional decoder; None is then the first class.

    Raises:
        CodegridError: there is no such class.
    """
    return pipe.decode(codes[None], None if pipe.class_names is None else [label or 0])


def with_code(codes: Tensor, cell: Cell, code: int, codebook_size: int, level: int = 0) -> Tensor:
    """A copy of the codes with another code at `cell` (at `level`, if a position has several codes).

    Raises:
        CodegridError: the codebook has no such code, or the position no such level.
    """
    last, depth = codebook_size - 1, codes.shape[2] if codes.dim() == 3 else 1
    require(0 <= code <= last, f"The code is {code}: this codebook's run from 0 to {last}.", "Type one of those.")
    require(
        0 <= level < depth, f"The level is {level}: those of these codes run from 0 to {depth - 1}.", "Choose another."
    )
    changed = codes.clone()
    changed[(*cell, level) if codes.dim() == 3 else cell] = code
    return changed


def code_at(codes: Tensor, cell: Cell, level: int = 0) -> int:
    return int(codes[(*cell, level) if codes.dim() == 3 else cell])


def codes_map(codes: Tensor, level: int = 0, changed: Tensor | None = None) -> Image.Image:
    """The grid as coloured squares with code numbers. Cells that differ from `changed` have a black frame.

    A code has the same colour in every map. Cells that are too small have no numbers.
    """
    grid = codes[..., level] if codes.dim() == 3 else codes  # [h, w]
    rows, columns = grid.shape
    cell = max(4, _SIDE // max(rows, columns))
    picture = Image.new("RGB", (columns * cell, rows * cell))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(9, cell // 4))
    for row in range(rows):
        for column in range(columns):
            code = int(grid[row, column])
            left, top = column * cell, row * cell
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=colour_of(code))
            if cell >= _LEAST_CELL_WITH_NUMBER:
                draw.text((left + cell / 2, top + cell / 2), str(code), fill=(0, 0, 0), font=font, anchor="mm")
            if changed is not None and not torch.equal(codes[row, column], changed[row, column]):
                draw.rectangle(
                    (left, top, left + cell - 2, top + cell - 2), outline=(0, 0, 0), width=max(2, cell // 10)
                )
    return picture


def cell_at(x: float, y: float, codes: Tensor) -> Cell:
    """The cell under a pixel of `codes_map`'s picture."""
    rows, columns = codes.shape[:2]
    cell = max(4, _SIDE // max(rows, columns))
    return Cell(min(rows - 1, max(0, int(y) // cell)), min(columns - 1, max(0, int(x) // cell)))


def colour_of(code: int) -> tuple[int, int, int]:
    """A light colour. Neighbouring codes have very different hues."""
    red, green, blue = colorsys.hsv_to_rgb(code * _GOLDEN_RATIO % 1, 0.35 + 0.3 * (code % 3) / 2, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def picture(image: Tensor) -> Image.Image:
    """[1, C, H, W] in [-1, 1] as a picture that is large enough to see."""
    return enlarged(to_pil(image)[0], _SIDE)


def difference(image: Tensor, other: Tensor) -> Image.Image:
    """The difference of two images [1, C, H, W]: 255 * distance / 2 * gain, so equal pixels are black."""
    distance = (image - other).abs() * DIFFERENCE_GAIN - 1  # 0 becomes -1, which is black
    return enlarged(to_pil(distance.clamp(-1, 1))[0], _SIDE)


def enlarged(image: Image.Image, least_side: int) -> Image.Image:
    """Enlarge by an integer factor to about `least_side` pixels."""
    scale = max(1, round(least_side / image.width))
    return image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)

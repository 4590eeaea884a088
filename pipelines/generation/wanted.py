"""What a call of sampling asks for: classes, pictures, texts -> the values of the prior's condition, one an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.pipelines.generation.arguments import as_labels, labels_of_images
from codegrid.pipelines.system.devices import evaluating
from codegrid.prior.conditioning import Condition
from codegrid.prior.conditions import CombinedCondition, PictureCondition, TextCondition, parts_of
from codegrid.prior.windows import window_plan
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_images
from codegrid.tokenizer.moving import to_device

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

# The argument that says what an image is to follow, by the type of the condition.
ARGUMENTS = {"class": "class_labels", "picture": "condition", "text": "prompt"}


@dataclass(frozen=True)
class Wanted:
    """Args:
    number: images.
    values: [N, *value_shape] for `sample_codes`; None for an unconditional prior.
    drop: bool [N, parts], the parts that are not given; None if all are.
    labels: what the output says of each image: its class where there are classes, else its value.
    windows: of pictures larger than trained that follow pictures, what each window follows, [W, N, *value_shape].
    """

    number: int
    values: Tensor | None = None
    drop: Tensor | None = None
    labels: list[Any] | None = None
    windows: Tensor | None = None

    def of(self, images: Tensor) -> Wanted:
        """What some of the images want, by their indices [M]."""
        return Wanted(
            len(images),
            None if self.values is None else self.values[images],
            None if self.drop is None else self.drop[images],
            None if self.labels is None else [self.labels[index] for index in images.tolist()],
            None if self.windows is None else self.windows[:, images],
        )


def wanted_images(
    pipe: ImageGenerationPipeline,
    class_labels: Any,
    condition: Any,
    prompt: Any,
    per_label: int,
    num_images: int | None,
    grid_shape: tuple[int, int],
) -> Wanted:
    """The values of each image: those given, each `per_label` times. One of a kind is for all of another.

    Args:
        grid_shape: of the images' codes.

    Raises:
        CodegridError: something is missing, not expected or cannot be used, or the numbers contradict each other.
    """
    kind = pipe.sequence.conditioning
    parts = parts_of(kind)
    given = {"class": class_labels, "picture": condition, "text": prompt}
    _check_expected(kind, given)
    if not isinstance(kind, (CombinedCondition, PictureCondition, TextCondition)):
        labels = labels_of_images(pipe.sequence, class_labels, per_label, num_images)
        number = len(labels) if labels is not None else (num_images or per_label)
        return Wanted(number, None if labels is None else torch.tensor(labels), None, labels)
    arguments = [ARGUMENTS[part.type] for part in parts if part.type in ARGUMENTS]
    require(
        num_images is None,
        f"num_images is given, and this pipeline's images follow {kind.describe()}.",
        f"Give {' and '.join(arguments)}, with num_images_per_label.",
    )
    found = [
        None if given.get(part.type) is None else _values(pipe, part, given[part.type], grid_shape) for part in parts
    ]
    if all(values is None for values in found):
        raise CodegridError(
            f"This pipeline's images follow {kind.describe()}.", f"Say what by {' or '.join(arguments)}."
        )
    numbers = {argument: len(values) for argument, values in zip(arguments, found, strict=True) if values is not None}
    most = max(numbers.values())
    require(
        set(numbers.values()) <= {1, most},
        "There are " + " and ".join(f"{count} {argument}" for argument, count in numbers.items()) + ".",
        "Give as many of each, or one for all.",
    )
    missing = [argument for argument, values in zip(arguments, found, strict=True) if values is None]
    require(
        not missing or pipe.sequence.null_class,
        f"{' and '.join(missing)} is not given, and this prior has not learned to do without.",
        "Give it, or train with a class_dropout above 0.",
    )
    columns = [_filled(values, part, most) for values, part in zip(found, parts, strict=True)]
    drop = torch.tensor([[values is None for values in found]]).expand(most * per_label, -1) if missing else None
    windows = max(column.shape[1] for column in columns)
    whole = torch.cat([column.expand(-1, windows, -1) for column in columns], 2)  # [N, W, n]
    classes = next((column for column, part in zip(columns, parts, strict=True) if part.type == "class"), None)
    labels = whole[:, 0] if windows == 1 else whole
    if classes is not None and "class_labels" not in missing:
        labels = classes[:, 0, 0]
    values = whole.transpose(0, 1).repeat_interleave(per_label, 1)  # [W, N, n]
    return Wanted(
        most * per_label,
        values[0],
        drop,
        labels.repeat_interleave(per_label, 0).tolist(),
        values if windows > 1 else None,
    )


def condition_codes(
    pipe: ImageGenerationPipeline, part: PictureCondition, pictures: Any, grid_shape: tuple[int, int]
) -> Tensor:
    """Pictures, or integer codes [N, ...], of a condition -> its values int64 [N, 1, tokens].

    Pictures are what the condition is: small ones for downscale, grey ones for grey. Smaller ones are scaled up. Of
    images larger than trained (`grid_shape` of codes) a window follows the part of the picture at its place, which is
    encoded by itself as in training: [N, W, tokens].

    Raises:
        BadImage, CodegridError: a picture cannot be used, or the condition is of a tokenizer that is not there.
    """
    corners = window_plan(pipe.sequence, grid_shape).all_corners
    if isinstance(pictures, (Tensor, np.ndarray)) and _holds_codes(pictures, part, len(corners)):
        codes = torch.as_tensor(pictures).flatten(0, 1) if len(corners) > 1 else torch.as_tensor(pictures)
        return torch.tensor(part.parse(list(codes))).view(-1, len(corners), part.num_tokens)
    model = condition_model(pipe, part)
    size, places = _sizes(pipe, model, grid_shape, corners)
    images = as_condition(model, pictures, size)
    height, width = model.config.preprocessing_config.size
    found = []
    with evaluating(model):
        for few in images.split(pipe.default_batch_size()):
            parts = [few[..., top : top + height, left : left + width] for top, left in places]
            codes = [model.encode(to_device(one, model.device)).flatten(1).cpu() for one in parts]
            found.append(torch.stack(codes, 1))
    return torch.cat(found)


def picture_part(condition: Condition | None) -> PictureCondition | None:
    """The picture among the parts of a condition."""
    parts = () if condition is None else parts_of(condition)
    return next((part for part in parts if isinstance(part, PictureCondition)), None)


def condition_model(pipe: ImageGenerationPipeline, part: PictureCondition) -> VQModel:
    """The tokenizer of the condition's pictures: the pipeline's own, or its `condition_tokenizer`.

    Raises:
        CodegridError: neither is the one that the prior was trained with.
    """
    models = [model for model in (pipe.tokenizer, pipe.condition_tokenizer) if model is not None]
    if part.tokenizer_fingerprint is None:
        return models[-1]
    for model in models:
        if model.codes_fingerprint() == part.tokenizer_fingerprint:
            return model
    raise CodegridError(
        f"The pictures that this prior follows were made codes by another tokenizer "
        f"(fingerprint {part.tokenizer_fingerprint[:12]}), which the pipeline does not have.",
        "Give it: ImageGenerationPipeline(..., condition_tokenizer=model), or `codegrid make-pipeline "
        "--condition-tokenizer`.",
    )


def as_condition(model: VQModel, pictures: Any, size: tuple[int, int]) -> Tensor:
    """Pictures as a condition's tokenizer reads them, scaled to a height and width: [N, C, H, W] in [-1, 1]."""
    preprocessing = replace(model.config.preprocessing_config, smaller="upscale", image_size=size)
    return to_images(pictures, preprocessing, model.config.backbone_config.in_channels)


def _check_expected(kind: Condition, given: dict[str, Any]) -> None:
    types = {part.type for part in parts_of(kind)}
    other = bool(types - ARGUMENTS.keys() - {"none"})  # a registered kind takes its values as class_labels
    for type_, value in given.items():
        expected = type_ in types or (type_ == "class" and (other or types == {"none"}))  # refused in other words
        require(
            value is None or expected,
            f"{ARGUMENTS[type_]} is given, and this pipeline's images follow {kind.describe()}.",
            f"Leave {ARGUMENTS[type_]} out, or take a pipeline whose prior was trained with it.",
        )


def _sizes(
    pipe: ImageGenerationPipeline, model: VQModel, grid_shape: tuple[int, int], corners: Tensor
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Height and width of a condition's picture for images of `grid_shape` codes, and where each window begins in it.

    `model` may have another size than the images' tokenizer.
    """
    factor, size, places = pipe.tokenizer.config.pixels_per_position, [], []
    sides = zip(pipe.tokenizer.config.preprocessing_config.size, model.config.preprocessing_config.size, strict=True)
    for own, other, side, starts in zip(*zip(*sides, strict=True), grid_shape, corners.T.tolist(), strict=True):
        pixels = [number * factor * other for number in (side, *starts)]
        require(
            not any(number % own for number in pixels),
            f"Windows of larger images begin between two pixels of the pictures to follow, which have {other} pixels "
            f"where the images have {own}.",
            "Leave height and width out.",
        )
        size.append(pixels[0] // own)
        places.append([number // own for number in pixels[1:]])
    return (size[0], size[1]), list(zip(*places, strict=True))


def _values(pipe: ImageGenerationPipeline, part: Condition, given: Any, grid_shape: tuple[int, int]) -> Tensor:
    if isinstance(part, PictureCondition):
        return condition_codes(pipe, part, given, grid_shape)
    inputs = as_labels(given)
    require(bool(inputs), f"{ARGUMENTS.get(part.type, 'class_labels')} is empty.", "Give at least one.")
    values = torch.tensor(part.parse(inputs))
    return values.view(len(values), 1, -1)


def _filled(values: Tensor | None, part: Condition, number: int) -> Tensor:
    """[number, windows, n]; zeros where the part is not given, which is dropped."""
    if values is None:
        return torch.zeros(number, 1, math.prod(part.value_shape), dtype=torch.int64)
    return values.expand(number, -1, -1)


def _holds_codes(pictures: Tensor | np.ndarray, part: PictureCondition, windows: int) -> bool:
    """Whether integers are codes, and no pixels, which are uint8.

    They are [N, tokens] or [N, h, w(, depth)]; of several windows [N, windows, tokens].
    """
    values: Sequence[int] = tuple(pictures.shape[1:])
    whole = not (torch.as_tensor(pictures).is_floating_point()) and str(pictures.dtype).rpartition(".")[2] != "uint8"
    grid = part.grid_shape if part.depth == 1 else (*part.grid_shape, part.depth)
    one = {(part.num_tokens,), (1, part.num_tokens), grid}
    return whole and values in (one if windows == 1 else {(windows, part.num_tokens)})

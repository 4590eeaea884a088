"""What a call of sampling asks for: classes, pictures, texts -> the values of the prior's condition, one an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.pipelines.generation.arguments import as_labels, labels_of_images
from codegrid.pipelines.system.devices import evaluating
from codegrid.prior import SequenceConfig
from codegrid.prior.conditioning import Condition
from codegrid.prior.conditions import CombinedCondition, PictureCondition, TextCondition, parts_of
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_images

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
    """

    number: int
    values: Tensor | None = None
    drop: Tensor | None = None
    labels: list[Any] | None = None

    def check_grid(self, sequence: SequenceConfig, grid_shape: tuple[int, int]) -> None:
        """Refuse pictures as the condition of larger ones: each window would follow the whole picture.

        Raises:
            CodegridError: the grid is not the trained one, and the prior follows pictures.
        """
        has_picture = any(isinstance(part, PictureCondition) for part in parts_of(sequence.conditioning))
        require(
            not has_picture or tuple(grid_shape) == tuple(sequence.grid_shape),
            f"A grid of {grid_shape[0]}x{grid_shape[1]} codes is asked for, and this pipeline follows pictures, which "
            f"have the trained size.",
            "Leave height and width out.",
        )


def wanted_images(
    pipe: ImageGenerationPipeline,
    class_labels: Any,
    condition: Any,
    prompt: Any,
    per_label: int,
    num_images: int | None,
) -> Wanted:
    """The values of each image: those given, each `per_label` times. One of a kind is for all of another.

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
    found = [None if given.get(part.type) is None else _values(pipe, part, given[part.type]) for part in parts]
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
    whole = torch.cat([column.reshape(most, -1) for column in columns], 1) if len(parts) > 1 else columns[0]
    classes = next((column for column, part in zip(columns, parts, strict=True) if part.type == "class"), None)
    labels = whole if classes is None or "class_labels" in missing else classes
    return Wanted(
        most * per_label,
        whole.repeat_interleave(per_label, 0),
        drop,
        labels.repeat_interleave(per_label, 0).tolist(),
    )


def condition_codes(pipe: ImageGenerationPipeline, part: PictureCondition, pictures: Any) -> Tensor:
    """Pictures, or integer codes [N, ...], of a condition -> its values int64 [N, tokens].

    Pictures are what the condition is: small ones for downscale, grey ones for grey. Smaller ones are scaled up.

    Raises:
        BadImage, CodegridError: a picture cannot be used, or the condition is of a tokenizer that is not there.
    """
    if isinstance(pictures, (Tensor, np.ndarray)) and _holds_codes(pictures, part):
        return torch.tensor(part.parse(list(torch.as_tensor(pictures))))
    model = condition_model(pipe, part)
    config = model.config
    preprocessing = replace(config.preprocessing_config, smaller="upscale")
    images = to_images(pictures, preprocessing, config.backbone_config.in_channels)
    found = []
    with evaluating(model):
        for few in images.split(pipe.default_batch_size()):
            found.append(model.encode(few.to(model.device)).flatten(1).cpu())
    return torch.cat(found)


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


def _values(pipe: ImageGenerationPipeline, part: Condition, given: Any) -> Tensor:
    if isinstance(part, PictureCondition):
        return condition_codes(pipe, part, given)
    inputs = as_labels(given)
    require(bool(inputs), f"{ARGUMENTS.get(part.type, 'class_labels')} is empty.", "Give at least one.")
    return torch.tensor(part.parse(inputs))


def _filled(values: Tensor | None, part: Condition, number: int) -> Tensor:
    """[number, *value_shape]; zeros where the part is not given, which is dropped."""
    if values is None:
        return torch.zeros(number, *part.value_shape, dtype=torch.int64)
    return values.expand(number, *part.value_shape) if len(values) == 1 else values


def _holds_codes(pictures: Tensor | np.ndarray, part: PictureCondition) -> bool:
    """Whether integers are codes [N, tokens] or [N, h, w(, depth)], and no pixels, which are uint8."""
    values: Sequence[int] = tuple(pictures.shape[1:])
    whole = not (torch.as_tensor(pictures).is_floating_point()) and str(pictures.dtype).rpartition(".")[2] != "uint8"
    grid = part.grid_shape if part.depth == 1 else (*part.grid_shape, part.depth)
    return whole and values in {(part.num_tokens,), grid}

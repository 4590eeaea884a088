"""What `codegrid generate` is asked for: classes, pictures of a folder, prompts, which the images take in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.names import printable
from codegrid.pipelines.data.records import NO_LABELS, DataConfig, DataError, ImageSource
from codegrid.pipelines.generation.keeping import check_keeping
from codegrid.pipelines.generation.wanted import ARGUMENTS, as_condition, condition_codes, condition_model
from codegrid.prior import SequenceConfig, resolve_labels
from codegrid.prior.conditions import PictureCondition, TextCondition, parts_of
from codegrid.prior.guidance import guidance_of
from codegrid.tokenizer.images import BadImage

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

DEFAULT = 16  # images, where no condition says how many


@dataclass(frozen=True)
class Asked:
    """Args:
    number: images.
    labels: the class (or value of another condition) of each image; None if there is none.
    pictures: the conditions: codes [N, windows, tokens], or pictures [N, C, H, W] in [-1, 1], with their `names`;
        image i takes picture i modulo N.
    prompts: texts; image i takes text i modulo their number.
    source: fingerprint and place of the pictures, for the record.
    """

    number: int
    labels: list[Any] | None
    captions: list[str] | None
    pictures: Tensor | None = None
    names: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    source: dict[str, str] | None = None

    def of(self, images: Sequence[int]) -> dict[str, Any]:
        """Arguments of `stream` for some of the images."""
        given: dict[str, Any] = {}
        if self.labels is not None:
            given["class_labels"] = [self.labels[index] for index in images]
        if self.pictures is not None:
            given["condition"] = self.pictures[torch.tensor([index % len(self.pictures) for index in images])]
        if self.prompts:
            given["prompt"] = [self.prompts[index % len(self.prompts)] for index in images]
        return given or {"num_images": len(images)}

    def record(self) -> dict[str, Any]:
        """What the folder's settings say of it beside the labels; empty without pictures and prompts."""
        pictures = {} if self.source is None else {"condition": {**self.source, "pictures": list(self.names)}}
        return pictures | ({"prompts": list(self.prompts)} if self.prompts else {})


def asked_images(
    pipe: ImageGenerationPipeline,
    class_labels: tuple[str, ...],
    condition: str | None,
    prompt: tuple[str, ...],
    num_images: int | None,
    grid_shape: tuple[int, int],
    keep_condition: bool = False,
) -> Asked:
    """What each image follows.

    Args:
        condition: a folder of pictures, or a file of them; nothing is looked for on the Hub.
        num_images: None is one for each picture or prompt, whichever are more; 16 without.
        grid_shape: of the images' codes.
        keep_condition: the pictures to follow stay pictures, which the images keep a part of.

    Raises:
        CodegridError: something is missing, not expected, or cannot be used.
        DataError: a picture of the folder cannot be used.
    """
    guidance_of(pipe.sampling, pipe.sequence)  # refuses guidance that this prior has not
    parts = {part.type: part for part in parts_of(pipe.sequence.conditioning)}
    given = {"class": class_labels, "picture": condition, "text": prompt}
    for kind, value in given.items():
        require(
            kind in parts or kind == "class" or not value,
            f"--{ARGUMENTS[kind]} is given, and this pipeline's images follow {pipe.sequence.conditioning.describe()}.",
            "Leave it out, or take a pipeline whose prior was trained with it.",
        )
    others = [ARGUMENTS[kind] for kind in ("picture", "text") if kind in parts]
    require(
        not others or bool(condition or prompt or class_labels),
        f"This pipeline's images follow {pipe.sequence.conditioning.describe()}.",
        f"Say what by --{' or --'.join(others)}.",
    )
    if prompt:
        text = parts["text"]
        assert isinstance(text, TextCondition)
        text.encode("")  # refuses a tokenizer that cannot be loaded
    pictures, names, source = None, (), None
    if keep_condition:
        check_keeping(pipe, condition)
    if condition:
        part = parts["picture"]
        assert isinstance(part, PictureCondition)
        pictures, names, source = _of_folder(pipe, part, condition, grid_shape, keep_condition)
    number = num_images or max(len(names), len(prompt)) or DEFAULT
    labels = labels_in_turn(pipe.sequence, class_labels, number, bool(others))
    captions = [_caption(pipe, labels, names, prompt, index) for index in range(number)]
    none = labels is None and not names and not prompt
    return Asked(number, labels, None if none else captions, pictures, names, prompt, source)


def _of_folder(
    pipe: ImageGenerationPipeline, part: PictureCondition, place: str, grid_shape: tuple[int, int], as_pictures: bool
) -> tuple[Tensor, tuple[str, ...], dict[str, str]]:
    from codegrid.pipelines.data.sources import open_images  # loads datasets, which classes alone do not need

    require(
        Path(place).expanduser().exists(),
        f"condition is {place!r}, and there is nothing of this name here.",
        "Give a folder of pictures, or a .parquet or .tar file.",
    )
    images: ImageSource = open_images(DataConfig(place, label_column=NO_LABELS, top_folders="classes"))
    found, model = [], condition_model(pipe, part)
    factor = pipe.tokenizer.config.pixels_per_position
    size = (grid_shape[0] * factor, grid_shape[1] * factor)
    for record in images:
        try:
            picture = as_condition(model, [record.data], size) if as_pictures else None
            found.append(condition_codes(pipe, part, [record.data], grid_shape) if picture is None else picture)
        except BadImage as error:
            raise DataError(
                f"{printable(record.source_id)} cannot be followed: {str(error).rstrip('.')}.",
                "Move it out of the folder, or mend it.",
            ) from error
    return torch.cat(found), tuple(images.names()), {"source": place, "fingerprint": images.fingerprint}


def labels_in_turn(
    sequence: SequenceConfig, class_labels: tuple[str, ...], number: int, may_lack: bool = False
) -> list[Any] | None:
    """The classes that the images take in turn; `may_lack` leaves them out where none is named."""
    if sequence.conditioning.vocab_size == 0:
        require(
            not class_labels, "This pipeline is unconditional, and class_labels are given.", "Leave --class-labels out."
        )
        return None
    if may_lack:
        part = next((part for part in parts_of(sequence.conditioning) if part.type == "class"), None)
        require(
            part is not None or not class_labels,
            f"This pipeline's images follow {sequence.conditioning.describe()}, and class_labels are given.",
            "Leave --class-labels out.",
        )
        chosen = [] if part is None else part.parse(class_labels)
        return None if not chosen else (chosen * math.ceil(number / len(chosen)))[:number]
    require(
        bool(class_labels) or sequence.class_names is not None,
        f"This pipeline's images follow {sequence.conditioning.describe()}.",
        "Say what by --class-labels.",
    )
    chosen = resolve_labels(class_labels, sequence) if class_labels else list(range(sequence.num_classes))
    return (chosen * math.ceil(number / len(chosen)))[:number]


def _caption(
    pipe: ImageGenerationPipeline,
    labels: list[Any] | None,
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    index: int,
) -> str:
    said = []
    if labels is not None:
        parts = parts_of(pipe.sequence.conditioning)
        kind = next((part for part in parts if part.type == "class"), pipe.sequence.conditioning)
        said.append(kind.name(labels[index]))
    said += [Path(names[index % len(names)]).stem] if names else []
    said += [prompts[index % len(prompts)]] if prompts else []
    return " ".join(said)

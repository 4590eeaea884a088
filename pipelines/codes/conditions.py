"""What the codes of a data set are to follow beside classes: a picture made of each, one that belongs to it, a text."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import List, Value

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.shards import EncodedShard, code_dtype
from codegrid.pipelines.data.batches import Picture, Variant, picture_reader
from codegrid.pipelines.data.captions import Captions
from codegrid.pipelines.data.degradations import Degradation, degradation
from codegrid.pipelines.data.records import NO_LABELS, DataConfig, DataError, ImageRecord, ImageSource, ImageStream
from codegrid.pipelines.data.sources import open_images
from codegrid.prior.conditioning import Condition, condition_to_dict
from codegrid.prior.conditions import PictureCondition, TextCondition, combined
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.moving import to_device

COLUMN, FOLDER = "column:", "folder:"
_CODES, _PROMPT, _TEXT = "condition_codes", "prompt", "text"  # columns


@dataclass(frozen=True)
class Conditions:
    """The condition of a code data set while it is made.

    Args:
        picture, text: its parts, as the manifest says them.
        model: the tokenizer of the condition's pictures; None is the data set's own.
        made: how the condition's picture follows from the true one; None if it comes from `paired`.
        paired: the pictures that belong to the data set's, and `places` their rows by the data set's source ids.
        captions: the texts.
    """

    picture: PictureCondition | None = None
    text: TextCondition | None = None
    model: VQModel | None = None
    made: Degradation | None = None
    paired: ImageSource | None = None
    places: Mapping[str, int] | None = None
    captions: Captions | None = None

    @property
    def condition(self) -> Condition | None:
        return combined(self.picture, self.text)

    def plan(self) -> dict[str, Any] | None:
        """What the rows depend on, for the folder's plan."""
        if self.condition is None:
            return None
        said = condition_to_dict(self.condition)
        if self.captions is not None:
            said["captions"] = self.captions.how
        return said if self.paired is None else {**said, "pictures": self.paired.fingerprint}

    def features(self) -> dict[str, Any]:
        """The columns of the shards."""
        columns: dict[str, Any] = {}
        if self.picture is not None:
            dtype = code_dtype(self.picture.codebook_size)
            columns[_CODES] = List(Value(dtype), length=self.picture.num_tokens)
        if self.text is not None:
            columns |= {_PROMPT: List(Value("int32"), length=self.text.num_tokens), _TEXT: Value("string")}
        return columns

    def reader(self, model: VQModel, read: Callable[[ImageRecord], Picture], kinds: list[Variant]) -> Any:
        """`read` with each picture's condition; picklable, as `read` is."""
        if self.condition is None:
            return read
        other = None
        if self.paired is not None or self.model is not None:
            other = picture_reader(self.model or model, kinds)
        return WithCondition(read, other, self.made, self.paired, self.places, self.captions)

    def encode(self, shard: EncodedShard, model: VQModel, pixels: list[np.ndarray], device: torch.device) -> None:
        """Add the codes of pictures uint8 [H, W, C] of the condition to a shard."""
        codes = (self.model or model).encode(to_model(to_device(torch.from_numpy(np.stack(pixels)), device)))
        shard.rows[_CODES].append(codes.flatten(1).cpu().numpy())

    def add_text(self, shard: EncodedShard, text: str, times: int) -> None:
        """Add a picture's text to a shard, once for each of its variants."""
        if self.text is not None:
            ids, _ = self.text.encode(text)
            shard.rows[_PROMPT] += [np.array([ids])] * times
            shard.rows[_TEXT] += [shown(text)] * times


class WithCondition:
    """A reader of records whose pictures have their condition. One without is left out, with the reason."""

    def __init__(
        self,
        read: Callable[[ImageRecord], Picture],
        read_other: Callable[[ImageRecord], Picture] | None,
        made: Degradation | None,
        paired: ImageSource | None,
        places: Mapping[str, int] | None,
        captions: Captions | None,
    ) -> None:
        self.read, self.read_other, self.made = read, read_other, made
        self.paired, self.places, self.captions = paired, places, captions

    def __call__(self, record: ImageRecord) -> Picture:
        picture = self.read(record)
        if picture.pixels is None:
            return picture
        text = None if self.captions is None else self.captions.of(record.source_id, record.data, record.label)
        if self.captions is not None and text is None:
            return picture._replace(pixels=None, reason="no_text", detail="It has no text.")
        pixels = picture.pixels
        if self.paired is not None:
            place = (self.places or {}).get(record.source_id)
            if place is None:
                return picture._replace(pixels=None, reason="no_condition", detail="No picture belongs to it.")
            record = self.paired[place]
        if self.read_other is not None:
            other = self.read_other(record)
            if other.pixels is None:
                detail = f"Its condition {record.source_id}: {other.detail}"
                return picture._replace(pixels=None, reason=f"condition_{other.reason}", detail=detail)
            pixels = other.pixels
        if self.made is not None:
            made = [self.made(each, picture.source_id, number) for number, each in enumerate(pixels)]
            return picture._replace(condition=np.stack(made), text=text)
        return picture._replace(condition=pixels if self.paired is not None else None, text=text)


def open_conditions(
    condition: str | None,
    captions: str | None,
    images: ImageStream,
    data: DataConfig,
    model: VQModel,
    *,
    tokenizer: str | None = None,
    text: TextCondition | None = None,
) -> Conditions:
    """The conditions that a tokenization asks for.

    Args:
        condition: "downscale:4" and the like (`degradations.names`), "column:NAME" or "folder:PATH"; None is no
            picture.
        captions: "column:NAME", "txt" or "class"; None for no text.
        tokenizer: of the condition's pictures; None is `model`.
        text: how texts become tokens, where there are captions.

    Raises:
        DataError: there is no such condition, or the data has none.
    """
    require(
        condition is not None or tokenizer is None,
        f"condition_tokenizer is {tokenizer!r}, and there is no condition.",
        "Give one by --condition.",
    )
    texts = None if captions is None else Captions(data, images, captions)
    if condition is None:
        return Conditions(text=text, captions=texts)
    other = None if tokenizer is None else load_tokenizer(tokenizer)
    kind = picture_condition(other or model, condition)
    if not condition.startswith((COLUMN, FOLDER)):
        return Conditions(kind, text, other, degradation(condition), captions=texts)
    if not isinstance(images, ImageSource):
        raise DataError(f"condition is {condition!r}, and the data is a stream.", "Leave data.streaming off.")
    paired, places = _paired(condition, images, data)
    kind = replace(kind, made_by=condition if condition.startswith(COLUMN) else None)
    return Conditions(kind, text, other, None, paired, places, texts)


def picture_condition(model: VQModel, made_by: str | None) -> PictureCondition:
    """The condition that is a picture's codes by `model`."""
    quantizer = model.config.quantizer_config
    return PictureCondition(
        quantizer.codebook_size, tuple(model.config.grid_shape), quantizer.depth, model.codes_fingerprint(), made_by
    )


def _paired(condition: str, images: ImageSource, data: DataConfig) -> tuple[ImageSource, dict[str, int]]:
    """The pictures of a column or another folder, and their rows by the source ids of `images`."""
    names = images.names()
    if condition.startswith(COLUMN):
        column = condition.removeprefix(COLUMN)
        require(bool(column), f"condition is {condition!r}, without a column.", "Give column:NAME.")
        try:
            other = open_images(replace(data, image_column=column, label_column=NO_LABELS, limit=None))
        except DataError as error:
            said = error.what.rstrip(".")
            raise DataError(f"condition is {condition!r}: {said}.", "Name a column of pictures.") from error
        found = {name: place for place, name in enumerate(other.names())}
    else:
        folder = condition.removeprefix(FOLDER)
        if not folder or not Path(folder).is_dir():
            raise DataError(f"condition is {condition!r}, and that is no folder here.", "Give folder:PATH.")
        plain = DataConfig(folder, label_column=NO_LABELS, follow_links=data.follow_links, top_folders="classes")
        other = open_images(plain)
        places = _places_by_stem(other.names(), {posixpath.splitext(name)[0] for name in names})
        stems = {name: posixpath.splitext(name)[0] for name in names}
        found = {name: places[stem] for name, stem in stems.items() if stem in places}
    if not any(name in found for name in names):
        raise DataError(
            f"condition is {condition!r}, and none of its pictures belongs to one of {images.description}; such as "
            f"{shown(other.names()[0])} there and {shown(names[0])} here.",
            "Give each pair one path and name below its folder; the suffix may differ.",
        )
    return other, found


def _places_by_stem(names: list[str], wanted: set[str]) -> dict[str, int]:
    """The place of each wanted path without its suffix.

    Raises:
        DataError: two files differ in their suffix alone.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        stem = posixpath.splitext(name)[0]
        if stem in places and stem in wanted:
            raise DataError(
                f"{shown(names[places[stem]])} and {shown(name)} both belong to one picture.", "Leave one of them out."
            )
        places[stem] = place
    return places

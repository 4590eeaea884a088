"""Which column of a table holds the pictures, and which the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow.compute as pc

from codegrid.pipelines.data.labels import LABEL_NAMES, Labels, NoClassesError, labels_of
from codegrid.pipelines.data.records import NO_LABELS, DataConfig, DataError
from codegrid.tokenizer.images import IMAGE_EXTENSIONS

# Names of columns that hold pictures, in the order in which they are taken.
_IMAGE_NAMES = (("image",), ("img", "picture"), ("bytes", *(extension[1:] for extension in IMAGE_EXTENSIONS)))
_STORED = ("binary", "large_binary", "bytes, path")


@dataclass
class Columns:
    """Args:
    image: the column of the pictures.
    label: that of the labels; None where there are none.
    labels: its classes; None where there is no such column.
    counts: rows of each class; None where they were not counted.
    images_left: further columns of pictures.
    others: the columns that are not taken, with what they hold.
    """

    image: str
    label: str | None
    labels: Labels | None
    counts: list[int] | None
    images_left: tuple[str, ...]
    others: tuple[str, ...]


def choose_columns(config: DataConfig, table: Any, known: list[str] | None, where: str) -> Columns:
    """The columns of a `datasets` Dataset or IterableDataset; `known` are the class names of the training split.

    Raises:
        DataError: there is no column of pictures, or several that could be meant; or that of `config` is none.
    """
    features = table.features
    listed = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
    label_column = None if config.label_column == NO_LABELS else config.label_column
    for option, column in (("image_column", config.image_column), ("label_column", label_column)):
        if column and column not in features:
            raise DataError(
                f"{where} has no column {column!r} for data.{option}: its columns are {listed}.", "Choose one of these."
            )
    image, images_left = _image(config, features, where, listed)
    label, labels, reasons = _label(config, table, image, known, where, listed)
    counts = None
    if labels is not None and labels.names and hasattr(table, "data"):
        times = pc.value_counts(table.data.column(label))
        counts = labels.counts(*zip(*((entry["values"], entry["counts"]) for entry in times.to_pylist()), strict=True))
    others = [
        f"{column} ({reasons.get(column, _kind(feature))})"
        for column, feature in features.items()
        if column not in (image, label, *images_left, "__key__", "__url__")
    ]
    return Columns(image, label, labels, counts, tuple(images_left), tuple(others))


def _image(config: DataConfig, features: Any, where: str, listed: str) -> tuple[str, list[str]]:
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    stored = [column for column, feature in features.items() if _kind(feature) in _STORED]
    if config.image_column in typed + stored:
        return config.image_column, [column for column in typed if column != config.image_column]
    if config.image_column is None:
        named = [column for column in stored if column.lower() in sum(_IMAGE_NAMES, ())]
        found = typed + named or (stored if len(stored) == 1 else [])
        if len(typed) == 1:  # its type says more than a name, but for the name itself
            found = typed + [column for column in named if column.lower() in _IMAGE_NAMES[0]]
        for names in (*_IMAGE_NAMES, None):
            chosen = [column for column in found if names is None or column.lower() in names]
            if len(chosen) == 1:
                return chosen[0], [column for column in typed + named if column != chosen[0]]
            if chosen and names is None:
                raise DataError(
                    f"{where} has {len(chosen)} columns of images: {', '.join(chosen)}.",
                    "Say with data.image_column which one is meant.",
                )
    raise DataError(
        f"{where} has no column of images that could be read: {listed}.", "Name one with data.image_column."
    )


def _label(
    config: DataConfig, table: Any, image: str, known: list[str] | None, where: str, listed: str
) -> tuple[str | None, Labels | None, dict[str, str]]:
    """(the column, its classes, why another column of such a name is not taken)."""
    if config.label_column == NO_LABELS:
        return None, None, {}
    features = table.features
    usable = [column for column, feature in features.items() if _may_be_label(feature) and column != image]
    if config.label_column and config.label_column not in usable:
        raise DataError(
            f"Column {config.label_column} of {where} holds no classes (whole numbers, bools or names): {listed}.",
            "Choose another with data.label_column, or leave it out.",
        )
    by_name = [column for column in LABEL_NAMES if column in usable]
    by_type = [column for column in usable if isinstance(features[column], datasets.ClassLabel)]
    reasons: dict[str, str] = {}
    for column in [config.label_column] if config.label_column else by_name + by_type:
        try:
            return column, _classes(table, column, config.streaming, known, where), reasons
        except NoClassesError as error:
            if config.label_column:
                raise DataError(
                    f"Column {column} of {where} holds no classes: {error.reason}. Its columns: {listed}.",
                    "Choose another with data.label_column, or leave it out.",
                ) from error
            reasons[column] = f"{_kind(features[column])}: {error.reason}"
    for column in LABEL_NAMES:
        if column in features and column not in usable and column != image:
            reasons[column] = f"{_kind(features[column])}: no classes"
    return None, None, reasons


def _classes(table: Any, column: str, streaming: bool, known: list[str] | None, where: str) -> Labels:
    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        if known and known != feature.names:
            raise DataError(
                f"{where} numbers its classes otherwise than in the training split.",
                "Write both with the same ClassLabel.",
            )
        return Labels(feature.names, None)
    if streaming:
        if "string" in feature.dtype:
            raise DataError(
                f"Column {column} of {where} holds names, which a stream cannot number.", "Leave data.streaming off."
            )
        return Labels(None, None)
    return labels_of(pc.unique(table.data.column(column)).to_pylist(), known, where, column)


def _kind(feature: Any) -> str:
    if isinstance(feature, dict):
        return ", ".join(sorted(feature))
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _may_be_label(feature: Any) -> bool:
    kind = _kind(feature)
    of_type = kind in ("string", "large_string", "bool") or "int" in kind or "float" in kind
    return isinstance(feature, datasets.ClassLabel) or (isinstance(feature, datasets.Value) and of_type)

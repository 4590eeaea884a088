"""The classes of a tokenizer whose decoder is class-conditional, matched by name with those of data and priors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from codegrid.names import shown
from codegrid.pipelines.data.labels import Labels
from codegrid.pipelines.data.records import DataError, ImageRecord, ImageSource
from codegrid.tokenizer import VQModelConfig


def decoder_classes(config: VQModelConfig, class_names: Sequence[str] | None, what: str) -> tuple[int, ...] | None:
    """For each class of `class_names` the tokenizer's class of that name; None where the decoder is unconditional.

    Args:
        class_names: of the data or the prior; None where it has no classes.
        what: what has these names, for the message.

    Raises:
        DataError: there are no classes, or one that the tokenizer does not know.
    """
    if config.class_names is None:
        return None
    known = {name: label for label, name in enumerate(config.class_names)}
    if class_names is None:
        raise DataError(
            f"The tokenizer's decoder is class-conditional ({len(known)} classes), and {what} has no classes.",
            "Use data with its classes, or a tokenizer whose decoder is unconditional.",
        )
    unknown = [name for name in class_names if name not in known]
    if unknown:
        raise DataError(
            f"The tokenizer's decoder is class-conditional and does not know {unknown[0]!r} of {what}; its classes are "
            f"{', '.join(list(known)[:8])}{', ...' if len(known) > 8 else ''}.",
            "Use data of these classes, or a tokenizer that was trained on the others.",
        )
    return tuple(known[name] for name in class_names)


def record_labels(records: Iterable[ImageRecord], classes: Sequence[int] | None) -> Tensor | None:
    """The tokenizer's classes of the records, int64 [B]; None where `classes` (see `decoder_classes`) is.

    Raises:
        DataError: a record has no label.
    """
    if classes is None:
        return None
    labels = []
    for record in records:
        if record.label is None or record.label < 0:
            raise DataError(
                f"{record.source_id} has no label, and the training or the tokenizer is class-conditional.",
                "Label it, leave it out, or take a training or a tokenizer that is not class-conditional.",
            )
        labels.append(classes[record.label])
    return torch.tensor(labels, dtype=torch.int64)


def check_labelled(source: ImageSource, wanted_by: str) -> None:
    """Check that every picture has a label, from the labels alone: no picture is read.

    Args:
        wanted_by: the settings that need labels, for the message.

    Raises:
        DataError: there are no labels, or some pictures have none.
    """
    if not source.class_names:
        raise DataError(
            f"{source.description}: there are no labels, and {wanted_by} is set.",
            "Put the pictures into a subfolder for each class, or name data.label_column; or turn it off.",
        )
    numbers = _numbers(source)
    if numbers is None or not len(missing := np.flatnonzero(numbers < 0)):
        return
    names = source.names()
    some = ", ".join([*(shown(names[place]) for place in missing[:3]), *["..."] * (len(missing) > 3)])
    raise DataError(
        f"{len(missing):,} of {len(source):,} pictures have no label ({some}), and {wanted_by} is set.",
        f"Label them, leave them out of the source, or turn {wanted_by} off.",
    )


def _numbers(source: ImageSource) -> np.ndarray | None:
    """The classes of the records, int64 [N], -1 where it is not known; None for readers that do not tell."""
    labels = getattr(source.reader, "labels", None)
    if isinstance(labels, Labels):  # of a table: its column of values
        found = [labels.number(value) for value in source.reader.table[source.reader.label]]
        labels = np.array([-1 if number is None else number for number in found], dtype=np.int64)
    if not isinstance(labels, np.ndarray):
        return None
    return labels if source.indices is None else labels[source.indices]

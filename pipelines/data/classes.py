"""The classes of a tokenizer whose decoder is class-conditional, matched by name with those of data and priors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from codegrid.pipelines.data.records import DataError, ImageRecord
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
            f"The tokenizer's decoder is class-conditional ({len(known)} classes), and {what} has no classes: use data "
            "with its classes, or a tokenizer whose decoder is unconditional."
        )
    unknown = [name for name in class_names if name not in known]
    if unknown:
        raise DataError(
            f"The tokenizer's decoder is class-conditional and does not know {unknown[0]!r} of {what}; its classes are "
            f"{', '.join(list(known)[:8])}{', ...' if len(known) > 8 else ''}."
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
            raise DataError(f"{record.source_id} has no label, and the training or the tokenizer is class-conditional.")
        labels.append(classes[record.label])
    return torch.tensor(labels, dtype=torch.int64)

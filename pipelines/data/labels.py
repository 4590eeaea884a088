"""Values of any type as classes: names, whole numbers, bools and whole floats are; NaN is unknown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from codegrid.pipelines.data.records import DataError, numbered

# Columns and fields that hold labels by their names, the first one first.
LABEL_NAMES = ("label", "cls", "labels", "class")
_MAX_CLASSES = 100_000


class NoClassesError(DataError):
    """Values that cannot be classes; `reason` says which of them."""

    reason = ""


def no_classes(reason: str, where: str = "A column of labels") -> NoClassesError:
    """The error for values of `where` that cannot be classes."""
    remedy = "Choose another with data.label_column, or leave it out."
    error = NoClassesError(f"{where} holds no classes: {reason}.", remedy)
    error.reason = reason
    return error


class Labels:
    """The names of classes, and the number of a value.

    Args:
        names: in the order of the numbers; None where they are not known.
        numbers: of each value where these are names; None where values are numbers themselves.
    """

    def __init__(self, names: list[str] | None, numbers: dict[str, int] | None) -> None:
        self.names, self.numbers = names, numbers

    def number(self, value: Any) -> int | None:
        """The class of a value; None where it is unknown (None, NaN, or negative, which is the Hub's "not known").

        Raises:
            NoClassesError: the value is none that a class can have.
        """
        if _is_unknown(value):
            return None
        if self.numbers is not None:
            return self.numbers[str(value)]
        number = _whole(value)
        return number if number >= 0 else None

    def counts(self, values: Sequence[Any], times: Sequence[int]) -> list[int]:
        """How many there are of each class, where `values[i]` is there `times[i]` times."""
        found = [0] * len(self.names or ())
        for value, count in zip(values, times, strict=True):
            number = self.number(value)
            if number is not None:
                found[number] += count
        return found


def labels_of(values: Iterable[Any], known: list[str] | None, where: str, column: str) -> Labels:
    """The classes of a column that holds `values` (each at least once).

    Args:
        known: the names of the training split, whose numbers the labels must follow.

    Raises:
        NoClassesError: a value is no class.
        DataError: there are too many classes, or one that the training split lacks.
    """
    present = [value for value in values if not _is_unknown(value)]
    if any(isinstance(value, str) for value in present):
        found = sorted({str(_checked(value)) for value in present})
        count, is_text = len(found), True
    else:
        whole = {_whole(value) for value in present}
        found = [str(number) for number in sorted(whole) if number >= 0]
        count, is_text = max(whole, default=-1) + 1, False
    if count > _MAX_CLASSES:
        raise DataError(
            f"Column {column} of {where} would make {count:,} classes.", "Choose another with data.label_column."
        )
    if not count:
        return Labels(known, None)
    if present and all(isinstance(value, (bool, np.bool_)) for value in present):
        names = known or ["False", "True"]
        return Labels(names, None)
    names = known or (found if is_text else [str(number) for number in range(count)])
    numbered(found, names, where)
    return Labels(names, {name: number for number, name in enumerate(names)} if is_text else None)


def typed(values: Sequence[Any]) -> list[Any]:
    """Texts of a file without types: whole numbers where all are, None where nothing stands. Other values stay."""
    blank = {"", "nan", "none", "null", "n/a", "na"}
    found = [None if isinstance(value, str) and value.strip().lower() in blank else value for value in values]
    if not any(isinstance(value, str) for value in found):
        return found
    try:
        return [None if value is None else _whole(float(value)) for value in found]
    except (ValueError, TypeError):
        return found


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _checked(value: Any) -> Any:
    return value if isinstance(value, str) else _whole(value)


def _whole(value: Any) -> int:
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    text = repr(value)
    raise no_classes(f"{text if len(text) <= 40 else text[:37] + '...'} is no class")


def numeric_order_note(names: Sequence[str] | None) -> str:
    """A sentence where names of classes are numbers and their ids are others; "" else."""
    if not names or not all(name.isdecimal() for name in names):
        return ""
    other = next((place for place, name in enumerate(names) if str(place) != name), None)
    if other is None:
        return ""
    return (
        f"The classes' names are numbers, and their ids others (sorted as text): id {other} is class {names[other]!r}."
    )

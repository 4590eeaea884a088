"""Rows of integers from the tables and arrays of others: Parquet, npy, text, and data sets of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Value

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.data.labels import Labels, NoClassesError, labels_of
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.tables import load_table

# What the axes of one row of integers are: l positions of a sequence (frames of sound, bytes), h and w rows and columns
# of a grid, d codes at each position (of a residual quantizer: coarse to fine), t frames.
Axes = Literal["l", "ld", "dl", "hw", "hwd", "dhw", "thw", "thwd"]  # those of codegrid.prior.sequence_config
_READINGS: dict[Axes, str] = {
    "l": "a sequence",
    "ld": "a sequence, each position with its codes side by side",
    "dl": "a sequence, its codes level by level (as EnCodec's)",
    "hw": "a grid",
    "hwd": "a grid, each position with its codes side by side",
    "dhw": "a grid, its codes level by level",
    "thw": "frames of grids",
    "thwd": "frames of grids with several codes a position",
}
_AT_ONCE = 1_000  # rows of a table
_ANOTHER = "Choose another --label-column, or leave it out."


class Row(NamedTuple):
    """One row of the source: its name, integers (one axis for each letter of the axes), and its class if known."""

    name: str
    codes: np.ndarray
    label: int | None = None


@dataclass(frozen=True)
class Sequences:
    """Args:
    rows: makes an iterator over all rows; it may be asked for twice.
    axes: what the axes of a row are.
    description: what was read, for people.
    label_names: the classes by number, where there are any.
    single: whether there is one row alone, so that its windows are what is held out or not.
    """

    rows: Callable[[], Iterator[Row]]
    axes: Axes
    description: str
    label_names: tuple[str, ...] | None = None
    single: bool = False


def open_sequences(
    source: str, axes: Axes | None, codes_column: str, label_column: str | None, split: str
) -> Sequences:
    """The rows of `source`: an .npy file, a text file (its bytes), Parquet files, or a Hub data set.

    Raises:
        DataError: there is no such file or column, it holds no whole numbers, or its axes have several readings.
    """
    path, columns = Path(source), [codes_column, *([label_column] if label_column else [])]
    if path.suffix in (".npy", ".txt"):
        require(label_column is None, f"{shown(path)} has no columns.", "Leave --label-column out.")
        return _array(path, axes)
    return _table(source, axes, columns, split)


def _array(path: Path, axes: Axes | None) -> Sequences:
    """An .npy file, or the bytes of a text: mapped, not read."""
    try:
        text = path.suffix == ".txt"
        array = np.memmap(path, np.uint8, "r") if text else np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{shown(path)} cannot be read ({error}).", "Give a text that is not empty, or what numpy.save wrote."
        ) from error
    shape = array.shape
    require(array.dtype.kind in "iu", f"{shown(path)} holds {array.dtype}, not whole numbers.", "Codes run from 0 on.")

    def reading(letters: Axes) -> str:
        """Such as "8 rows, each a sequence (1,000)"."""
        rows = f"{shape[0]:,} rows, each " if len(shape) > len(letters) else ""
        return f"{rows}{_READINGS[letters]} ({_sizes(shape[len(shape) - len(letters) :])})"

    what = f"{shown(path)} is an array of {_sizes(shape) or 'no axes'}"
    axes = _settled(axes, (array.ndim, array.ndim - 1), what, reading)
    single = array.ndim == len(axes)

    def rows() -> Iterator[Row]:
        for index, codes in enumerate([array] if single else array):
            yield Row(f"{path.name}:{index}", codes)

    return Sequences(rows, axes, f"{shown(path.name)}: {reading(axes)} of {array.dtype}", single=single)


def _table(source: str, axes: Axes | None, columns: list[str], split: str) -> Sequences:
    """Rows of the column of codes and that of labels, if there are two `columns`."""
    path, here = Path(source), Path(source).exists()
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(f"{shown(path)} is no .npy, .txt or .parquet file.", "Give one, or a folder of Parquet files.")
    config, few = DataConfig(source, split=split, streaming=here), {"batch_size": _AT_ONCE}
    what, table = f"{shown(path.name)} ({split})", load_table(config, path if here else None, **few)
    for column in columns:
        require(
            column in table.features,
            f"{what} has no column {shown(column)}.",
            f"Choose --codes-column (and --label-column) of {', '.join(map(shown, table.features))}.",
        )
    if here:  # nothing else is read
        table = load_table(config, path, columns=columns, **few)
    table = table.select_columns(columns)
    kind, deep = table.features[columns[0]], 0
    while hasattr(kind, "feature"):
        kind, deep = kind.feature, deep + 1
    deep += len(getattr(kind, "shape", ()))  # of Array2D and its like
    dtype = getattr(kind, "dtype", type(kind).__name__)
    column = f"The column {shown(columns[0])} is {dtype}{' in lists' * (deep > 0)}{f', {deep} deep' * (deep > 1)}"
    whole = deep > 0 and dtype.lstrip("u").startswith("int")
    require(whole, f"{column}.", "Give a column of lists of whole numbers: --codes-column.")
    axes = _settled(axes, (deep,), column, lambda letters: f"rows, each {_READINGS[letters]}")
    labels = _labels(table, columns[1], what) if columns[1:] else None

    def rows() -> Iterator[Row]:
        places = (f"{path.name}:{index}" for index in count())
        for batch in _batches(table.with_format("numpy"), what):
            found = batch[columns[1]] if labels else [None] * len(batch[columns[0]])
            for codes, label, place in zip(batch[columns[0]], found, places, strict=False):
                yield Row(place, _rectangle(codes, place), labels.number(label) if labels else None)

    names = tuple(labels.names or ()) if labels else None
    return Sequences(rows, axes, f"{what}: rows, each {_READINGS[axes]}", names)


def _batches(table: Any, what: str) -> Iterator[dict[str, Any]]:
    try:
        yield from table.iter(_AT_ONCE)
    except pa.ArrowException as error:  # a damaged file, or one with columns of another kind than the first
        raise DataError(f"{what} cannot be read ({error}).", "Give files that are whole and alike.") from error


def _labels(table: Any, column: str, what: str) -> Labels:
    feature, none = table.features[column], f"The column {shown(column)} of {what} has no classes: "
    if isinstance(feature, ClassLabel):
        return Labels(feature.names, None)
    require(isinstance(feature, Value), f"{none}it is {type(feature).__name__}.", _ANOTHER)
    values = {value for batch in _batches(table.select_columns(column), what) for value in batch[column]}
    try:
        labels = labels_of(values, None, what, column)
    except NoClassesError as error:
        raise DataError(f"{none}{error.reason}.", _ANOTHER) from error
    require(bool(labels.names), f"{none}all are unknown.", _ANOTHER)
    return labels


def _rectangle(codes: np.ndarray | None, place: str) -> np.ndarray:
    """The codes of a row, which are whole numbers with an axis for each level."""
    if codes is None:
        raise DataError(f"{place} has no codes.", "Leave such rows out.")
    require(codes.dtype != object, f"{place} has lists of several lengths, or a null.", "A row is a rectangle.")
    require(codes.dtype.kind in "iu", f"A code of {place}, or of a row behind it, is null.", "Leave such rows out.")
    return codes


def _settled(axes: Axes | None, lengths: tuple[int, ...], what: str, reading: Callable[[Axes], str]) -> Axes:
    """The axes, which are as many as one of `lengths`; refused with their readings where none or several fit."""
    fitting = [letters for letters in _READINGS if len(letters) in lengths]
    if axes in fitting or (axes is None and len(fitting) == 1):
        return axes or fitting[0]
    said = "" if axes is None else f", which is not --axes {axes}, nor rows of that"
    raise DataError(
        f"{what}{said}.",
        f"Say what its axes are: {'; '.join(f'--axes {letters} reads {reading(letters)}' for letters in fitting)}."
        if fitting
        else "Give rows of 1 to 4 axes.",
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)

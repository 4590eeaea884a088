"""Rows of integers from the tables and arrays of others: Parquet, npy, text, and data sets of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.data.records import DataError

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


class Row(NamedTuple):
    """One row of the source: its name, integers (one axis for each letter of the axes), and its label."""

    name: str
    codes: np.ndarray
    label: Any = None


@dataclass(frozen=True)
class Sequences:
    """Args:
    rows: makes an iterator over all rows; it may be asked for twice.
    axes: what the axes of a row are.
    description: what was read, for people.
    label_names: the classes by number where the source says them.
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
    table, what = _opened(source, split)
    for column in columns:
        require(
            column in table.schema.names,
            f"The table of {what} has no column {shown(column)}.",
            f"Choose --codes-column (and --label-column) of {', '.join(map(shown, table.schema.names))}.",
        )
    kind, deep = _storage(table.schema.field(columns[0]).type), 0
    while _is_list(kind):
        kind, deep = kind.value_type, deep + 1
    column = f"The column {shown(columns[0])} is {kind}{' in lists' * (deep > 0)}{f', {deep} deep' * (deep > 1)}"
    whole = deep > 0 and pa.types.is_integer(kind)
    require(whole, f"{column}.", "Give a column of lists of whole numbers: --codes-column.")
    axes = _settled(axes, (deep,), column, lambda letters: f"rows, each {_READINGS[letters]}")

    def rows() -> Iterator[Row]:
        places = (f"{Path(source).name}:{index}" for index in count())
        few = {"batch_size": _AT_ONCE, "batch_readahead": 1, "fragment_readahead": 1}
        try:
            for batch in table.to_batches(columns=columns, **few):
                codes = batch.column(0).cast(_storage(batch.column(0).type))
                labels = batch.column(1).to_pylist() if columns[1:] else [None] * len(batch)
                for index, (label, place) in enumerate(zip(labels, places, strict=False)):
                    yield Row(place, _numbers(codes.slice(index, 1), place), label)
        except pa.ArrowException as error:  # a damaged file, or one with columns of another kind than the first
            raise DataError(f"{what} cannot be read ({error}).", "Give files that are whole and alike.") from error

    return Sequences(rows, axes, f"{what}: {_READINGS[axes]}", _class_names(table.schema, columns))


def _opened(source: str, split: str) -> tuple[pads.Dataset, str]:
    """The table of Parquet files or of a data set of the Hub, and what it is."""
    path, kinds = Path(source), "Give .npy, .txt or .parquet files, a folder of them, or the name of a data set."
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    require(bool(files), f"{shown(path)} has no Parquet files.", kinds)
    try:
        if path.exists():
            table = pads.dataset([str(file) for file in files], format="parquet")
            what = f"{len(files)} Parquet file{'s' * (len(files) > 1)} of {shown(path.name)}"
        else:
            from datasets import load_dataset

            table, what = pads.dataset(load_dataset(source, split=split).data.table), f"{source} ({split})"
        return table, f"{table.count_rows():,} rows in {what}"
    except Exception as error:  # the Hub's loader raises whatever its back ends raise
        place = "cannot be read as Parquet" if path.exists() else "is neither a file here nor a data set of the Hub"
        raise DataError(f"{shown(source)} {place} ({type(error).__name__}: {error}).", kinds) from error


def _numbers(lists: pa.Array, place: str) -> np.ndarray:
    """An array of one row, (lists of) a list of integers -> these with an axis for each level."""
    shape = []
    while _is_list(lists.type):
        sizes = pc.unique(pc.list_value_length(lists)).to_pylist()
        require(None not in sizes, f"{place} has no codes, or a list in it is null.", "Leave such rows out.")
        require(
            len(sizes) == 1,
            f"{place} has lists of different lengths in it: {sorted(sizes)[:5]}.",
            "The codes of a row are a rectangle.",
        )
        shape.append(sizes[0])
        lists = pc.list_flatten(lists)
    require(not lists.null_count, f"A code of {place} is null.", "Leave such rows out.")
    return lists.to_numpy(zero_copy_only=False).reshape(shape)


def _is_list(kind: Any) -> bool:
    return pa.types.is_nested(kind) and hasattr(kind, "value_type")


def _storage(kind: Any) -> Any:
    """The lists that an extension type keeps, such as Array2D of datasets."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


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


def _class_names(schema: pa.Schema, columns: list[str]) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, which `datasets` keeps in the metadata of a table."""
    from datasets import ClassLabel, Features

    try:
        label = Features.from_arrow_schema(schema)[columns[1]]
    except Exception:  # no label column, no metadata, or of a kind that datasets does not know
        return None
    return tuple(label.names) if isinstance(label, ClassLabel) else None


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)

"""Rows of integers from the tables and arrays of others: Parquet, npy, text, and data sets of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.data.records import DataError

# What the axes of one row of integers are: l positions of a sequence (frames of sound, bytes), h and w rows and columns
# of a grid, d codes at each position (of a residual quantizer: coarse to fine), t frames.
Axes = Literal["l", "ld", "dl", "hw", "hwd", "dhw", "thw", "thwd"]  # those of codegrid.prior.sequence_config
_READINGS = {
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
    path = Path(source)
    if path.suffix == ".npy":
        require(label_column is None, f"{shown(path)} has no columns.", "Leave --label-column out.")
        return _array(path, axes)
    if path.suffix == ".txt":
        require(label_column is None, f"{shown(path)} has no columns.", "Leave --label-column out.")
        return _bytes(path, axes)
    if path.exists():
        return _parquet(path, axes, codes_column, label_column)
    return _of_the_hub(source, axes, codes_column, label_column, split)


def _array(path: Path, axes: Axes | None) -> Sequences:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{shown(path)} cannot be read as an array: {error}.", "Save it with numpy.save, as integers."
        ) from error
    _check_integers(array.dtype, shown(path))
    if axes is None and array.ndim == 1:
        axes = "l"
    if axes is None or array.ndim not in (len(axes), len(axes) + 1):
        said = "" if axes is None else f", which is not --axes {axes}, nor rows of that"
        readings = [
            f"--axes {letters} reads {_count(array.shape, letters)}"
            for letters in get_args(Axes)
            if array.ndim in (len(letters), len(letters) + 1)
        ]
        raise DataError(
            f"{shown(path)} is an array of {_shape(array.shape)}{said}.",
            f"Say what its axes are: {'; '.join(readings)}." if readings else "Give an array of 1 to 5 axes.",
        )
    several = array.ndim > len(axes)
    description = f"{shown(path.name)}: {_count(array.shape, axes)} of {array.dtype}"

    def rows() -> Iterator[Row]:
        for index, codes in enumerate(array if several else [array]):
            yield Row(f"{path.name}:{index}", codes)

    return Sequences(rows, axes, description, single=not several)


def _bytes(path: Path, axes: Axes | None) -> Sequences:
    require(axes in (None, "l"), f"{shown(path)} is text, and --axes is {axes}.", "A text's bytes are a sequence: l.")
    require(path.is_file(), f"There is no file {shown(path)}.", "Check the path.")
    require(path.stat().st_size > 0, f"{shown(path)} is empty.", "Give a text.")
    array = np.memmap(path, np.uint8, "r")
    description = f"{shown(path.name)}: a sequence of {len(array):,} bytes"
    return Sequences(lambda: iter([Row(f"{path.name}:0", array)]), "l", description, single=True)


def _parquet(path: Path, axes: Axes | None, codes_column: str, label_column: str | None) -> Sequences:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    require(
        bool(files), f"{shown(path)} has no Parquet files.", "Give .npy, .txt or .parquet files, or a folder of them."
    )
    try:
        tables = [pq.ParquetFile(file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{shown(path)} cannot be read as Parquet: {error}.", "Give .npy, .txt or .parquet files."
        ) from error
    wanted = [codes_column, *([label_column] if label_column else [])]
    schema = tables[0].schema_arrow
    _check_columns(schema, wanted, shown(path))
    axes = _axes_of(schema.field(codes_column).type, axes, f"{shown(path)}, column {shown(codes_column)}")

    def rows() -> Iterator[Row]:
        for file, table in zip(files, tables, strict=True):
            first = 0
            for batch in table.iter_batches(_AT_ONCE, columns=wanted):
                yield from _rows(pa.table(batch), wanted, file.name, first)
                first += len(batch)

    number = sum(table.metadata.num_rows for table in tables)
    named = f"{number:,} rows in {len(files)} Parquet file{'s' * (len(files) > 1)} of {shown(path.name)}"
    return Sequences(rows, axes, f"{named}: {_READINGS[axes]}", _class_names(schema, label_column))


def _of_the_hub(source: str, axes: Axes | None, codes_column: str, label_column: str | None, split: str) -> Sequences:
    from datasets import load_dataset

    try:
        table = load_dataset(source, split=split)
    except Exception as error:  # the loader raises whatever its back ends raise
        raise DataError(
            f"{source!r} is neither a file here nor a data set that the Hub gives ({type(error).__name__}: {error}).",
            "Give .npy, .txt or .parquet files, or the name of a data set.",
        ) from error
    wanted = [codes_column, *([label_column] if label_column else [])]
    schema = table.data.schema
    _check_columns(schema, wanted, source)
    axes = _axes_of(schema.field(codes_column).type, axes, f"{source}, column {codes_column}")
    names = getattr(table.features[label_column], "names", None) if label_column else None

    def rows() -> Iterator[Row]:
        arrow = table.select_columns(wanted).with_format("arrow")
        for first, part in zip(range(0, len(table), _AT_ONCE), arrow.iter(_AT_ONCE), strict=True):
            yield from _rows(part, wanted, split, first)

    return Sequences(
        rows, axes, f"{len(table):,} rows of {source} ({split}): {_READINGS[axes]}", names and tuple(names)
    )


def _rows(table: pa.Table, columns: list[str], prefix: str, first: int) -> Iterator[Row]:
    labels = table[columns[1]].to_pylist() if columns[1:] else [None] * len(table)
    for index, codes in enumerate(_arrays(table[columns[0]].combine_chunks(), prefix, first)):
        yield Row(f"{prefix}:{first + index}", codes, labels[index])


def _arrays(lists: Any, prefix: str, first: int) -> Iterator[np.ndarray]:
    """Each list of (lists of) integers of an Arrow array as an array."""
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    if isinstance(lists, pa.ExtensionArray):  # datasets' Array2D and the like
        lists = lists.storage
    lengths, values = [], lists
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        require(not values.null_count, f"A row of {prefix} from row {first} on has no codes.", "Leave such rows out.")
        lengths.append(pc.list_value_length(values).to_numpy(zero_copy_only=False))
        values = pc.list_flatten(values)
    require(not values.null_count, f"A code of {prefix} from row {first} on is null.", "Leave such rows out.")
    numbers = values.to_numpy(zero_copy_only=False)
    starts = [np.concatenate([[0], np.cumsum(each)]) for each in lengths]
    for row in range(len(lists)):
        shape, low, high = [], row, row + 1
        for level, each in zip(lengths, starts, strict=True):
            sizes = set(level[low:high].tolist())
            require(
                len(sizes) == 1,
                f"Row {first + row} of {prefix} has lists of different lengths in it: {sorted(sizes)[:5]}.",
                "The codes of a row are a rectangle.",
            )
            shape.append(sizes.pop())
            low, high = int(each[low]), int(each[high])
        yield numbers[low:high].reshape(shape)


def _axes_of(kind: Any, axes: Axes | None, what: str) -> Axes:
    """The axes of a column of lists; refused with the readings where there are several."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    require(
        depth > 0 and pa.types.is_integer(kind),
        f"{what} is {kind}{' in lists' * bool(depth)}.",
        "Give a column of lists of whole numbers: --codes-column.",
    )
    if axes is None and depth == 1:
        return "l"
    if axes is None or len(axes) != depth:
        readings = [f"{letters} ({_READINGS[letters]})" for letters in get_args(Axes) if len(letters) == depth]
        said = "" if axes is None else f", which is not --axes {axes}"
        raise DataError(
            f"{what} has lists in lists, {depth} deep{said}.",
            f"Say what their axes are by --axes: {', '.join(readings)}.",
        )
    return axes


def _check_columns(schema: pa.Schema, wanted: list[str], what: str) -> None:
    for column in wanted:
        if column not in schema.names:
            raise DataError(
                f"{what} has no column {shown(column)}.",
                f"Choose --codes-column (and --label-column) of {', '.join(map(shown, schema.names))}.",
            )


def _check_integers(dtype: np.dtype, what: str) -> None:
    require(dtype.kind in "iu", f"{what} holds {dtype}, not whole numbers.", "Codes are whole numbers from 0 on.")


def _class_names(schema: pa.Schema, label_column: str | None) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, which `datasets` keeps in the file's metadata."""
    from datasets import Features

    try:
        return tuple(Features.from_arrow_schema(schema)[label_column].names)  # type: ignore[index]
    except Exception:  # no label column, no metadata, or of another kind
        return None


def _count(shape: tuple[int, ...], axes: str) -> str:
    """Such as "8 rows, each a sequence (1,000)"."""
    if len(shape) == len(axes):
        return f"{_READINGS[axes]} ({_shape(shape)})"
    return f"{shape[0]:,} rows, each {_READINGS[axes]} ({_shape(shape[1:])})"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)

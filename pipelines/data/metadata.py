"""Labels in metadata.csv, .jsonl and .parquet beside pictures, as the imagefolder of `datasets` reads them."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codegrid.names import shown
from codegrid.pipelines.data.labels import LABEL_NAMES, NoClassesError, labels_of, no_classes, typed
from codegrid.pipelines.data.records import DataConfig, DataError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE_NAME = "file_name"


@dataclass
class Metadata:
    """Args:
    files: the metadata files, below the root.
    columns: a value for each row; all but the file's name.
    rows: picture's path below the root -> row.
    """

    files: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def label_column(self, config: DataConfig) -> str | None:
        """The column of the labels: the one that is asked for, or the first with a known name."""
        names = LABEL_NAMES if config.label_column is None else (config.label_column,)
        return next((name for name in names if name in self.columns), None)

    def labels(
        self, column: str, paths: list[str], known: list[str] | None, where: str
    ) -> tuple[list[int | None], list[str] | None]:
        """(the class of each picture or None where it is not known, the classes' names).

        Raises:
            NoClassesError: the column holds no classes.
        """
        values = self.columns[column]
        try:
            found = labels_of(values, known, where, column)
            numbers = [found.number(value) for value in values]
        except NoClassesError as error:
            raise no_classes(error.reason, f"Column {column} of {self.files[0]} in {where}") from error
        return [numbers[self.rows[path]] if path in self.rows else None for path in paths], found.names


def read_metadata(root: Path, names: Iterable[str]) -> Metadata:
    """What the metadata files `names` (paths below `root`) say of pictures; files are named relative to each.

    Raises:
        DataError: one cannot be read, or names no files.
    """
    metadata = Metadata()
    total = 0
    for name in sorted(names):
        try:
            columns = _READERS[posixpath.splitext(name)[1].lower()](root / name)
        except (ValueError, OSError, csv.Error, pa.ArrowException, AttributeError) as error:
            raise DataError(f"{shown(root / name)} cannot be read: {error}.", "Mend it, or move it away.") from error
        if _FILE_NAME not in columns:
            continue  # a file of another use
        files = [None if file is None else str(file) for file in columns.pop(_FILE_NAME)]
        folder = posixpath.dirname(name)
        for row, file in enumerate(files):
            if file:
                metadata.rows[posixpath.normpath(posixpath.join(folder, file))] = total + row
        for column in (*metadata.columns, *columns):
            before = metadata.columns.setdefault(column, [None] * total)
            if len(before) == total:
                before.extend(columns.get(column, [None] * len(files)))
        metadata.files.append(name)
        total += len(files)
    return metadata


def _of_csv(path: Path) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name is not None]
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: values if name == _FILE_NAME else typed(values) for name, values in columns.items()}


def _of_jsonl(path: Path) -> dict[str, list[Any]]:
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _of_parquet(path: Path) -> dict[str, list[Any]]:
    return pq.read_table(path).to_pydict()


_READERS = {".csv": _of_csv, ".jsonl": _of_jsonl, ".parquet": _of_parquet}

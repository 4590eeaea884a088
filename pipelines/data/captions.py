"""Texts that belong to pictures: a column, a field, a .txt file beside each picture, or the name of its class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Value

from codegrid.names import shown
from codegrid.pipelines.data.folders import FolderReader, walk
from codegrid.pipelines.data.metadata import read_metadata
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, ImageStream
from codegrid.pipelines.data.webdataset import WebDatasetReader, texts_of_samples

TXT, CLASS, COLUMN = "txt", "class", "column:"
_MOST_BYTES = 1 << 20  # of a .txt file


class Captions:
    """The text of each picture of a source by its source id.

    Args:
        how: "txt", "class" or "column:NAME".

    Raises:
        DataError: the source has no such texts.
    """

    def __init__(self, config: DataConfig, images: ImageStream, how: str) -> None:
        self.class_names = images.class_names
        self.how, self.texts, self.root = how, None, None
        reader = images.reader
        if how == CLASS:
            if not images.class_names:
                raise DataError(f"captions is 'class', and {images.description} has no classes.", "Give other texts.")
        elif how == TXT and isinstance(reader, FolderReader):
            self.root = reader.root
        elif how == TXT and isinstance(reader, WebDatasetReader):
            self.texts = _of_samples(reader, "txt")
        elif how.startswith(COLUMN) and len(how) > len(COLUMN) and isinstance(images, ImageSource):
            self.texts = _of_column(config, images, how.removeprefix(COLUMN))
        else:
            raise DataError(
                f"captions is {how!r}, and {images.description} has no such texts.",
                "Give column:NAME, txt (a .txt file beside each picture, or a field of a WebDataset) or class; of a "
                "table that is not streamed.",
            )

    def of(self, source_id: str, data: bytes | Path, label: int | None) -> str | None:
        """The text of a picture; None if it has none."""
        if self.how == CLASS:
            return None if label is None or label < 0 else (self.class_names or [])[label]
        if self.texts is not None:
            return self.texts.get(source_id)
        assert isinstance(data, Path)  # of a folder
        try:
            with data.with_suffix(".txt").open("rb") as file:
                return file.read(_MOST_BYTES).decode("utf-8", "surrogateescape").strip() or None
        except OSError:
            return None


def _of_column(config: DataConfig, images: ImageSource, column: str) -> dict[str, str]:
    """The column's texts by source id."""
    reader = images.reader
    if isinstance(reader, WebDatasetReader):
        return _of_samples(reader, column)
    if isinstance(reader, FolderReader):
        metadata = read_metadata(reader.root, walk(reader.root, config.follow_links).metadata)
        columns, names = metadata.columns, reader.names()
        _check(column, columns, images)
        pairs = [
            (name, columns[column][metadata.rows[path]])
            for name, path in zip(names, reader.paths, strict=True)
            if path in metadata.rows
        ]
        return _texts(pairs, column)
    table = reader.every
    _check(column, table.column_names, images)
    kind = table.features[column]
    if not isinstance(kind, (Value, ClassLabel)):
        raise _no_texts(column, type(kind).__name__)
    found = table[column]
    if isinstance(kind, ClassLabel):
        found = [None if number is None or number < 0 else kind.int2str(number) for number in found]
    return _texts(zip(reader.names(), found, strict=True), column)


def _of_samples(reader: WebDatasetReader, field: str) -> dict[str, str]:
    found = texts_of_samples(reader, field)
    if not found:
        raise DataError(
            f"The samples in {shown(reader.files[0])} have no field {field!r}.", "Name the field of the texts."
        )
    return found


def _check(column: str, columns: Any, images: ImageStream) -> None:
    if column not in columns:
        raise DataError(
            f"{images.description} has no column {column!r} of texts.",
            f"Choose among {', '.join(map(shown, columns)) or 'none: add a metadata file'}.",
        )


def _texts(pairs: Iterable[tuple[str, Any]], column: str) -> dict[str, str]:
    found = {}
    for name, text in pairs:
        if not isinstance(text, (str, int, float, type(None))):
            raise _no_texts(column, type(text).__name__)
        if text is not None and text != "":
            found[name] = str(text)
    return found


def _no_texts(column: str, kind: str) -> DataError:
    return DataError(f"The column {column!r} holds no texts, but {kind}.", "Name a column with a text in each row.")

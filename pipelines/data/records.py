"""The records that every source of pictures gives, and the two shapes a source has: by index, and as a stream."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from codegrid.errors import CodegridError
from codegrid.tokenizer.fields import younger

# Values of data.label_column that are no names of columns: read no labels; a folder's subfolders, whatever a metadata
# file says.
NO_LABELS, FOLDER_LABELS = "none", "folder"
_EDGE_BYTES = 16 * 1024  # at each end of a picture's file: what small pictures consist of


class DataError(CodegridError):
    """The data cannot be read as asked; the message is a sentence that says what to do."""


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from.

    Args:
        source: a folder of images (the first level of subfolders gives the labels; subfolders named train, val, test
            and the like are splits instead, with the label folders inside), a Parquet or WebDataset (.tar) file or a
            folder of them, or the name of a data set on the Hugging Face Hub. docs/data.md shows every layout.
        split: the split to read. A single file and a folder without split folders have one, "train". In a folder of
            images, "val" finds the only folder of that kind, such as Validation or val2017.
        validation_split: the split to validate on, where the data has one.
        validation_fraction: share of the pictures held out for validation where no validation_split is given; the same
            pictures for every seed. At least one picture, unless it is 0.
        image_column: the column with the pictures; found by its type where not given.
        label_column: the column with the classes; found where not given (`label`, `cls`, or the first ClassLabel).
            "none" reads no labels. In a folder of images it is a column of metadata.csv, .jsonl or .parquet, or
            "folder" for the names of the subfolders.
        subset: the configuration of a Hub data set that has several.
        revision: branch, tag or commit of a Hub data set.
        streaming: read while downloading, without a copy on disk. For tokenizing; training needs all rows at hand.
        top_folders: what the first level of folders is in a folder of images. "auto" finds it out, and asks where both
            can be meant.
        follow_links: in a folder of images, read links to folders and links to files outside of it.
        limit: read so many pictures of a split, for a first try. They are those whose names hash lowest: a mixture of
            all classes, the same each time, and a larger limit adds to a smaller one's. Of a stream, the first ones.
    """

    source: str
    split: str = "train"
    validation_split: str | None = None
    validation_fraction: float = 0.05
    image_column: str | None = None
    label_column: str | None = None
    subset: str | None = None
    revision: str | None = None
    streaming: bool = False
    top_folders: Literal["auto", "splits", "classes"] = younger("auto")
    follow_links: bool = younger(False)
    limit: int | None = younger(None)

    def __post_init__(self) -> None:
        if not self.source:
            raise DataError("data.source is empty.", "Give a folder, a Parquet or .tar file, or a Hub data set's name.")
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"data.validation_fraction is {self.validation_fraction}.", "It must lie in [0, 1).")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"data.limit is {self.limit}.", "Give at least 1, or leave it out to read all pictures.")
        if self.top_folders not in ("auto", "splits", "classes"):
            raise DataError(f"data.top_folders is {self.top_folders!r}.", "It must be auto, splits or classes.")


@dataclass(frozen=True)
class PicturesConfig(DataConfig):
    """Pictures that need not be given: the fields of `DataConfig`, without a source until one is given.

    Args:
        validation_split: not used here.
        validation_fraction: not used here.
        streaming: not used here.
    """

    source: str = ""

    def __post_init__(self) -> None:
        if self.source:
            super().__post_init__()


class ImageRecord(NamedTuple):
    """One picture, not yet decoded: bytes or path for `load_image`, label (None: not known), and a stable name.

    The name is the path below the source for folders, "<file name or split>:<row>" for tables, with ":<key>" of the
    WebDataset sample behind it. It is unique within the split and the same for streamed and for stored data.
    """

    data: bytes | Path
    label: int | None
    source_id: str


@dataclass(frozen=True)
class Understood:
    """How a source was read, for people (`describe_source` in understood.py makes lines of it).

    Args:
        kind: such as "folder of images".
        splits: pictures of each split; None where nobody has counted them.
        split: the one that is read.
        pictures: the column or field that the pictures are taken from; None where there are none.
        pictures_left: further ones that could have been.
        labels: what the labels are taken from; None where there are no labels.
        others: further columns or fields, with what they hold.
        class_counts: pictures of each class of the split, in the order of the class names.
        unread: files that are not read, by suffix.
        links: links that are not followed.
        notes: further lines.
    """

    kind: str
    splits: dict[str, int | None]
    split: str
    pictures: str | None = None
    pictures_left: tuple[str, ...] = ()
    labels: str | None = None
    others: tuple[str, ...] = ()
    class_counts: list[int] | None = None
    unread: dict[str, int] = field(default_factory=dict)
    links: int = 0
    notes: tuple[str, ...] = ()


class ImageStream:
    """Records in a fixed order, with bounded memory and no length. Iterating again starts anew.

    Args:
        class_names: the names of the labels, or None where there are none (or, streaming, where they are bare numbers).
        description: one line for the log.
        fingerprint: changes with the data: from names, sizes and times of a folder's files, sizes and edges (first and
            last 64 KiB) of table files, or repository and commit on the Hub.
        understood: how the source was read.
    """

    understood: Understood | None = None

    def __init__(self, reader: Any, class_names: list[str] | None, description: str, fingerprint: str) -> None:
        self.reader, self.class_names = reader, class_names
        self.description, self.fingerprint = description, fingerprint

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.reader)


class ImageSource(ImageStream):
    """Records by index, in a fixed order; can be pickled into DataLoader workers. Attributes: see ImageStream."""

    indices: np.ndarray | None = None  # int64: the reader's rows that are part of this source; None: all
    origin: ImageSource | None = None  # that this one is a part of

    @property
    def whole(self) -> ImageSource:
        return self.origin or self

    def __len__(self) -> int:
        return len(self.reader) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> ImageRecord:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)}.")
        index = index % len(self)
        return self.reader[int(index if self.indices is None else self.indices[index])]

    def __iter__(self) -> Iterator[ImageRecord]:
        if self.indices is None:
            return iter(self.reader)
        return (self[index] for index in range(len(self)))

    def names(self) -> list[str]:
        """The source id of each record, in order."""
        names = self.reader.names()
        return names if self.indices is None else [names[index] for index in self.indices]

    def subset(self, indices: np.ndarray, name: str) -> ImageSource:
        """The records at `indices` of this source, in that order; `name` says in the description what they are."""
        indices = np.asarray(indices, dtype=np.int64)
        mark = sha256(self.fingerprint, hashlib.sha256(indices.tobytes()).hexdigest())
        part = ImageSource(self.reader, self.class_names, f"{self.description}; {name}: {len(indices):,}", mark)
        part.understood = self.understood
        part.indices = indices if self.indices is None else self.indices[indices]
        part.origin = self.whole
        return part


def content_hash(data: bytes | Path) -> str:
    """sha256 of a picture's bytes; "" where they cannot be read."""
    if not isinstance(data, Path):
        return hashlib.sha256(data).hexdigest()
    try:
        digest = hashlib.sha256()
        with data.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError:
        return ""


def content_of(hashes: dict[str, str]) -> str:
    """One hash over the contents of several pictures by their names."""
    return sha256("content", sorted(hashes.items()))


def picture_marks(source: ImageSource) -> Iterator[bytes]:
    """A hash of 8 bytes for each picture of all that `source` was taken from: name, size and time of a folder's files.

    Of a table it is the fingerprint alone: its rows have no times of their own.
    """
    names = source.reader.names() if hasattr(source.reader, "file_marks") else []
    marks = source.reader.file_marks(names) if names else None
    if marks is None:
        yield hashlib.blake2b(source.whole.fingerprint.encode(), digest_size=8).digest()
        return
    for name, mark in zip(names, marks, strict=True):
        yield hashlib.blake2b(f"{os.fsencode(name)!r}{mark}".encode(), digest_size=8).digest()


def picture_contents(source: ImageSource) -> Iterator[bytes]:
    """Like `picture_marks`, from what the files hold: name, size and edges, which a copy of the files has too.

    A picture is compressed, so that another picture of the same size differs in its last bytes as well.
    """
    names = source.reader.names() if hasattr(source.reader, "file_marks") else []
    if not names:
        yield from picture_marks(source)
        return
    for index, name in enumerate(names):
        yield hashlib.blake2b(
            f"{os.fsencode(name)!r}{_edges(source.reader[index].data)}".encode(), digest_size=8
        ).digest()


def _edges(data: bytes | Path) -> str:
    """Size, and a hash of the first and last bytes; "" where they cannot be read."""
    if not isinstance(data, Path):
        return f"{len(data)} {hashlib.sha256(data[:_EDGE_BYTES] + data[-_EDGE_BYTES:]).hexdigest()}"
    try:
        with data.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            read = file.read(_EDGE_BYTES)
            file.seek(max(0, size - _EDGE_BYTES))
            return f"{size} {hashlib.sha256(read + file.read(_EDGE_BYTES)).hexdigest()}"
    except OSError:
        return ""


def check_split(split: str, splits: list[str], where: Any) -> None:
    if split not in splits:
        raise DataError(f"{where} has no split {split!r}.", f"Choose data.split among {', '.join(splits)}.")


def numbered(values: list[str], names: list[str], where: str) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted(set(values) - set(names)):
        raise DataError(
            f"{where} has classes that the training split lacks: {', '.join(unknown[:8])}.",
            "Move their pictures away, or add some to the training split.",
        )
    return np.array([numbers[value] for value in values], dtype=np.int32)


def describe_classes(names: list[str] | None) -> str:
    return f" in {len(names):,} classes" if names else ", no labels"


def sha256(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

"""WebDataset: tar files whose members of one name up to the first dot are the fields of one sample.

Read without a copy: the tars' headers are walked once, and a picture is read from its place in its tar.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codegrid.names import shown
from codegrid.pipelines.data.labels import LABEL_NAMES, NoClassesError, labels_of, no_classes, typed
from codegrid.pipelines.data.records import NO_LABELS, DataConfig, DataError, ImageRecord
from codegrid.tokenizer.images import ARRAY_EXTENSION, IMAGE_EXTENSIONS

# As the webdataset library splits a name: hidden files and those without a suffix are no fields.
_KEY_AND_FIELD = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_PICTURE_STEMS = ("image", "img", "picture")
_JSON = ("json", "jsn")
_MOST_LABEL_BYTES = 1 << 20


@dataclass
class Sample:
    """Args:
    key: the name up to the first dot.
    tar: number of its file.
    fields: name -> offset and size of its bytes.
    texts: the bytes of those fields that may hold labels.
    """

    key: str
    tar: int
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


class WebDatasetReader:
    """Pictures by their places: `tars`, `offsets`, `sizes`, `numbers` (of the samples in the split) are [N] int64."""

    def __init__(self, files: list[str], prefix: str, places: np.ndarray, keys: list[str], labels: np.ndarray | None):
        self.files, self.prefix, self.places, self.keys, self.labels = files, prefix, places, keys, labels

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> ImageRecord:
        tar, offset, size, _ = self.places[index].tolist()
        try:
            with open(self.files[tar], "rb") as handle:
                handle.seek(offset)
                data = handle.read(size)
        except OSError as error:
            raise DataError(
                f"{shown(self.files[tar])} cannot be read: {error.strerror}.",
                "Bring the file back, then run the same command again.",
            ) from error
        label = None if self.labels is None or self.labels[index] < 0 else int(self.labels[index])
        return ImageRecord(data, label, self._name(index))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def names(self) -> list[str]:
        return [self._name(index) for index in range(len(self))]

    def _name(self, index: int) -> str:
        return f"{self.prefix}:{self.places[index, 3]}:{shown(self.keys[index])}"


@dataclass
class Opened:
    """A split of a WebDataset, and what was taken of it."""

    reader: WebDatasetReader
    class_names: list[str] | None
    class_counts: list[int] | None
    picture: str
    label: str | None
    pictures_left: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]


def open_webdataset(config: DataConfig, files: list[str], prefix: str, known: list[str] | None, where: str) -> Opened:
    """The pictures in the tars `files`; the names of the records begin with `prefix`.

    Args:
        known: class names of the training split.

    Raises:
        DataError: a tar is damaged, a sample has several pictures, or the labels are none.
    """
    places, keys, values = [], [], []
    taken, labels, left, others = Counter(), Counter(), Counter(), Counter()
    without = 0
    for number, sample in enumerate(
        sample for tar, file in enumerate(files) for sample in _samples(file, tar, config.label_column)
    ):
        picture, further = _picture(sample, config, where)
        if picture is None:
            without += 1
            continue
        label, value = _label(sample, picture, config)
        taken[picture] += 1
        labels.update([label] if label else [])
        left.update(further)
        others.update(name for name in sample.fields if name not in (picture, label, *further))
        places.append((sample.tar, *sample.fields[picture], number))
        keys.append(sample.key)
        values.append(value)
    if config.image_column and not taken:
        raise DataError(
            f"{where} has no field {config.image_column!r} for data.image_column: {_listed(others)}.",
            "Choose one of these.",
        )
    if config.label_column not in (None, NO_LABELS) and not labels:
        raise DataError(
            f"{where} has no field {config.label_column!r} for data.label_column: {_listed(others)}.",
            "Choose one of these.",
        )
    notes = [f"{without:,} samples without a picture are left out"] if without else []
    numbers, names, counts = _numbered(values, known, where, labels, config, notes)
    reader = WebDatasetReader(files, prefix, np.array(places, np.int64).reshape(-1, 4), keys, numbers)
    label = _short(labels) if numbers is not None else None
    return Opened(reader, names, counts, _short(taken), label, tuple(left), tuple(others)[:20], tuple(notes))


def texts_of_samples(reader: WebDatasetReader, field: str) -> dict[str, str]:
    """The texts in a field of the samples, by the names of the records."""
    numbered = enumerate(sample for tar, file in enumerate(reader.files) for sample in _samples(file, tar, field))
    return {
        f"{reader.prefix}:{number}:{shown(sample.key)}": _text(sample.texts[field])
        for number, sample in numbered
        if field in sample.texts
    }


def _numbered(
    values: list[Any], known: list[str] | None, where: str, labels: Counter, config: DataConfig, notes: list[str]
) -> tuple[np.ndarray | None, list[str] | None, list[int] | None]:
    if not labels:
        return None, None, None
    values = typed(values)
    try:
        found = labels_of(values, known, where, _short(labels))
        numbers = [found.number(value) for value in values]
    except NoClassesError as error:
        if config.label_column:
            raise no_classes(error.reason, f"Field {config.label_column} of {where}") from error
        notes.append(f"field {_short(labels)} is not taken for the labels: {error.reason}")
        return None, None, None
    array = np.array([-1 if number is None else number for number in numbers], np.int32)
    counts = None if found.names is None else np.bincount(array[array >= 0], minlength=len(found.names)).tolist()
    return array, found.names, counts


def _samples(file: str, tar: int, label: str | None) -> Iterator[Sample]:
    """The samples of a tar in order: members that follow one another with one key. `label` is the field asked for."""
    size = os.path.getsize(file)
    sample: Sample | None = None
    try:
        with tarfile.open(file, "r:", errors="surrogateescape") as archive:
            for member in archive:
                found = _KEY_AND_FIELD.fullmatch(member.name)
                if not member.isfile() or found is None:
                    continue
                key, name = found[1], found[2]
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"{shown(file)} stops in the middle of {shown(member.name)}.", "Copy or download it again."
                    )
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key, tar)
                if name in sample.fields:
                    raise DataError(
                        f"{shown(file)} has {shown(member.name)} twice in one sample.",
                        "Give each sample a name of its own.",
                    )
                sample.fields[name] = (member.offset_data, member.size)
                small = member.size <= _MOST_LABEL_BYTES
                if small and (name == label or name.rpartition(".")[2].lower() in (label, *LABEL_NAMES, *_JSON)):
                    opened = archive.extractfile(member)
                    assert opened is not None  # it is a file
                    sample.texts[name] = opened.read()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{shown(file)} cannot be read: {error}.", "Check that it is whole, and a tar that is not compressed."
        ) from error
    if sample is not None:
        yield sample


def _picture(sample: Sample, config: DataConfig, where: str) -> tuple[str | None, list[str]]:
    """(the field with the picture, further ones that could be); None where the sample has none."""
    if config.image_column:
        return (config.image_column if config.image_column in sample.fields else None), []
    found = [name for name in sample.fields if f".{name.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS]
    if not found:  # an array beside a picture is mostly something else
        found = [name for name in sample.fields if f".{name.rpartition('.')[2].lower()}" == ARRAY_EXTENSION]
    if not found:
        return None, []
    for known in (_is_plain, _has_known_stem):
        chosen = [name for name in found if known(name)]
        if len(found) == 1 or len(chosen) == 1:
            picture = (chosen or found)[0]
            return picture, [name for name in found if name != picture]
    dotted = ""
    if not any(map(_is_plain, found)):
        dotted = (
            " A name is cut at its first dot, and what stands behind it is the field: if these are pictures of their "
            "own, rename them (frame_0.png instead of frame.0.png)."
        )
    raise DataError(
        f"Sample {shown(sample.key)!r} of {where} has {len(found)} pictures: {', '.join(map(shown, found[:8]))}.",
        f"Name the field that is meant with data.image_column.{dotted}",
    )


def _is_plain(name: str) -> bool:
    return "." not in name


def _has_known_stem(name: str) -> bool:
    return name.rpartition(".")[0].lower() in _PICTURE_STEMS


def _label(sample: Sample, picture: str, config: DataConfig) -> tuple[str | None, Any]:
    """(where the label stands, its value): of the picture's own stem first, then the sample's, then in its JSON."""
    if config.label_column == NO_LABELS:
        return None, None
    if config.label_column in sample.texts:
        return config.label_column, _text(sample.texts[config.label_column])
    stem = picture.rpartition(".")[0]
    stems = [f"{stem}.", ""] if stem else [""]
    keys = LABEL_NAMES if config.label_column is None else (config.label_column,)
    for name in (f"{stem}{name}" for stem in stems for name in keys):
        if name in sample.texts:
            return name, _text(sample.texts[name])
    for name in (f"{stem}{name}" for stem in stems for name in _JSON):
        if name not in sample.texts:
            continue
        try:
            values = json.loads(sample.texts[name])
        except ValueError:
            continue
        for key in keys:
            key = key.removeprefix(f"{name}.")
            if isinstance(values, dict) and key in values:
                return f"{name}.{key}", values[key]
    return None, None


def _text(data: bytes) -> str:
    return shown(data.decode("utf-8", "surrogateescape").strip())


def _short(fields: Counter) -> str:
    """One name for the fields that were taken: theirs, or their suffixes where they differ."""
    if len(fields) == 1:
        return shown(next(iter(fields)))
    return "+".join(sorted({shown(name.rpartition(".")[2]) for name in fields}))


def _listed(fields: Counter) -> str:
    return "its fields are " + (
        ", ".join(f"{shown(name)} ({count})" for name, count in fields.most_common(8)) or "none"
    )

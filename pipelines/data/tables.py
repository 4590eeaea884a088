"""Pictures in tables: Parquet and WebDataset files, and data sets of the Hub, read through `datasets`."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codegrid.pipelines.data.records import (
    NO_LABELS,
    DataConfig,
    DataError,
    ImageRecord,
    ImageSource,
    ImageStream,
    check_split,
    describe_classes,
    numbered,
    sha256,
)
from codegrid.tokenizer.images import IMAGE_EXTENSIONS

TABLES = {".parquet": "parquet", ".tar": "webdataset"}
_LABEL_NAMES = ("label", "cls", "labels", "class")
_IMAGE_NAMES = ("image", "img", "picture", "bytes", *(extension[1:] for extension in IMAGE_EXTENSIONS))
_MAX_CLASSES = 100_000
_EDGE_BYTES = 65_536


class _TableReader:
    """Rows of a `datasets` Dataset or IterableDataset; `labels` gives the numbers of a column that holds names."""

    def __init__(
        self, table: Any, image: str, label: str | None, labels: dict[str, int] | None, prefix: str, paths: bool
    ):
        self.table, self.image, self.label, self.labels = table, image, label, labels
        self.prefix, self.paths = prefix, paths

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> ImageRecord:
        return self._record(self.table[index], index)

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self._record(row, index) for index, row in enumerate(self.table))

    def names(self) -> list[str]:
        keys = self.table["__key__"][:] if "__key__" in self.table.column_names else None
        return [self._name(index, keys[index] if keys else None) for index in range(len(self))]

    def _name(self, index: int, key: str | None) -> str:
        return f"{self.prefix}:{index}" if key is None else f"{self.prefix}:{index}:{key}"

    def _record(self, row: dict[str, Any], index: int) -> ImageRecord:
        picture = row[self.image] or {}
        data = picture.get("bytes")
        if data is None:  # a null picture is an empty one: skipped and counted where it is decoded
            data = _at(picture["path"]) if self.paths and picture.get("path") else b""
        label = row[self.label] if self.label else None
        if self.labels is not None and label is not None:
            label = self.labels[label]
        label = None if label is None or label < 0 else int(label)  # -1 is the Hub's "not known"
        return ImageRecord(data, label, self._name(index, row.get("__key__")))


def _at(path: str) -> bytes | Path:
    if "://" not in path:
        return Path(path)
    with fsspec.open(path, "rb") as handle:  # a streamed image folder of the Hub
        return handle.read()


def open_table(config: DataConfig, path: Path | None, suffix: str, class_names: list[str] | None) -> ImageStream:
    name = str(path) if path else config.source
    builder = _builder(config, path, suffix)
    table = _load(builder, config, name)
    image, label = _columns(config, table, name)
    # A row of an untrusted Parquet file must not name a file of this machine; an image folder on the Hub has to.
    paths = builder.name == "imagefolder"
    keep = [column for column in (image, label, "__key__") if column and column in table.column_names]
    table = table.select_columns(keep).cast_column(image, datasets.Image(decode=False))
    names, numbers = _labels(table, label, config, class_names, name)
    prefix = path.name if path and path.is_file() else config.split
    reader = _TableReader(table, image, label, numbers, prefix, paths)
    mark = sha256(config.split, _file_marks(builder, config.split, path), image, label, names)
    columns = f"split {config.split}, column {image}" + (f", labels {label}" if label else "")
    if config.streaming:
        return ImageStream(reader, names, f"{name}: images as a stream{describe_classes(names)} ({columns})", mark)
    if not len(table):
        raise DataError(f"{name} has no rows in split {config.split}: choose another with data.split.")
    return ImageSource(reader, names, f"{name}: {len(table):,} images{describe_classes(names)} ({columns})", mark)


def _builder(config: DataConfig, path: Path | None, suffix: str) -> Any:
    try:
        if path is None:
            return datasets.load_dataset_builder(config.source, config.subset, revision=config.revision)
        where, files = str(path), {}
        if path.is_file():
            where, files = TABLES[suffix], {"data_files": {"train": [glob.escape(str(path))]}}
        builder = datasets.load_dataset_builder(where, **files)
        if builder.name == TABLES[suffix]:
            # `datasets` names its cache of a folder by the folder's base name and its card. The description is part of
            # that name too, and says which files they are.
            return datasets.load_dataset_builder(where, description=_state_of_files(builder), **files)
    except Exception as error:  # the loader raises whatever its many back ends raise
        if path is not None:
            raise DataError(f"{path} cannot be read as {TABLES[suffix]} data: {error}") from error
        raise DataError(
            f"{config.source} is neither a file nor a folder here, and no data set of that name could be loaded from "
            f"the Hugging Face Hub: {error}. Check the name, the network, and for private data sets `hf auth login`."
        ) from error
    raise DataError(
        f"{path} mixes {suffix} with other data ({builder.name}): keep the {suffix} files in their own folder."
    )


def _state_of_files(builder: Any) -> str:
    """Changes when a file is another one, has another size, or was written to."""
    states = []
    for split, files in builder.config.data_files.items():
        for file in files:
            status = os.stat(file)
            # The time of the last change of the inode moves where a copy sets the modification time back.
            states.append((str(split), file, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return sha256(states)


def _load(builder: Any, config: DataConfig, name: str) -> Any:
    try:
        if config.streaming:
            splits = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            splits = builder.info.splits
        for part in [config.split] if config.streaming else _split_names(config.split):
            check_split(part, list(splits), name)
        if not config.streaming:
            _check_rows(builder, config.split, name)
            return builder.as_dataset(split=config.split)
        stream = splits[config.split]
        return stream if stream.features else stream._resolve_features()  # some kinds of files have to be read for it
    except DataError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise DataError(f"{name} cannot be read: {cause}. Check that its files are whole and of one kind.") from error


def _check_rows(builder: Any, split: str, name: str) -> None:
    """Whether the cache holds as many rows as the files say."""
    if builder.name != TABLES[".parquet"]:
        return
    for part in _split_names(split):
        files = [file for file in builder.config.data_files[part] if "://" not in file]
        rows, cached = sum(pq.read_metadata(file).num_rows for file in files), builder.info.splits[part].num_examples
        if files and rows != cached:
            raise DataError(
                f"The files of {name} hold {rows:,} rows in split {part}, and the cache of `datasets` holds "
                f"{cached:,}: remove {builder.cache_dir}, and they are read again."
            )


def _split_names(split: str) -> list[str]:
    """The names in a split as `datasets` writes it, such as "train[:10%]+test"."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _columns(config: DataConfig, table: Any, name: str) -> tuple[str, str | None]:
    """The picture's and the label's column."""
    features = table.features
    listed = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
    for option, column in (("image_column", config.image_column), ("label_column", config.label_column)):
        if column and column != NO_LABELS and column not in features:
            raise DataError(f"{name} has no column {column!r} for data.{option}: its columns are {listed}.")
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    stored = [
        column for column, feature in features.items() if _kind(feature) in ("binary", "large_binary", "bytes, path")
    ]
    named = [column for column in stored if column.lower() in _IMAGE_NAMES]
    image = config.image_column or next(iter(typed + named), stored[0] if len(stored) == 1 else None)
    if image is None or image not in typed + stored:
        raise DataError(
            f"{name} has no column of images that could be read; name one with data.image_column: {listed}."
        )
    if config.label_column == NO_LABELS:
        return image, None
    usable = [column for column, feature in features.items() if _is_label(feature) and column != image]
    if config.label_column and config.label_column not in usable:
        raise DataError(f"Column {config.label_column} of {name} holds no classes (whole numbers or names): {listed}.")
    by_name = [column for column in _LABEL_NAMES if column in usable]
    by_type = [column for column in usable if isinstance(features[column], datasets.ClassLabel)]
    return image, config.label_column or next(iter(by_name + by_type), None)


def _kind(feature: Any) -> str:
    if isinstance(feature, dict):
        return ", ".join(sorted(feature))
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _is_label(feature: Any) -> bool:
    kind = _kind(feature)
    return isinstance(feature, datasets.ClassLabel) or kind in ("string", "large_string") or "int" in kind


def _labels(
    table: Any, label: str | None, config: DataConfig, known: list[str] | None, where: str
) -> tuple[list[str] | None, dict[str, int] | None]:
    """(class names, number of each name where the column holds names)."""
    feature = table.features[label] if label else None
    if feature is None:
        return None, None
    if isinstance(feature, datasets.ClassLabel):
        if known and known != feature.names:
            raise DataError(
                f"{where} numbers its classes otherwise in split {config.split} than in the training split."
            )
        return feature.names, None
    is_text = "string" in feature.dtype
    if config.streaming:
        if is_text:
            raise DataError(
                f"Column {label} of {where} holds names, which a stream cannot number: set data.streaming off."
            )
        return None, None
    values = sorted(value for value in pc.unique(table.data.column(label)).to_pylist() if value is not None)
    count = len(values) if is_text else max([-1, *values]) + 1
    if count > _MAX_CLASSES:
        raise DataError(
            f"Column {label} of {where} would make {count:,} classes: choose another with data.label_column."
        )
    if not count:
        return known, None
    names = known or (values if is_text else [str(number) for number in range(count)])
    numbered(values if is_text else [str(value) for value in values if value >= 0], names, where)
    return names, {name: number for number, name in enumerate(names)} if is_text else None


def _file_marks(builder: Any, split: str, path: Path | None) -> list[Any]:
    """What tells one version of the files from another, without reading them whole."""
    marks: list[Any] = [builder.config.name]
    files = builder.config.data_files or {}
    for name in (name for name in _split_names(split) if name in files):
        for file, origin in zip(files[name], files[name].origin_metadata, strict=True):
            if path is None:
                marks.append((name, file, *origin))
                continue
            size = os.path.getsize(file)
            with open(file, "rb") as handle:
                edges = handle.read(_EDGE_BYTES)
                handle.seek(max(0, size - _EDGE_BYTES))
                edges += handle.read()
            marks.append((name, os.path.basename(file), size, hashlib.sha256(edges).hexdigest()))
    return marks

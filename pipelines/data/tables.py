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
import pyarrow as pa
import pyarrow.parquet as pq

from codegrid.names import shown
from codegrid.pipelines.data.columns import choose_columns
from codegrid.pipelines.data.labels import Labels
from codegrid.pipelines.data.records import (
    DataConfig,
    DataError,
    ImageRecord,
    ImageSource,
    ImageStream,
    Understood,
    check_split,
    describe_classes,
    sha256,
)
from codegrid.pipelines.data.webdataset import open_webdataset

TABLES = {".parquet": "parquet", ".tar": "webdataset"}
_SAVED = ("state", "dataset_info")  # the files that save_to_disk writes beside its Arrow files
_EDGE_BYTES = 65_536


class _TableReader:
    """Rows of a `datasets` Dataset or IterableDataset; `labels` gives the numbers of the labels.

    `every` is the table with all of its columns.
    """

    every: Any = None

    def __init__(self, table: Any, image: str, label: str | None, labels: Labels | None, prefix: str, paths: bool):
        self.table, self.image, self.label, self.labels = table, image, label, labels
        self.prefix, self.paths = prefix, paths

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> ImageRecord:
        try:
            return self._record(self.table[index], index)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"Row {index} of {self.prefix} cannot be read: {error}.",
                "Check that its files are whole, then run the same command again.",
            ) from error

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self._record(row, index) for index, row in enumerate(self.table))

    def names(self) -> list[str]:
        keys = self.table["__key__"][:] if "__key__" in self.table.column_names else None
        return [self._name(index, keys[index] if keys else None) for index in range(len(self))]

    def _name(self, index: int, key: str | None) -> str:
        return f"{self.prefix}:{index}" if key is None else f"{self.prefix}:{index}:{shown(key)}"

    def _record(self, row: dict[str, Any], index: int) -> ImageRecord:
        picture = row[self.image] or {}
        data = picture.get("bytes")
        if data is None:  # a null picture is an empty one: skipped and counted where it is decoded
            data = _at(picture["path"]) if self.paths and picture.get("path") else b""
        label = self.labels.number(row[self.label]) if self.labels else None
        return ImageRecord(data, label, self._name(index, row.get("__key__")))


def _at(path: str) -> bytes | Path:
    if "://" not in path:
        return Path(path)
    with fsspec.open(path, "rb") as handle:  # a streamed image folder of the Hub
        return handle.read()


def open_table(config: DataConfig, path: Path | None, suffix: str, class_names: list[str] | None) -> ImageStream:
    name = shown(path) if path else config.source
    builder = _builder(config, path, suffix)
    marks = _file_marks(builder, config.split, path)
    prefix = path.name if path and path.is_file() else config.split
    if path is not None and suffix == ".tar":
        return _open_tars(config, builder, marks, shown(prefix), class_names, name)
    table = _load(builder, config, name)
    splits = dict.fromkeys(map(str, builder.config.data_files or [config.split]))
    if builder.info.splits:
        splits = {str(split): info.num_examples for split, info in builder.info.splits.items()}
    # A row of an untrusted Parquet file must not name a file of this machine; an image folder on the Hub has to.
    return _source_of(
        config, table, name, prefix, marks, class_names, splits, builder.name, builder.name == "imagefolder"
    )


def open_saved(config: DataConfig, root: Path, class_names: list[str] | None) -> ImageStream:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote: mapped as it lies there, no cache."""
    name = shown(root)
    try:
        table = datasets.load_from_disk(str(root))
    except Exception as error:  # the loader raises whatever its back ends raise
        raise DataError(
            f"{name} cannot be read as a folder of `save_to_disk`: {error}.", "Save it again with this `datasets`."
        ) from error
    splits = table if isinstance(table, dict) else {"train": table}
    check_split(config.split, list(splits), name)
    folder = root / config.split if isinstance(table, dict) else root
    files = sorted(str(file) for file in folder.glob("*.arrow"))
    marks = ["save_to_disk", *((config.split, *_file_mark(file)) for file in files)]
    counts = {split: len(part) for split, part in splits.items()}
    table = splits[config.split].with_format(None)
    return _source_of(config, table, name, config.split, marks, class_names, counts, "folder of save_to_disk", False)


def is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or all((root / f"{name}.json").is_file() for name in _SAVED)


def _source_of(
    config: DataConfig,
    table: Any,
    name: str,
    prefix: str,
    marks: list[Any],
    class_names: list[str] | None,
    splits: dict[str, int | None],
    kind: str,
    paths: bool,
) -> ImageStream:
    """The pictures in a table of `datasets`, in its one or other form."""
    columns = choose_columns(config, table, class_names, f"{name} (split {config.split})")
    image, label, names = columns.image, columns.label, columns.labels and columns.labels.names
    keep = [column for column in (image, label, "__key__") if column and column in table.column_names]
    every = table
    table = table.select_columns(keep).cast_column(image, datasets.Image(decode=False))
    reader = _TableReader(table, image, label, columns.labels, prefix, paths)
    reader.every = every
    mark = sha256(config.split, marks, image, label, names)
    what = f"split {config.split}, column {image}" + (f", labels {label}" if label else "")
    if config.streaming:
        source = ImageStream(reader, names, f"{name}: images as a stream{describe_classes(names)} ({what})", mark)
    else:
        if not len(table):
            raise DataError(f"{name} has no rows in split {config.split}.", "Choose another with data.split.")
        source = ImageSource(reader, names, f"{name}: {len(table):,} images{describe_classes(names)} ({what})", mark)
    source.understood = Understood(
        kind=kind,
        splits=splits,
        split=config.split,
        pictures=f"column {image}",
        pictures_left=columns.images_left,
        labels=f"column {label}" if label else None,
        others=columns.others,
        class_counts=columns.counts,
    )
    return source


def _open_tars(
    config: DataConfig, builder: Any, marks: list[Any], prefix: str, class_names: list[str] | None, name: str
) -> ImageStream:
    check_split(config.split, list(builder.config.data_files), name)
    found = open_webdataset(config, list(builder.config.data_files[config.split]), prefix, class_names, name)
    names = None if config.streaming and all(map(str.isdecimal, found.class_names or ())) else found.class_names
    mark = sha256(config.split, marks, found.picture, found.label, names)
    what = f"split {config.split}, column {found.picture}" + (f", labels {found.label}" if found.label else "")
    if not len(found.reader):
        raise DataError(f"{name} has no pictures in split {config.split}.", "Choose another with data.split.")
    if config.streaming:
        source = ImageStream(found.reader, names, f"{name}: images as a stream{describe_classes(names)} ({what})", mark)
    else:
        images = f"{len(found.reader):,} images{describe_classes(names)}"
        source = ImageSource(found.reader, names, f"{name}: {images} ({what})", mark)
    splits = dict.fromkeys(map(str, builder.config.data_files))
    source.understood = Understood(
        kind="WebDataset",
        splits={**splits, config.split: len(found.reader)},
        split=config.split,
        pictures=f"field {found.picture}",
        pictures_left=found.pictures_left,
        labels=f"field {found.label}" if found.label else None,
        others=found.others,
        class_counts=found.class_counts,
        notes=found.notes,
    )
    return source


def load_table(config: DataConfig, path: Path | None, **options: Any) -> Any:
    """The `datasets` table of Parquet files at `path` or of a data set of the Hub, with options of its loader.

    Raises:
        DataError: there is none that can be read, or no such split.
    """
    return _load(_builder(config, path, ".parquet", **options), config, config.source)


def _builder(config: DataConfig, path: Path | None, suffix: str, **options: Any) -> Any:
    try:
        if path is None:
            builder = datasets.load_dataset_builder(config.source, config.subset, revision=config.revision)
            if "/" not in config.source and builder.name == "cache":
                # Without a connection `datasets` looks for the name in its cache, where a folder of that base name,
                # read at some other time and place, has the same name.
                raise FileNotFoundError("its cache may hold another folder of that name")
            return builder
        where = str(path)
        if path.is_file():
            where, options = TABLES[suffix], {"data_files": {"train": [glob.escape(where)]}, **options}
        builder = datasets.load_dataset_builder(where, **options)
        if builder.name == TABLES[suffix]:
            # `datasets` names its cache of a folder by the folder's base name and its card. The description is part of
            # that name too, and says which files they are.
            return datasets.load_dataset_builder(where, description=_state_of_files(builder), **options)
    except Exception as error:  # the loader raises whatever its many back ends raise
        if path is not None:
            raise DataError(
                f"{path} cannot be read as {TABLES[suffix]} data: {str(error).rstrip('.')}.",
                "Check that its files are whole and of one kind.",
            ) from error
        raise DataError(
            f"{config.source} is neither a file nor a folder here, and no data set of that name could be loaded from "
            f"the Hugging Face Hub: {error}.",
            "Check the name, the network, and for private data sets `hf auth login`.",
        ) from error
    raise DataError(
        f"{path} mixes {suffix} with other data ({builder.name}).", f"Keep the {suffix} files in their own folder."
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
            # Arrow keeps what it read ahead as long as the process lives: some 200 bytes a row of 0.3 kB pictures.
            pa.default_memory_pool().release_unused()
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
        raise DataError(
            f"{name} cannot be read: {cause}.", "Check that its files are whole and of one kind."
        ) from error


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
                f"{cached:,}.",
                f"Remove {builder.cache_dir}, and they are read again.",
            )


def _split_names(split: str) -> list[str]:
    """The names in a split as `datasets` writes it, such as "train[:10%]+test"."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _file_marks(builder: Any, split: str, path: Path | None) -> list[Any]:
    """What tells one version of the files from another, without reading them whole."""
    marks: list[Any] = [builder.config.name]
    files = builder.config.data_files or {}
    for name in (name for name in _split_names(split) if name in files):
        for file, origin in zip(files[name], files[name].origin_metadata, strict=True):
            if path is None:
                marks.append((name, file, *origin))
                continue
            marks.append((name, *_file_mark(file)))
    return marks


def _file_mark(file: str) -> tuple[str, int, str]:
    size = os.path.getsize(file)
    with open(file, "rb") as handle:
        edges = handle.read(_EDGE_BYTES)
        handle.seek(max(0, size - _EDGE_BYTES))
        edges += handle.read()
    return os.path.basename(file), size, hashlib.sha256(edges).hexdigest()

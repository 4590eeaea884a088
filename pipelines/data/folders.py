"""Folders of picture files: what lies in them, and their pictures as records."""

from __future__ import annotations

import bisect
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codegrid.names import hidden, shown
from codegrid.pipelines.data.layouts import check_depth, find_split, top_folders_are_splits
from codegrid.pipelines.data.metadata import METADATA_NAMES, Metadata, read_metadata
from codegrid.pipelines.data.records import (
    FOLDER_LABELS,
    NO_LABELS,
    DataConfig,
    DataError,
    ImageRecord,
    ImageSource,
    ImageStream,
    Understood,
    check_split,
    describe_classes,
    numbered,
    sha256,
)
from codegrid.pipelines.data.tables import TABLES
from codegrid.tokenizer.images import ARRAY_EXTENSION, HAS_HEIF, IMAGE_EXTENSIONS

_NO_SUFFIX = "no suffix"
# Longest first bytes that a picture is known by.
_HEAD_BYTES = 16
_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"qoif")
_MAGICS += (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # JPEG 2000: its boxes, its codestream
_HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"heis", b"hevc")


@dataclass
class Files:
    """What lies in a folder.

    Args:
        images: path below the root -> bytes, modification time in ns.
        tables: paths of tables.
        metadata: paths of files that may hold labels.
        others: files that are not read, by suffix.
        arrays: files of arrays, like `images`; these are pictures only where there are no others.
    links: links that are not followed.
    """

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    arrays: dict[str, tuple[int, int]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    links: int = 0


def walk(root: Path, follow_links: bool) -> Files:
    """What lies in a folder. Hidden files are left out; without `follow_links` also links to folders and out of it.

    Raises:
        DataError: a folder cannot be read.
    """
    files = Files()
    pending = [(str(root), "", frozenset({_identity(root)}))]
    while pending:
        folder, below, ancestors = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{shown(folder)} cannot be read ({error.strerror}).", "Give it read permission, or move it."
            ) from error
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            relative = f"{below}{entry.name}"
            suffix = os.path.splitext(entry.name)[1].lower()
            if not os.path.exists(entry.path):
                files.others["dead link"] += 1
            elif suffix not in TABLES and entry.is_symlink() and not _is_followed(entry, root, follow_links):
                files.links += 1
            elif not entry.is_dir():
                _take(files, entry, relative)
            elif (identity := _identity(entry.path)) not in ancestors:  # a link to a folder around it has no end
                pending.append((entry.path, f"{relative}/", ancestors | {identity}))
    if not files.images and not files.tables:
        files.images, files.arrays = files.arrays, {}
    if files.arrays:
        files.others[ARRAY_EXTENSION] += len(files.arrays)
    if not files.images:  # a table of that name, and no metadata of anything
        files.tables += [name for name in files.metadata if Path(name).suffix in TABLES]
    return files


def _is_followed(link: os.DirEntry, root: Path, follow_links: bool) -> bool:
    return follow_links or (not link.is_dir() and Path(link.path).resolve().is_relative_to(root))


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _take(files: Files, entry: os.DirEntry, relative: str) -> None:
    status = entry.stat()
    suffix = os.path.splitext(entry.name)[1].lower()
    if not stat.S_ISREG(status.st_mode):  # a pipe, a device
        return
    if entry.name in METADATA_NAMES:
        files.metadata.append(relative)
    elif suffix in TABLES:
        files.tables.append(relative)
    elif suffix == ARRAY_EXTENSION:
        files.arrays[relative] = (status.st_size, status.st_mtime_ns)
    elif suffix in IMAGE_EXTENSIONS or (not suffix[1:].strip("0123456789") and _begins_like_a_picture(entry.path)):
        files.images[relative] = (status.st_size, status.st_mtime_ns)
    else:
        files.others[suffix if suffix[1:] else _NO_SUFFIX] += 1


def _begins_like_a_picture(path: str) -> bool:
    """Whether a file without a suffix (or with a number for one) is a picture by its first bytes."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(_HEAD_BYTES)
    except OSError:
        return False
    if head.startswith(_MAGICS):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":  # two letters are little: its four reserved bytes are 0
        return head[6:10] == bytes(4)
    if head[:1] == b"P":
        return head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3].isspace()
    return head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", *(_HEIF_BRANDS if HAS_HEIF else ()))


class FolderReader:
    """`stats` [N, 2] int64: bytes and modification time in ns of each path. `paths` is sorted."""

    def __init__(self, root: Path, paths: list[str], labels: np.ndarray | None, stats: np.ndarray) -> None:
        self.root, self.paths, self.labels, self.stats = root, paths, labels, stats

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageRecord:
        label = None if self.labels is None or self.labels[index] < 0 else int(self.labels[index])
        return ImageRecord(self.root / self.paths[index], label, shown(self.paths[index]))

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def names(self) -> list[str]:
        return [shown(path) for path in self.paths]

    def file_marks(self, names: list[str]) -> list[list[int]] | None:
        """Bytes and modification time of the files of these names; None if one is not there."""
        paths = [hidden(name) for name in names]
        places = [bisect.bisect_left(self.paths, path) for path in paths]
        if any(place == len(self) or self.paths[place] != path for place, path in zip(places, paths, strict=True)):
            return None
        return self.stats[places].tolist()


def open_folder(config: DataConfig, root: Path, files: Files, class_names: list[str] | None) -> ImageStream:
    """The pictures of a folder; `class_names` are those of the training split.

    Raises:
        DataError: there are none, or what the folders are is not clear.
    """
    where = shown(root)
    if not files.images:
        raise _no_images(where, files)
    metadata = read_metadata(root, files.metadata)
    if config.image_column or config.label_column not in (None, NO_LABELS, FOLDER_LABELS, *metadata.columns):
        columns = f"has the columns {', '.join(metadata.columns)}" if metadata.columns else "has no columns"
        raise DataError(
            f"{where} is a folder of images and {columns}.",
            "Leave data.image_column and label_column out, or name a column of its metadata files with "
            "data.label_column.",
        )
    split, prefix, splits = "train", "", {"train": len(files.images)}
    if top_folders_are_splits(config, root, files.images):
        counts = Counter(name.partition("/")[0] for name in files.images)
        split = find_split(config.split, counts, where)
        prefix, splits = f"{split}/", dict(sorted(counts.items()))
    else:
        check_split(config.split, ["train"], where)
    paths = sorted(name for name in files.images if name.startswith(prefix))
    labels = _labels(config, root, prefix, paths, metadata, class_names)
    names = labels.names
    content = [(name, *files.images[name]) for name in paths]
    links = f", {files.links} links left out" if files.links else ""
    description = f"{where}: {len(paths):,} images{describe_classes(names)} (split {shown(split)}{links})"
    stats = np.array([files.images[name] for name in paths], dtype=np.int64)
    reader = FolderReader(root, paths, labels.numbers, stats)
    numbers = [] if not labels.column or labels.numbers is None else [labels.numbers.tolist()]
    parts = [config.split, content, names, *numbers]
    source = ImageSource(reader, names, description, sha256(*parts))
    given = f"column {labels.column} of {labels.file}" if labels.column else "names of the subfolders"
    present = None if labels.numbers is None else labels.numbers[labels.numbers >= 0]
    source.understood = Understood(
        kind="folder of images",
        splits={shown(name): count for name, count in splits.items()},
        split=shown(split),
        labels=given if names else None,
        others=tuple(f"{name} of {metadata.files[0]}" for name in metadata.columns if name != labels.column),
        class_counts=None if present is None else np.bincount(present, minlength=len(names)).tolist(),
        unread=dict(files.others + Counter(Path(name).suffix for name in {*files.metadata} - {*metadata.files})),
        links=files.links,
        notes=labels.notes,
    )
    return source


class _Labels(NamedTuple):
    """numbers [N] int32, -1 where the label is not known; column and file of the metadata that they are from."""

    numbers: np.ndarray | None = None
    names: list[str] | None = None
    column: str | None = None
    file: str | None = None
    notes: tuple[str, ...] = ()


def _labels(
    config: DataConfig, root: Path, prefix: str, paths: list[str], metadata: Metadata, class_names: list[str] | None
) -> _Labels:
    """The pictures' classes: by a metadata file, or by the first level of subfolders.

    Raises:
        DataError: both say what the classes are, and not the same.
    """
    folders = [shown(name.removeprefix(prefix).rpartition("/")[0].partition("/")[0]) for name in paths]  # "" at the top
    column = None if config.label_column in (NO_LABELS, FOLDER_LABELS) else metadata.label_column(config)
    by_folder = config.label_column in (None, FOLDER_LABELS) and any(folders)
    check_depth(config, root, prefix, paths, are_labels=by_folder and column is None)
    if column is None:
        if not by_folder:
            return _Labels()
        names = _folder_classes(root / prefix, paths, folders, class_names)
        return _Labels(numbered(folders, names, shown(root / prefix)), names)
    numbers, names = metadata.labels(column, paths, class_names, shown(root))
    if by_folder and len(set(folders)) > 1:
        pairs = {*zip(folders, numbers, strict=True)}
        if len(pairs) == len(set(folders)) == len(set(numbers)):  # the same classes: the folders have their names
            return _labels(replace(config, label_column=FOLDER_LABELS), root, prefix, paths, metadata, class_names)
        raise DataError(
            f"{shown(root)} has labels twice, and not the same: column {column} of {metadata.files[0]}, and its "
            f"subfolders ({', '.join(sorted(set(folders))[:6])}).",
            f'Say with data.label_column which: "{column}", "{FOLDER_LABELS}", or "{NO_LABELS}".',
        )
    found = sum(path in metadata.rows for path in paths)
    if not found:
        raise DataError(
            f"{metadata.files[0]} in {shown(root)} names none of its pictures.",
            f"Let file_name be their path from the folder that it lies in, such as {shown(paths[0])}.",
        )
    missing = len(paths) - found
    notes = (f"{missing:,} pictures have no row in {metadata.files[0]}: their label is unknown",) if missing else ()
    array = np.array([-1 if number is None else number for number in numbers], dtype=np.int32)
    return _Labels(array if names else None, names, column, metadata.files[0], notes)


def _folder_classes(folder: Path, paths: list[str], folders: list[str], class_names: list[str] | None) -> list[str]:
    # Neither guess is safe: a class of their own for the loose pictures, or no labels for all.
    if "" in folders:
        raise DataError(
            f"{shown(folder)} holds {folders.count('')} images beside its class folders (such as "
            f"{shown(paths[folders.index('')])}).",
            f'Move them into one, or set data.label_column to "{NO_LABELS}" to read no labels.',
        )
    return class_names or sorted(set(folders))


def _no_images(where: str, files: Files) -> DataError:
    found = ", ".join(f"{count} {shown(suffix)}" for suffix, count in files.others.most_common(8)) or "nothing"
    links = f" {files.links} links were left alone: --data.follow-links reads them." if files.links else ""
    return DataError(
        f"No images in {where}: looked for {', '.join(IMAGE_EXTENSIONS)}, found {found}.",
        f"Give the folder that holds the pictures, or convert them to PNG.{links}",
    )

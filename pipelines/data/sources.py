"""Where pictures come from: folders, Parquet, WebDataset and the Hub, all read as the same records of undecoded bytes.

Decoding is left to `tokenizer.images.load_image`, so that a bad picture is skipped with a reason and never ends a run.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
from codegrid.pipelines.data.tables import TABLES, open_table
from codegrid.tokenizer.images import IMAGE_EXTENSIONS

# 6,000 of Fashion-MNIST, grey, 28x28 (MIT; the notice lies beside the file).
EMBEDDED_IMAGES = Path(__file__).parent / "embedded" / "fashion_mnist_6k.parquet"
_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


def open_images(config: DataConfig) -> ImageSource:
    """The pictures of `config.split`.

    Raises:
        DataError: there is no such source, split or column, no picture in it, or `config.streaming` is set.
    """
    if config.streaming:
        raise DataError("Streamed data cannot be read by index: leave data.streaming off (only tokenizing can use it).")
    return _open(config, None)


def open_image_stream(config: DataConfig) -> ImageStream:
    """The pictures of `config.split` one after the other; an ImageSource, with a length, unless `config.streaming`.

    Raises:
        DataError: as `open_images`.
    """
    return _open(config, None)


def split_images(config: DataConfig) -> tuple[ImageSource, ImageSource | None]:
    """(training pictures, validation pictures or None), with the same class names.

    Without `validation_split`, the pictures whose names hash lowest are held out: the same in every process and for
    every seed, and a picture added to a folder moves no other from one side to the other, but for the last in line.

    Raises:
        DataError: as `open_images`; or there is one picture only, which cannot be split; or the classes differ.
    """
    train = open_images(config)
    if config.validation_split:
        return train, _open(replace(config, split=config.validation_split), train.class_names)
    if config.validation_fraction == 0:
        return train, None
    if len(train) < 2:
        raise DataError(f"{config.source} holds one picture only: set data.validation_fraction to 0 to hold none out.")
    count = min(len(train) - 1, max(1, round(len(train) * config.validation_fraction)))
    hashes = [hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in train.reader.names()]
    order = np.argsort(np.array(hashes, dtype="S8").view(">u8"), kind="stable")
    held_out, kept = np.sort(order[:count]), np.sort(order[count:])
    return train.subset(kept, "for training"), train.subset(held_out, "held out")


def _open(config: DataConfig, class_names: list[str] | None) -> Any:
    """`class_names`: those of the training split, whose numbers the labels must follow."""
    path = Path(config.source).expanduser()
    if path.is_dir():
        root = path.resolve()
        files = _walk(root)
        kinds = {Path(name).suffix.lower() for name in files.tables}
        if ".parquet" in kinds or (kinds and not files.images):
            return open_table(config, root, ".parquet" if ".parquet" in kinds else ".tar", class_names)
        if kinds:
            raise DataError(f"{root} holds both images and .tar files: move one of them, or name a subfolder.")
        return _open_folder(config, root, files, class_names)
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(f"{path} is neither a .parquet nor a .tar file: give one of those, or a folder of images.")
        return open_table(config, path.resolve(), path.suffix.lower(), class_names)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", config.source) or path.suffix in TABLES:
        raise DataError(
            f"{config.source} does not exist: data.source is a folder, a .parquet or .tar file, or a Hub name."
        )
    return open_table(config, None, "", class_names)


class _Files(NamedTuple):
    images: dict[str, tuple[int, int]]  # path below the root -> bytes, modification time in ns
    tables: list[str]
    others: Counter[str]
    links: int  # links left out


def _walk(root: Path) -> _Files:
    """What lies in a folder. Hidden files are left out, and links to folders or to places outside of the root."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): give it read permission, or move it.")

    images: dict[str, tuple[int, int]] = {}
    tables: list[str] = []
    others: Counter[str] = Counter()
    links = 0
    for folder, subfolders, names in os.walk(root, onerror=refuse):  # does not follow links to folders
        links += sum(os.path.islink(os.path.join(folder, name)) for name in subfolders)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in (name for name in names if not name.startswith(".")):
            path, relative = os.path.join(folder, name), name if below == "." else f"{below}/{name}"
            suffix = os.path.splitext(name)[1].lower()
            if suffix in TABLES:
                tables.append(relative)
            elif suffix not in IMAGE_EXTENSIONS:
                others[suffix or "without extension"] += 1
            elif os.path.islink(path) and not Path(path).resolve().is_relative_to(root):
                links += 1
            elif os.path.exists(path) and stat.S_ISREG((status := os.stat(path)).st_mode):  # no dead link, no pipe
                images[relative] = (status.st_size, status.st_mtime_ns)
    return _Files(images, tables, others, links)


class _FolderReader:
    """`stats` [N, 2] int64: bytes and modification time in ns of each path. `paths` is sorted."""

    def __init__(self, root: Path, paths: list[str], labels: np.ndarray | None, stats: np.ndarray) -> None:
        self.root, self.paths, self.labels, self.stats = root, paths, labels, stats

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageRecord:
        label = None if self.labels is None else int(self.labels[index])
        return ImageRecord(self.root / self.paths[index], label, self.paths[index])

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def names(self) -> list[str]:
        return self.paths

    def file_marks(self, names: list[str]) -> list[list[int]] | None:
        """Bytes and modification time of the files of these names; None if one is not there."""
        places = [bisect.bisect_left(self.paths, name) for name in names]
        if any(place == len(self) or self.paths[place] != name for place, name in zip(places, names, strict=True)):
            return None
        return self.stats[places].tolist()


def _open_folder(config: DataConfig, root: Path, files: _Files, class_names: list[str] | None) -> ImageStream:
    if not files.images:
        found = ", ".join(f"{count} {suffix}" for suffix, count in files.others.most_common(8)) or "nothing"
        links = f" {files.links} links out of the folder were left alone." if files.links else ""
        raise DataError(f"No images in {root}: looked for {', '.join(IMAGE_EXTENSIONS)}, found {found}.{links}")
    if config.image_column or config.label_column not in (None, NO_LABELS):
        raise DataError(
            f"{root} is a folder of images and has no columns: leave data.image_column and label_column out."
        )
    tops = {name.partition("/")[0] if "/" in name else "" for name in files.images}
    has_splits = "train" in tops and tops <= _SPLIT_FOLDERS
    check_split(config.split, sorted(tops) if has_splits else ["train"], root)
    prefix = f"{config.split}/" if has_splits else ""
    paths = sorted(name for name in files.images if name.startswith(prefix))
    folders = [name.removeprefix(prefix).rpartition("/")[0].partition("/")[0] for name in paths]  # "" at the top
    labels, names = None, None
    if config.label_column != NO_LABELS and any(folders):
        # Neither guess is safe: a class of their own for the loose pictures, or no labels for all.
        if "" in folders:
            raise DataError(
                f"{root / prefix} holds {folders.count('')} images beside its class folders (such as "
                f"{paths[folders.index('')]}): move them into one, or set data.label_column to "
                f'"{NO_LABELS}" to read no labels.'
            )
        names = class_names or sorted(set(folders))
        labels = numbered(folders, names, str(root))
    content = [(name, *files.images[name]) for name in paths]
    links = f", {files.links} links left out" if files.links else ""
    description = f"{root}: {len(paths):,} images{describe_classes(names)} (split {config.split}{links})"
    stats = np.array([files.images[name] for name in paths], dtype=np.int64)
    return ImageSource(
        _FolderReader(root, paths, labels, stats), names, description, sha256(config.split, content, names)
    )

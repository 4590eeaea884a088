"""Where pictures come from: folders, Parquet, WebDataset and the Hub, all read as the same records of undecoded bytes.

Decoding is left to `tokenizer.images.load_image`, so that a bad picture is skipped with a reason and never ends a run.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from codegrid.names import shown
from codegrid.pipelines.data.folders import open_folder, walk
from codegrid.pipelines.data.records import DataConfig, DataError, ImageRecord, ImageSource, ImageStream, sha256
from codegrid.pipelines.data.tables import TABLES, is_saved, open_saved, open_table

# 6,000 of Fashion-MNIST, grey, 28x28 (MIT; the notice lies beside the file).
EMBEDDED_IMAGES = Path(__file__).parent / "embedded" / "fashion_mnist_6k.parquet"


def open_images(config: DataConfig) -> ImageSource:
    """The pictures of `config.split`.

    Raises:
        DataError: there is no such source, split or column, no picture in it, or `config.streaming` is set.
    """
    if config.streaming:
        raise DataError(
            "data.streaming is set, and streamed data cannot be read by index.",
            "Leave data.streaming off: only tokenizing can use it.",
        )
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
        raise DataError(
            f"{shown(config.source)} holds one picture only.", "Set data.validation_fraction to 0 to hold none out."
        )
    count = min(len(train) - 1, max(1, round(len(train) * config.validation_fraction)))
    order = by_hash(train.names())
    held_out, kept = np.sort(order[:count]), np.sort(order[count:])
    return train.subset(kept, "for training"), train.subset(held_out, "held out")


def by_hash(names: list[str], purpose: str = "") -> np.ndarray:
    """Places of the names in the order of their hashes: the same in every process and for every seed."""
    hashes = [hashlib.blake2b(os.fsencode(purpose + name), digest_size=8).digest() for name in names]
    return np.argsort(np.array(hashes, dtype="S8").view(">u8"), kind="stable")


def limited(source: ImageSource, limit: int) -> ImageSource:
    """At most `limit` pictures of a source, as `DataConfig.limit` says."""
    # Not the order of what is held out: of it, the first ones would all be.
    chosen = np.sort(by_hash(source.names(), "limit:")[:limit])
    return source.subset(chosen, "for a first try") if len(chosen) < len(source) else source


class _First:
    """The first records of a stream."""

    def __init__(self, reader: Any, limit: int) -> None:
        self.reader, self.limit = reader, limit

    def __iter__(self) -> Iterator[ImageRecord]:
        return itertools.islice(iter(self.reader), self.limit)


def _open(config: DataConfig, class_names: list[str] | None) -> Any:
    """`class_names`: those of the training split, whose numbers the labels must follow."""
    source = _open_all(config, class_names)
    if config.limit is None:
        return source
    if isinstance(source, ImageSource):
        return limited(source, config.limit)
    source.reader = _First(source.reader, config.limit)
    source.description += f"; the first {config.limit:,}"
    source.fingerprint = sha256(source.fingerprint, config.limit)
    return source


def _open_all(config: DataConfig, class_names: list[str] | None) -> Any:
    path = Path(config.source).expanduser()
    if path.is_dir():
        root = path.resolve()
        if is_saved(root):
            return open_saved(config, root, class_names)
        files = walk(root, config.follow_links)
        kinds = {Path(name).suffix.lower() for name in files.tables}
        if ".parquet" in kinds or (kinds and not files.images):
            return open_table(config, root, ".parquet" if ".parquet" in kinds else ".tar", class_names)
        if kinds:
            raise DataError(
                f"{shown(root)} holds both images and .tar files.", "Move one of them, or name a subfolder."
            )
        return open_folder(config, root, files, class_names)
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(
                f"{shown(path)} is neither a .parquet nor a .tar file.", "Give one of those, or a folder of images."
            )
        return open_table(config, path.resolve(), path.suffix.lower(), class_names)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", config.source) or path.suffix in TABLES:
        raise DataError(
            f"{shown(config.source)} does not exist.",
            "Give a folder, a .parquet or .tar file, or a Hub name as data.source.",
        )
    return open_table(config, None, "", class_names)

"""Imported codes as the records of `codegrid compress`, and back as codes.npy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.codec.file_format import Archive, require_format
from codegrid.pipelines.codes.bring import ImportCodesConfig, Windows
from codegrid.pipelines.codes.sequences import Axes
from codegrid.pipelines.compression.codec import ImageCodec
from codegrid.pipelines.data.records import DataConfig, ImageRecord
from codegrid.pipelines.evaluation.prior import check_fit
from codegrid.pipelines.generation.codes_only import CODES_NAME, as_imported
from codegrid.pipelines.system.files import write_atomically
from codegrid.prior.codes import MANIFEST_NAME, open_codes

# Records, their number, their classes, and what tells them from others.
Opened = tuple[Iterable[ImageRecord], int | None, tuple[str, ...] | None, str]
_AT_ONCE = 64  # rows


def opened_codes(data: DataConfig, codec: ImageCodec) -> Opened:
    """A code data set, or a source of `codegrid import-codes`: the data of a record are its codes [h, w, depth]."""
    require(data == DataConfig(data.source), "data.source is what is read of codes.", "Leave other --data options out.")
    sequence, path = codec.pipe.sequence, Path(data.source)
    shape = (*sequence.grid_shape, sequence.depth)
    if (path / MANIFEST_NAME).is_file() or not path.exists():
        codes = open_codes(data.source)
        check_fit(sequence, codes.manifest, codec.source, data.source)
        labels = codes.labels if codes.labels is not None else np.full(len(codes), -1)
        records = (
            ImageRecord(codes.codes(np.array([row]))[0].reshape(shape), None if label < 0 else int(label), f"{row}")
            for row, label in enumerate(labels)
        )
        return records, len(codes), codes.manifest.class_names, codes.manifest.fingerprint()
    axes, state = sequence.axes or {}, path.stat()
    settings = ImportCodesConfig(data.source, "the prior's", sequence.codebook_size, "", cast(Axes, "".join(axes)))
    windows = Windows(settings, tuple(axes.values()))
    print(f"Read as: {windows.read.description}.")
    records = (ImageRecord(row.astype(np.int64).reshape(shape), None, source.name) for source, row in windows)
    return records, None, None, f"{path.name} {state.st_size} {state.st_mtime_ns}"


def write_codes(codec: ImageCodec, archives: list[tuple[Path, Archive]], folder: Path) -> Path:
    """codes.npy [N, ...] of imported codes: a batch at a time, none of which is there before all are right."""
    sequence, number = codec.pipe.sequence, sum(len(archive.entries) for _, archive in archives)

    def write(aside: Path) -> None:
        shape, first = (number, *(sequence.axes or {}).values()), 0
        array = np.lib.format.open_memmap(aside, "w+", np.int64, shape)
        for path, archive in archives:
            require_format(
                archive.header.grid == sequence.grid_shape,
                f"{shown(path)} holds grids of {archive.header.grid}, and the prior's are {sequence.grid_shape}.",
                "Read it with ImageCodec.codes.",
            )
            for start in range(0, len(archive.entries), _AT_ONCE):
                places = range(start, min(start + _AT_ONCE, len(archive.entries)))
                rows = codec.codes_of(archive, places).numpy().reshape(len(places), -1)
                array[first : first + len(rows)] = as_imported(rows, sequence)
                first += len(rows)
        array.flush()

    write_atomically(folder / CODES_NAME, write)
    print(f"{number} rows of codes are in {folder / CODES_NAME}.")
    return folder

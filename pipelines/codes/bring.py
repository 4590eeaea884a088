"""`codegrid import-codes`: integer sequences of any origin -> a code data set that has no tokenizer and no pictures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Features
from tqdm import tqdm

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.cards import codes_card
from codegrid.pipelines.codes.sequences import Axes, Row, Sequences, open_sequences
from codegrid.pipelines.codes.shards import code_dtype, code_features, rows_table, shard_path
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.system.files import OutputError, replace_folder, sha256, write_json, write_text
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.prior.codes import MANIFEST_NAME, CodesManifest, Shard

_PLAN_NAME = ".plan.json"
_CODES_A_SHARD = 2**20
_MOST_ROWS_A_SHARD = 100_000


@dataclass(frozen=True)
class ImportCodesConfig:
    """Integer sequences, what they mean, and the output folder.

    Args:
        source: an .npy file, a .txt file (its bytes are the codes), Parquet files or a folder of them, or the name of a
            data set on the Hub.
        made_by: what made the codes, such as "EnCodec 24 kHz" or "bytes". A prior is used with codes of the same name,
            codebook and shape only.
        codebook_size: codes run from 0 to codebook_size - 1.
        output_dir: the code data set's folder.
        axes: what the axes of a row are: l positions, h rows, w columns, d codes a position, t frames. Only where the
            source leaves no choice it may be left out.
        length: cut a sequence (or frames) into rows of so many positions (or frames). What is left at the end of each
            is counted and left out.
        codes_column: the column of a table that has the codes.
        label_column: the column that has the classes, as numbers or names.
        split: of a folder or of a data set on the Hub.
    """

    source: str
    made_by: str
    codebook_size: int
    output_dir: str
    axes: Axes | None = None
    length: int | None = None
    codes_column: str = "codes"
    label_column: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        require(bool(self.made_by.strip()), "made_by is empty.", 'Say what made the codes, such as "EnCodec 24 kHz".')
        require(
            1 <= self.codebook_size <= 2**31,
            f"codebook_size is {self.codebook_size}.",
            f"Give a whole number from 1 to {2**31}.",
        )
        require(self.length is None or self.length >= 1, f"length is {self.length}.", "Give at least 1.")


def import_codes(config: ImportCodesConfig) -> Path:
    """Write a code data set from codes that another program made. Whatever needs pictures refuses it by a sentence.

    Raises:
        DataError: the source cannot be read, has several readings, or holds a code outside of the codebook.
        OutputError: the folder holds something else.
    """
    windows = Windows(config)
    folder, plan = Path(config.output_dir), json.dumps(_plan(config, windows.read))
    if _is_there(folder, plan):
        print(f"{shown(folder)} is finished already: nothing to do.")
        return folder
    print(f"Read as: {windows.read.description}.")
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        (aside / "data").mkdir(parents=True)
        manifest = _write(config, windows, aside)
        write_text(aside / _PLAN_NAME, plan)
        write_text(aside / "README.md", codes_card(manifest))
        write_json(aside / MANIFEST_NAME, manifest.to_dict())
        replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shape = " x ".join(map(str, (*manifest.grid_shape, *([manifest.depth] if manifest.depth > 1 else []))))
    print(
        f"{manifest.num_rows:,} rows of {shape} codes of {manifest.codebook_size:,} from {manifest.num_images:,} "
        f"sequence{'s' * (manifest.num_images != 1)} are in {shown(folder)}."
        + (f" {windows.left:,} positions at the ends were left out." if windows.left else "")
        + (f" {manifest.num_skipped:,} sequences left out, see skipped.jsonl." if manifest.num_skipped else "")
    )
    return folder


def _plan(config: ImportCodesConfig, read: Sequences) -> dict[str, Any]:
    path = Path(config.source)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.exists() else []
    marks = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {**asdict(config), "output_dir": None, "axes": read.axes, "files": marks}


def _is_there(folder: Path, plan: str) -> bool:
    """Whether the folder holds these codes already.

    Raises:
        OutputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    before = folder / _PLAN_NAME
    if (folder / MANIFEST_NAME).is_file() and before.is_file() and before.read_text(encoding="utf-8") == plan:
        return True
    there = what_it_holds(folder) if folder.is_dir() else "a file"
    raise OutputError(f"{shown(folder)} holds {there}, of another source or settings.", "Choose another --output-dir.")


def _write(config: ImportCodesConfig, windows: Windows, folder: Path) -> CodesManifest:
    read, names, shards = windows.read, windows.read.label_names, list[Shard]()
    bar = tqdm(windows, unit=" rows", dynamic_ncols=True, mininterval=1.0)
    for part in _parts(iter(bar)):
        features = code_features(config.codebook_size, part[0][1].size, names and list(names))
        shards.append(_write_shard(shard_path(folder, len(shards)), part, features))
    if not shards:
        raise DataError(
            f"No row of {config.length or 'any'} positions could be made of {read.description}.",
            "Give a smaller --length." if config.length else "Give codes.",
        )
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in windows.skipped]
    write_text(folder / "skipped.jsonl", "".join(lines))
    axes, skipped = dict(zip(read.axes, windows.shape, strict=True)), len(windows.skipped)
    identity = json.dumps([config.made_by, config.codebook_size, axes])
    height, width = axes.get("t", 1) * axes.get("h", 1), axes.get("l", axes.get("w", 1))  # frames below each other
    manifest = CodesManifest(
        tokenizer=config.made_by,
        tokenizer_fingerprint=hashlib.sha256(f"imported codes {identity}".encode()).hexdigest(),
        codebook_size=config.codebook_size,
        grid_shape=(height, width),
        depth=axes.get("d", 1),
        class_names=names,
        source=read.description,
        source_fingerprint=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        num_rows=sum(shard.num_rows for shard in shards),
        num_images=windows.used,
        shards=tuple(shards),
        code_dtype=code_dtype(config.codebook_size),
        num_skipped=skipped,
        skipped_reasons={"too short": skipped} if skipped else {},
        axes=axes,
    )
    manifest.sequence_config()  # raises for sizes that no prior can have
    return manifest


class Windows:
    """Cuts the rows of the source into windows of one shape, and counts what does not fit.

    Args:
        shape: of the windows; () is that of the first.
    """

    def __init__(self, config: ImportCodesConfig, shape: tuple[int, ...] = ()) -> None:
        self.config, self.shape = config, shape
        self.read = open_sequences(config.source, config.axes, config.codes_column, config.label_column, config.split)
        if config.length is not None and (axes := self.read.axes)[:2] in ("hw", "dh"):
            raise DataError(f"--length {config.length} with --axes {axes}.", "Only sequences and frames are cut.")
        self.used = self.left = 0
        self.skipped: list[dict[str, str]] = []

    def __iter__(self) -> Iterator[tuple[Row, np.ndarray]]:
        """(row, codes [L] position by position) of every window."""
        levels_first = self.read.axes[0] == "d"
        for row in self.read.rows():
            positions = row.codes.shape[int(levels_first)]
            length = self.config.length or positions
            whole = positions // length if length else 1  # of a row without codes `_check` speaks
            if not whole:
                self.skipped.append({"source_id": row.name, "reason": "too short", "detail": f"{positions} positions"})
                continue
            self.left += positions - whole * length
            self.used += whole if self.read.single else 1
            for index in range(whole):
                cut = slice(index * length, (index + 1) * length)
                piece = row.codes[:, cut] if levels_first else row.codes[cut]
                self._check(row, piece)
                # The windows of a row are held out together; those of a single sequence one by one.
                named = row._replace(name=f"{row.name}:{index}") if self.read.single else row
                yield named, (np.moveaxis(piece, 0, -1) if levels_first else piece).flatten()

    def _check(self, row: Row, piece: np.ndarray) -> None:
        require(piece.size > 0, f"{shown(row.name)} has no codes.", "Leave such rows out.")
        self.shape = self.shape or piece.shape
        if piece.shape != self.shape:
            raise DataError(
                f"{shown(row.name)} has the shape {piece.shape}, and a row is to have {self.shape}.",
                "All rows have one shape; --length N cuts sequences of different lengths into rows of N positions.",
            )
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= self.config.codebook_size:
            raise DataError(
                f"{shown(row.name)} holds the code {low if low < 0 else high}, and the codebook has "
                f"{self.config.codebook_size:,}.",
                "Codes run from 0 to --codebook-size - 1: check both, and whether levels are numbered on end.",
            )


def _parts(windows: Iterator[tuple[Row, np.ndarray]]) -> Iterator[list[tuple[Row, np.ndarray]]]:
    """Windows of a shard, by a bounded number of codes."""
    for first in windows:
        most = min(_MOST_ROWS_A_SHARD, max(1, _CODES_A_SHARD // first[1].size))
        yield [first, *islice(windows, most - 1)]


def _write_shard(path: Path, part: list[tuple[Row, np.ndarray]], features: Features) -> Shard:
    labels = [-1 if row.label is None else row.label for row, _ in part]
    unused = {"crop": [0] * len(part), "flip": [False] * len(part)}
    rows = {"codes": [codes for _, codes in part], "label": labels, "source_id": [row.name for row, _ in part]}
    pq.write_table(rows_table({**rows, **unused}, features), path, compression="zstd")
    return Shard(f"data/{path.name}", len(part), path.stat().st_size, sha256(path))

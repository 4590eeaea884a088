"""`codegrid import-codes`: integer sequences of any origin -> a code data set that has no tokenizer and no pictures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.cards import codes_card
from codegrid.pipelines.codes.sequences import Axes, Row, Sequences, open_sequences
from codegrid.pipelines.codes.shards import code_dtype, code_features, shard_path
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.system.files import OutputError, replace_folder, sha256, write_json, write_text
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.prior.codes import MANIFEST_NAME, CodesManifest, Shard

_PLAN_NAME = ".plan.json"
_CODES_A_SHARD = 2**24
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
        split: of a data set on the Hub.
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
    read = open_sequences(config.source, config.axes, config.codes_column, config.label_column, config.split)
    folder, plan = Path(config.output_dir), _plan(config, read)
    if _is_there(folder, plan):
        print(f"{shown(folder)} is finished already: nothing to do.")
        return folder
    print(f"Read as: {read.description}.")
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        (aside / "data").mkdir(parents=True)
        manifest, left = _write(config, read, aside)
        write_json(aside / _PLAN_NAME, plan)
        write_text(aside / "README.md", codes_card(manifest))
        write_json(aside / MANIFEST_NAME, manifest.to_dict())
        replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shape = " x ".join(map(str, (*manifest.grid_shape, *([manifest.depth] if manifest.depth > 1 else []))))
    print(
        f"{manifest.num_rows:,} rows of {shape} codes of {manifest.codebook_size:,} from {manifest.num_images:,} "
        f"sequence{'s' * (manifest.num_images != 1)} are in {shown(folder)}."
        + (f" {left:,} positions at the ends were left out." if left else "")
        + (f" {manifest.num_skipped:,} sequences left out, see skipped.jsonl." if manifest.num_skipped else "")
    )
    return folder


def _plan(config: ImportCodesConfig, read: Sequences) -> dict[str, Any]:
    path, marks = Path(config.source), []
    if path.exists():
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        marks = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {**asdict(config), "output_dir": None, "axes": read.axes, "files": marks}


def _is_there(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the folder holds these codes already.

    Raises:
        OutputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        same = json.loads((folder / _PLAN_NAME).read_text(encoding="utf-8")) == plan
    except (OSError, ValueError):
        same = False
    if not same or not (folder / MANIFEST_NAME).is_file():
        there = what_it_holds(folder) if folder.is_dir() else "a file"
        raise OutputError(
            f"{shown(folder)} holds {there}, of another source or settings.", "Choose another --output-dir."
        )
    return True


def _write(config: ImportCodesConfig, read: Sequences, folder: Path) -> tuple[CodesManifest, int]:
    """Write the shards; return the manifest, and how many positions at the ends of sequences were left out."""
    names = _class_names(config, read)
    numbers = {} if names is None else _numbers(names, read)
    state = _State(config, read)
    shards = []
    for part in _parts(state.windows()):
        shards.append(_write_shard(folder, len(shards), part, state, names, numbers))
    if not shards:
        raise DataError(
            f"No row of {config.length or 'any'} positions could be made of {read.description}.",
            "Give a smaller --length." if config.length else "Give codes.",
        )
    grid, depth = state.grid
    shape = json.dumps([config.made_by, config.codebook_size, state.axes])
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in state.skipped]
    write_text(folder / "skipped.jsonl", "".join(lines))
    manifest = CodesManifest(
        tokenizer=config.made_by,
        tokenizer_fingerprint=hashlib.sha256(f"imported codes {shape}".encode()).hexdigest(),
        codebook_size=config.codebook_size,
        grid_shape=grid,
        depth=depth,
        class_names=names,
        source=read.description,
        source_fingerprint=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        num_rows=sum(shard.num_rows for shard in shards),
        num_images=state.used,
        shards=tuple(shards),
        code_dtype=code_dtype(config.codebook_size),
        num_skipped=len(state.skipped),
        skipped_reasons={"too short": len(state.skipped)} if state.skipped else {},
        axes=state.axes,
    )
    manifest.sequence_config()  # raises for sizes that no prior can have
    return manifest, state.left


class _State:
    """Cuts the rows of the source into windows of one shape, and counts what does not fit."""

    def __init__(self, config: ImportCodesConfig, read: Sequences) -> None:
        self.config, self.read = config, read
        cut = config.length is not None
        if cut and read.axes not in ("l", "ld", "dl", "thw", "thwd"):
            raise DataError(f"--length {config.length} with --axes {read.axes}.", "Only sequences and frames are cut.")
        self.used = self.left = 0
        self.skipped: list[dict[str, str]] = []
        self._shape: tuple[int, ...] = ()

    @property
    def axes(self) -> dict[str, int]:
        """The axes of a window, in the order of the source, with their sizes."""
        letters = self.read.axes
        inside = letters[1:] + "d" if letters[0] == "d" else letters
        sizes = dict(zip(inside, self._shape, strict=True))
        return {axis: sizes[axis] for axis in letters}

    @property
    def grid(self) -> tuple[tuple[int, int], int]:
        """(rows and columns, codes a position) of a window. Frames lie below each other."""
        sizes = self.axes
        depth = sizes.get("d", 1)
        if "l" in sizes:
            return (1, sizes["l"]), depth
        return (sizes.get("t", 1) * sizes["h"], sizes["w"]), depth

    def windows(self) -> Iterator[tuple[Row, np.ndarray]]:
        """(row, codes [L] position by position) of every window."""
        length = self.config.length
        for row in tqdm(self.read.rows(), unit=" sequences", dynamic_ncols=True, mininterval=1.0):
            codes = np.moveaxis(row.codes, 0, -1) if self.read.axes[0] == "d" else row.codes  # position by position
            if length is None:
                pieces = [codes]
            else:
                whole = len(codes) // length
                pieces = (codes[index * length : (index + 1) * length] for index in range(whole))
                self.left += len(codes) % length if whole else 0
                if not whole:
                    self.skipped.append(
                        {"source_id": row.name, "reason": "too short", "detail": f"{len(codes)} positions"}
                    )
                    continue
            self.used += not self.read.single
            for index, piece in enumerate(pieces):
                self._check(row, piece)
                self.used += self.read.single
                # The windows of a row are held out together; those of a single sequence one by one.
                yield (
                    row._replace(name=f"{row.name}:{index}") if self.read.single else row,
                    np.ascontiguousarray(piece).reshape(-1),
                )

    def _check(self, row: Row, piece: np.ndarray) -> None:
        if not self._shape:
            self._shape = piece.shape
        if piece.shape != self._shape or not piece.size:
            raise DataError(
                f"{shown(row.name)} has the shape {piece.shape}, the first row {self._shape}.",
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
    part: list[tuple[Row, np.ndarray]] = []
    for window in windows:
        part.append(window)
        if len(part) >= min(_MOST_ROWS_A_SHARD, max(1, _CODES_A_SHARD // window[1].size)):
            yield part
            part = []
    if part:
        yield part


def _write_shard(
    folder: Path,
    shard: int,
    part: list[tuple[Row, np.ndarray]],
    state: _State,
    names: tuple[str, ...] | None,
    numbers: dict[Any, int],
) -> Shard:
    size, length = state.config.codebook_size, part[0][1].size
    schema = code_features(size, length, None if names is None else list(names)).arrow_schema
    codes = np.stack([codes.astype(code_dtype(size)) for _, codes in part])  # [n, L]
    columns = {
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), length),
        "label": [numbers.get(row.label, -1) for row, _ in part],
        "source_id": [row.name for row, _ in part],
        "crop": [0] * len(part),
        "flip": [False] * len(part),
    }
    path = shard_path(folder, shard)
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    pq.write_table(table, path, compression="zstd")
    return Shard(path.relative_to(folder).as_posix(), len(part), path.stat().st_size, sha256(path))


def _class_names(config: ImportCodesConfig, read: Sequences) -> tuple[str, ...] | None:
    if config.label_column is None:
        return None
    if read.label_names is not None:
        return read.label_names
    found = {row.label for row in read.rows()} - {None}
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in found)
    if not found or not (numbers or all(isinstance(value, str) for value in found)):
        raise DataError(
            f"The column {shown(config.label_column)} holds neither whole numbers nor names alone.",
            "Give a --label-column of either.",
        )
    if numbers and (min(found) < 0 or max(found) >= 2**16):
        raise DataError(
            f"The column {shown(config.label_column)} holds numbers from {min(found)} to {max(found)}.",
            "Classes are numbered from 0 on.",
        )
    return tuple(map(str, range(max(found) + 1))) if numbers else tuple(sorted(found))


def _numbers(names: tuple[str, ...], read: Sequences) -> dict[Any, int]:
    """The number of each value of the label column: it holds names, or the numbers themselves."""
    return {name: index for index, name in enumerate(names)} | {index: index for index in range(len(names))}

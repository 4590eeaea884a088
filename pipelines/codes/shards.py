"""The shards of a code data set on disk. Each is written whole, with a record of its contents.

CODES/
    .plan.json              everything that the rows depend on; a run resumes only with the same plan
    .lock                   locked while a process tokenizes there
    .shards/00000.json      record of a shard: rows, images and a hash over their bytes, skipped inputs, sha256; a shard
                            without a record is not done
    data/codes-00000.parquet
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, List, Value

from codegrid.pipelines.data.records import ImageSource, ImageStream, content_hash, content_of
from codegrid.pipelines.system.files import sha256, write_atomically, write_json
from codegrid.tokenizer import VQModel

Record = dict[str, Any]


def _no_rows() -> dict[str, list]:
    return defaultdict(list, {name: [] for name in ("codes", "label", "source_id", "crop", "flip")})


@dataclass
class EncodedShard:
    """Args:
    rows: the rows by column, one per variant of an image; "codes", and lists of a condition, by batch, each [B, n].
    skipped: source_id, reason and detail of each input that could not be used.
    num_images: images that were read.
    num_compared: codes that were also computed in float32, if the encoder ran in another precision.
    num_changed: how many of them differ in float32.
    contents: hash of the bytes of each image, by its source_id.
    """

    rows: dict[str, list] = field(default_factory=_no_rows)
    skipped: list[dict[str, str]] = field(default_factory=list)
    num_images: int = 0
    num_compared: int = 0
    num_changed: int = 0
    contents: dict[str, str] = field(default_factory=dict)


def code_dtype(codebook_size: int) -> str:
    return "uint16" if codebook_size <= 65_536 else "uint32"


def code_features(
    codebook_size: int, length: int, class_names: list[str] | None, others: Mapping[str, Any] | None = None
) -> Features:
    """Columns of a code data set. Both Arrow and torch read flat fixed-size lists fastest.

    `others` are those of a condition.
    """
    features = {"codes": List(Value(code_dtype(codebook_size)), length=length)}
    if class_names is not None:
        features["label"] = ClassLabel(names=class_names)
    ids = {"source_id": Value("string"), "crop": Value("uint8"), "flip": Value("bool")}
    return Features({**features, **(others or {}), **ids})


def shard_path(folder: Path, shard: int) -> Path:
    return folder / "data" / f"codes-{shard:05d}.parquet"


def record_path(folder: Path, shard: int) -> Path:
    return folder / ".shards" / f"{shard:05d}.json"


def read_records(folder: Path) -> dict[int, Record]:
    """The records of the written shards, by shard number."""
    paths = sorted((folder / ".shards").glob("*.json"), key=lambda path: int(path.stem))
    return {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def is_done(folder: Path, shard: int) -> bool:
    path = record_path(folder, shard)
    if not path.is_file():
        return False
    record, file = json.loads(path.read_text(encoding="utf-8")), shard_path(folder, shard)
    if not record["num_rows"]:
        return True
    return file.is_file() and file.stat().st_size == record["num_bytes"] and sha256(file) == record["sha256"]


def remove_shard(folder: Path, shard: int) -> None:
    record_path(folder, shard).unlink(missing_ok=True)
    shard_path(folder, shard).unlink(missing_ok=True)


def write_shard(
    folder: Path,
    shard: int,
    encoded: EncodedShard,
    model: VQModel,
    images: ImageStream,
    others: Mapping[str, Any] | None = None,
) -> None:
    """Write the Parquet file, then its record. `others` are the columns of a condition.

    If none of its images could be used, only the record is written: datasets cannot read a file without rows.
    """
    rows, skipped = encoded.rows, encoded.skipped
    length, size = math.prod(model.config.codes_shape), model.config.quantizer_config.codebook_size
    features = code_features(size, length, images.class_names, others)
    table = rows_table(rows, features)
    path = shard_path(folder, shard)
    names = {*rows["source_id"], *(entry["source_id"] for entry in skipped)}
    record = {
        "num_rows": len(table),
        "num_images": encoded.num_images - len(skipped),
        "skipped": skipped,
        "num_compared": encoded.num_compared,
        "num_changed": encoded.num_changed,
        "images_mark": _mark(sorted(names), images),
        "content": content_of(encoded.contents),
    }
    if len(table):
        write_atomically(path, lambda aside: pq.write_table(table, aside, compression="zstd"))
        name = path.relative_to(folder).as_posix()
        record.update(file=name, num_bytes=path.stat().st_size, sha256=sha256(path))
    write_json(record_path(folder, shard), record)


def rows_table(rows: Mapping[str, list], features: Features) -> pa.Table:
    """Columns of rows as Arrow; those of lists come as arrays [B, n] or [n]."""
    lists = {name: _lists(rows[name], feature) for name, feature in features.items() if isinstance(feature, List)}
    return pa.table({name: lists.get(name, rows[name]) for name in features}, schema=features.arrow_schema)


def _lists(batches: list[np.ndarray], feature: List) -> pa.Array:
    """Batches [B, n] of a column, or rows [n], as one array of lists of n numbers."""
    numbers = np.concatenate(batches) if batches else np.empty((0, feature.length))
    flat = pa.array(numbers.astype(feature.feature.dtype).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, feature.length)


def source_ids(folder: Path, shard: int, record: Record) -> list[str]:
    """The inputs of a shard, used or skipped, sorted."""
    names = {entry["source_id"] for entry in record["skipped"]}
    if record["num_rows"]:
        names |= set(pq.read_table(shard_path(folder, shard), columns=["source_id"])["source_id"].unique().to_pylist())
    return sorted(names)


def changed_since(folder: Path, shard: int, record: Record, images: ImageSource) -> bool:
    """Whether inputs of a finished shard are missing from `images`, or are others than they were.

    Sizes and times of the files tell. Where the times differ, as those of a copy do, the bytes are read and compared.
    """
    names = source_ids(folder, shard, record)
    mark = _mark(names, images)
    if mark is None or record.get("images_mark") is None:
        return True
    if mark == record["images_mark"]:
        return False
    return record.get("content") is None or contents_now(record, names, images) != record["content"]


def renew_mark(folder: Path, shard: int, record: Record, images: ImageSource) -> None:
    """Let the record of a shard have the sizes and times of copied files, so that their bytes are read once."""
    mark = _mark(source_ids(folder, shard, record), images)
    if mark != record["images_mark"]:
        write_json(record_path(folder, shard), {**record, "images_mark": mark})


def contents_now(record: Record, names: list[str], images: ImageSource, places: dict[str, int] | None = None) -> str:
    """The hash over the bytes of a shard's inputs as they are now, to be compared with `record["content"]`.

    `places`: the row of each name of `images`, where it is known already.

    Raises:
        KeyError: one of them is not among `images`.
    """
    vanished = {entry["source_id"] for entry in record["skipped"] if entry["reason"] == "vanished"}
    places = places or {name: index for index, name in enumerate(images.names())}
    return content_of(
        {
            name: "" if name in vanished and name not in places else content_hash(images[places[name]].data)
            for name in names
        }
    )


def _mark(names: list[str], images: ImageStream) -> str | None:
    """sha256 over sizes and times of the files of these names; None if they are not files, or one is missing."""
    marks = getattr(images.reader, "file_marks", lambda _: None)(names)
    return None if marks is None else hashlib.sha256(json.dumps([*zip(names, marks, strict=True)]).encode()).hexdigest()

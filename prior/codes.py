"""Reads a code data set: its manifest and its memory-mapped codes.

CODES/
    README.md           dataset card; `datasets.load_dataset(CODES)` finds the shards by it
    manifest.json       written last: a data set without it is unfinished
    data/codes-00000.parquet, ...
"""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from codegrid.errors import CodegridError
from codegrid.prior.conditioning import ClassCondition, condition_from_dict
from codegrid.prior.conditions import combined, parts_of
from codegrid.prior.mapped_rows import MappedRows
from codegrid.prior.sequence_config import SequenceConfig

MANIFEST_NAME = "manifest.json"
FORMAT = "codegrid-codes"
VERSION = 1


class CodesError(CodegridError):
    """A code data set cannot be used. The message says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file: its path in the data set, rows, bytes and sha256."""

    file: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class CodesManifest:
    """Describes a code data set, so that nobody has to guess which tokenizer made it.

    Args:
        tokenizer: where the tokenizer was loaded from, for people.
        tokenizer_fingerprint: sha256 over the tokenizer's weights and config.
        codebook_size, grid_shape, depth: of the codes; a row has rows * columns * depth codes.
        order: in which a prior reads an image's codes (`SequenceConfig`); a row stores them position by position.
        code_dtype: "uint16", or "uint32" for more than 65,536 codes.
        class_names: in the order of the labels; None if the images have no classes.
        preprocessing: how images became square, the fields of `tokenizer.Preprocessing`.
        precision: the precision of the encoder, "float32", "bfloat16" or "float16".
        policy: how the device computed (`Policy` of pipelines/system/devices.py); older manifests have none. `weights`
            is the dtype of a tokenizer that was cast: its fingerprint is that of the weights before.
        num_compared, num_changed: codes that were also computed in float32, and how many of them differ there.
        flip, ten_crop: the stored variants of each image.
        source: a line that describes the images. `source_fingerprint` changes when the images change.
        num_images, num_skipped: stored images and skipped inputs; `skipped_reasons` counts the skipped ones by reason
            (skipped.jsonl names each).
        condition: the condition of the codes beside their classes, as in `SequenceConfig.condition`. The rows have its
            columns. A prior follows both, if there are classes.
        axes: of codes that no tokenizer of this project made (`codegrid import-codes`), as in `SequenceConfig.axes`;
            `tokenizer` then says what made them, and there are no pictures.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    codebook_size: int
    grid_shape: tuple[int, int]
    class_names: tuple[str, ...] | None
    source: str
    source_fingerprint: str
    num_rows: int
    num_images: int
    shards: tuple[Shard, ...]
    depth: int = 1
    order: str = "positions"
    code_dtype: str = "uint16"
    preprocessing: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"
    policy: dict[str, Any] = field(default_factory=dict)
    num_compared: int = 0
    num_changed: int = 0
    flip: bool = False
    ten_crop: bool = False
    num_skipped: int = 0
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    format: str = FORMAT
    version: int = VERSION
    condition: dict[str, Any] | None = None
    axes: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The values of manifest.json. Without a condition it has no `condition`, as in older files; nor `axes`."""
        values = asdict(self)
        return {k: v for k, v in values.items() if v is not None or k not in ("condition", "axes")}

    def fingerprint(self) -> str:
        """sha256 over the tokenizer's fingerprint, the classes and the shards. Equal codes have equal fingerprints."""
        shards = [(shard.file, shard.num_rows, shard.sha256) for shard in self.shards]
        parts = [self.tokenizer_fingerprint, self.class_names, shards]
        parts += [] if self.condition is None else [self.condition]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def sequence_config(self) -> SequenceConfig:
        """The vocabulary, length and condition of a prior for these codes: classes, another condition, or both."""
        names, condition = self.class_names, self.condition
        if names is not None and condition is not None:
            others = parts_of(condition_from_dict(condition))
            names, condition = None, combined(ClassCondition(tuple(names)), *others)
        return SequenceConfig(
            codebook_size=self.codebook_size,
            grid_shape=self.grid_shape,
            depth=self.depth,
            order=self.order,
            class_names=names,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            condition=condition,
            axes=self.axes,
        )


def read_manifest(folder: Path) -> CodesManifest:
    """Read and check `manifest.json`.

    Raises:
        CodesError: there is none, it is damaged or of another format, or it names a file outside of the folder.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CodesError(
            f"{folder} is no finished code data set: it has no {MANIFEST_NAME}.",
            "Make one with `codegrid tokenize-dataset`, or run the command that makes it again: it goes on where "
            "it stopped.",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise CodesError(
                f"{path} is of format {values.get('format')!r}, version {values.get('version')!r}; this version "
                f"of codegrid reads {FORMAT!r}, version {VERSION}.",
                "Make the codes again, or read them with the version that wrote them.",
            )
        unknown = sorted(set(values) - {entry.name for entry in fields(CodesManifest)})
        if unknown:
            raise CodesError(
                f"Unknown keys in {path}: {', '.join(unknown)}.",
                "Read the codes with the version of codegrid that wrote them, or make them again.",
            )
        shards = tuple(Shard(**shard) for shard in values.pop("shards"))
        names = values.pop("class_names")
        manifest = CodesManifest(
            **{**values, "grid_shape": tuple(values["grid_shape"])},
            shards=shards,
            class_names=None if names is None else tuple(names),
        )
        most = {"uint16": 2**16, "uint32": 2**32}[manifest.code_dtype]
        if not manifest.codebook_size <= most:  # before a prior of that vocabulary is made
            raise CodegridError(
                f"codebook_size {manifest.codebook_size} is more than {manifest.code_dtype} can hold.",
                "Make the codes again.",
            )
        manifest.sequence_config()
        files = [PurePosixPath(shard.file) for shard in manifest.shards]
    except CodesError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CodesError(f"{path} is damaged ({error}).", "Make the codes again.") from error
    for file in files:
        if file.is_absolute() or ".." in file.parts or "\\" in str(file):
            raise CodesError(
                f"{path} names a file outside of its folder: {str(file)!r}.",
                "Get the data set from a source that you trust, or make the codes again.",
            )
    return manifest


class CodeDataset:
    """Memory-mapped rows of a code data set: a row is read only when it is used.

    Attributes:
        manifest: describes the codes.
        labels: [N] int64, or None if the images have no labels.
    """

    def __init__(self, manifest: CodesManifest, files: list[Path]) -> None:
        self.manifest = manifest
        # datasets converts the Parquet shards into one Arrow file in its cache, once, and maps that file into memory.
        # The cache's name depends on the files' paths and times; the description adds their sizes and contents.
        from datasets import load_dataset  # importing it takes a second, which reading only a manifest does not need

        names = [glob.escape(str(file)) for file in files]
        states = [(file.stat().st_size, file.stat().st_ctime_ns) for file in files]
        key = hashlib.sha256(json.dumps([manifest.fingerprint(), states]).encode()).hexdigest()
        table = load_dataset("parquet", data_files=names, split="train", keep_in_memory=False, description=key)
        if len(table) != manifest.num_rows:
            raise CodesError(
                f"The shards hold {len(table)} rows, the manifest says {manifest.num_rows}.",
                "Make the codes again, or download them again.",
            )
        self._table = table
        sequence = manifest.sequence_config()
        self._condition = sequence.conditioning
        try:
            self._files = [file["filename"] for file in table.cache_files]
            self._rows = MappedRows(self._files, "codes", sequence.length)
            self._columns = {name: self._column(name) for name in self._condition.columns}
            self._check_condition()
        except (ValueError, KeyError) as error:
            raise CodesError(
                f"The shards cannot be read as codes ({error}).", "Make the codes again, or download them again."
            ) from error
        self.labels = None
        if manifest.class_names is not None:
            self.labels = self._columns["label"]

    def __len__(self) -> int:
        return len(self._rows)

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """Codes of `rows` [n] -> int64 [n, L], checked against the codebook."""
        found = self._rows.take(np.asarray(rows, dtype=np.int64))
        if found.size and int(found.max()) >= self.manifest.codebook_size:
            raise CodesError(
                f"The data set holds code {int(found.max())}, beyond its codebook of "
                f"{self.manifest.codebook_size}: it is damaged.",
                "Make the codes again.",
            )
        return found.astype(np.int64)

    def condition_values(self, rows: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
        """The condition of `rows` [n] -> values int64 [n, *value_shape], and which are unknown, bool [n].

        `prior_loss` takes the values as labels. The caller must drop the unknown ones (images without a label among
        labelled ones); of a combined condition they are bool [n, parts]. Without a condition it returns None and None.
        """
        if not self._columns:
            return None, None
        found = {}
        for name, column in self._columns.items():
            taken = column.take(rows) if isinstance(column, MappedRows) else column[rows]
            found[name] = torch.from_numpy(taken.astype(np.int64))
        values, known = self._condition.read(found)
        return values, ~known

    def _check_condition(self) -> None:
        """Whether the columns are as wide as the condition that the manifest describes."""
        if not len(self):
            return
        values, _ = self.condition_values(np.zeros(1, np.int64))
        shape = (1, *self._condition.value_shape)
        if values is not None and values.shape != shape:
            raise CodegridError(
                f"The columns {', '.join(self._condition.columns)} have values of shape {list(values.shape)[1:]}, and "
                f"the manifest's condition is {self._condition.describe()}.",
                "Make the codes again.",
            )

    def _column(self, name: str) -> np.ndarray | MappedRows:
        """A column of integers, [N] int64; or of lists of integers, all as long as the first list."""
        column = self._table.data.column(name)
        if pa.types.is_integer(column.type):
            return column.to_numpy().astype(np.int64)
        return MappedRows(self._files, name, len(column[0]) if len(column) else 1)

    def split(self, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (training, held out). All rows of a source image are on one side; the split has no seed."""
        if not fraction:
            return np.arange(len(self)), np.empty(0, np.int64)
        column = self._table.data.column("source_id")
        parts = (column.slice(first, 10_000).to_pylist() for first in range(0, len(column), 10_000))  # bounded memory
        held_out = np.fromiter((_held_out(name, fraction) for part in parts for name in part), bool, len(column))
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def open_codes(
    folder_or_repo: str | Path,
    verify: bool = True,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> CodeDataset:
    """Open the code data set in a folder or Hub repository.

    Args:
        verify: compare each shard's sha256 with the manifest; the size is always compared.
        revision, token: for a Hub repository, as in `huggingface_hub.snapshot_download`.
        subfolder: the data set's place in the folder or repository; None is the root.

    Raises:
        CodesError: it is not a code data set, it is unfinished, or a shard is missing or changed.
    """
    folder = Path(folder_or_repo)
    if not folder.is_dir():
        folder = _download(str(folder_or_repo), revision, subfolder, token)
    folder = folder / (subfolder or "")
    manifest = read_manifest(folder)
    files = shard_files(folder, manifest, verify)
    if not manifest.num_rows:
        raise CodesError(
            f"{folder} holds no codes: none of its {manifest.num_skipped} inputs could be used.",
            "Look at the reasons in its manifest.json, and make it again from readable pictures.",
        )
    return CodeDataset(manifest, files)


def shard_files(folder: Path, manifest: CodesManifest, verify: bool = True) -> list[Path]:
    """The data set's Parquet files in order.

    Raises:
        CodesError: one is missing or differs from the manifest (`verify` compares the sha256 too).
    """
    files = [folder / shard.file for shard in manifest.shards]
    for file, shard in zip(files, manifest.shards, strict=True):
        if not file.is_file():
            raise CodesError(
                f"The shard {file} is missing.",
                "Run `codegrid tokenize-dataset` again, or download the whole data set.",
            )
        if file.stat().st_size != shard.num_bytes or (verify and _sha256(file) != shard.sha256):
            raise CodesError(
                f"The shard {file} is not the one that the manifest describes.",
                "Make the codes again, or download them again.",
            )
    return files


def _download(repo: str, revision: str | None, subfolder: str | None, token: str | bool | None) -> Path:
    wanted = None if subfolder is None else f"{subfolder}/*"
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, token=token, allow_patterns=wanted))
    except Exception as error:
        raise CodesError(
            f"{repo!r} is neither a folder here nor a data set that the Hub gives ({type(error).__name__}: {error}).",
            "Name a folder that `codegrid tokenize-dataset` wrote, or check the repository's name, the "
            "connection and `hf auth login`.",
        ) from error


def _held_out(name: str, fraction: float) -> bool:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") < fraction * 2**64


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _by_chunks(file)


def _by_chunks(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()

"""Finds a foreign model's weights and config in a folder: variants, shards with an index, and a pipeline's parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from codegrid.downloads import read_json
from codegrid.errors import CodegridError
from codegrid.names import shown
from codegrid.tokenizer.importers.containers import Checkpoint, checkpoint_of
from codegrid.tokenizer.importers.reading import ForeignCheckpointError, read_content

INDEX = re.compile(r"^(.+?)\.(safetensors|bin)\.index(\.\w+)?\.json$")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers and transformers
_KINDS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_NO_MODELS = re.compile(r"^(optimizer|scheduler|training_args|scaler|rng_state|random_states|trainer_state)\b")
_HALF = ("fp16", "bf16", "half", "float16", "bfloat16")
# Folders of a pipeline that may be its tokenizer, and the classes that model_index.json may name for it.
_PARTS = ("vqvae", "vqmodel", "vq_model", "vqgan", "movq", "tokenizer")
_CLASSES = ("VQModel",)
_MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Found:
    """Where a foreign model's weights lie.

    Attributes:
        name: the file, or the index of its shards, below the folder that was named.
        files: the file, or its shards in order.
        config: config.json beside it, if there is one.
        notes: lines on what was chosen, for people.
    """

    name: str
    files: tuple[Path, ...]
    config: Path | None = None
    notes: tuple[str, ...] = ()

    def read(self, averaged: bool = False) -> Checkpoint:
        """The weights; nothing in the files is run.

        Raises:
            ForeignCheckpointError: a file is damaged, no checkpoint, or holds more than weights.
        """
        if len(self.files) == 1:
            return checkpoint_of(read_content(self.files[0]), shown(self.files[0]), averaged)
        weights: dict[str, Tensor] = {}
        for file in self.files:
            part = read_content(file)
            if not isinstance(part, Mapping) or not all(isinstance(value, Tensor) for value in part.values()):
                raise ForeignCheckpointError(
                    f"{shown(file)} is a shard that holds more than weights.", "Download the shards again."
                )
            weights |= part
        return checkpoint_of(weights, self.name, averaged)

    def sha256(self) -> str:
        """sha256 of the file; of shards, sha256 over theirs in order."""
        each = [_sha256(file) for file in self.files]
        return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def locate(path: str | Path) -> Found:
    """The weights that `path` names: a file, an index of shards, a model's folder, or a pipeline's.

    In a folder, full precision is taken before a variant (fp16), safetensors before pickles.

    Raises:
        ForeignCheckpointError: there are none, several that could be meant, a shard is missing or lies elsewhere, or
            the pipeline's part is of a class that is not read.
    """
    path = Path(path)
    if not path.exists():
        raise ForeignCheckpointError(f"There is no file {shown(path)}.", "Name the checkpoint's file by --checkpoint.")
    if not path.is_dir():
        found = INDEX.match(path.name)
        return _shards(path) if found and path.is_file() else Found(path.name, (path,))
    found = _in_folder(path)
    if found is not None:
        return found
    part = _part_of(path)
    found = _in_folder(path / part) if part else None
    if found is None:
        wanted = ", ".join(f"{stem}.safetensors" for stem in _STEMS)
        raise ForeignCheckpointError(
            f"{shown(path)} holds no weights: neither {wanted} or another checkpoint, nor a folder {', '.join(_PARTS)} "
            "with one.",
            "Name the checkpoint's file itself by --checkpoint.",
        )
    return Found(f"{part}/{found.name}", found.files, found.config, (f"The tokenizer is in {part}/.", *found.notes))


def _in_folder(folder: Path) -> Found | None:
    indices = sorted(entry for entry in folder.iterdir() if INDEX.match(entry.name))
    shards = {name for index in indices for name in _names_in(index)}
    files = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.suffix in _KINDS
        and entry.name not in shards
        and not _NO_MODELS.match(entry.name)
        and (entry.is_file() or entry.is_symlink())
    ]
    ranked = sorted((_rank(entry), entry.name, entry) for entry in (*files, *indices))
    if not ranked:
        return None
    best = [entry for rank, _, entry in ranked if rank == ranked[0][0]]
    if len(best) > 1:
        raise ForeignCheckpointError(
            f"{shown(folder)} holds several checkpoints: {', '.join(shown(entry.name) for entry in best)}.",
            "Name one of them by --checkpoint.",
        )
    chosen, variant = best[0], _variant(best[0].name)
    found = _shards(chosen) if INDEX.match(chosen.name) else Found(chosen.name, (chosen,))
    notes = [f"Read from {shown(found.name)}."]
    if variant in _HALF:
        notes.append(f"Only {variant} weights are there: they were rounded before, and are kept in float32 here.")
    elif variant:
        notes.append(f"Only the variant {variant} is there.")
    config = folder / "config.json"
    return Found(found.name, found.files, config if config.is_file() else None, tuple(notes))


def _rank(file: Path) -> tuple[int, int, int]:
    """Smaller is better: known names, full precision, safetensors."""
    index = INDEX.match(file.name)
    kind = f".{index[2]}" if index else file.suffix
    stem = file.name.split(".")[0]
    variant = _variant(file.name)
    known = _STEMS.index(stem) if stem in _STEMS else len(_STEMS)
    return known, 0 if not variant else 1 if variant in _HALF else 2, min(_KINDS.index(kind), 1)


def _variant(name: str) -> str:
    """Such as fp16 of "model.fp16.safetensors" and of "model.safetensors.index.fp16.json"."""
    index = INDEX.match(name)
    if index and index[3]:
        return index[3].strip(".")
    parts = (index[1] if index else name.rpartition(".")[0]).split(".")
    return parts[-1] if len(parts) > 1 and (parts[-1] in _HALF or parts[-1] == "non_ema") else ""


def _names_in(index: Path) -> list[str]:
    try:
        weight_map = read_json(index).get("weight_map")
    except CodegridError as error:
        raise ForeignCheckpointError(error.what, error.remedy) from error
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or len(names) > _MOST_SHARDS:
        raise ForeignCheckpointError(f"{shown(index)} names no shards: it is damaged.", "Download it again.")
    for name in names:
        plain = PurePosixPath(name).name == name and "\\" not in name and Path(name).suffix in (".safetensors", ".bin")
        if not plain:
            raise ForeignCheckpointError(
                f"{shown(index)} names the shard {name!r}, which is no weights file in the same folder.",
                "Download the checkpoint again, from a source that you trust.",
            )
    return names


def _shards(index: Path) -> Found:
    files = [index.parent / name for name in _names_in(index)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ForeignCheckpointError(
            f"{shown(index)} names {', '.join(missing[:8])}, not in its folder: the download is not whole.",
            "Download the checkpoint again.",
        )
    return Found(index.name, tuple(files))


def _part_of(folder: Path) -> str | None:
    """The folder of a pipeline's tokenizer, by model_index.json where there is one."""
    index, named = folder / "model_index.json", {}
    if index.is_file():
        try:
            named = read_json(index)
        except CodegridError as error:
            raise ForeignCheckpointError(error.what, error.remedy) from error
    here = [name for name in _PARTS if (folder / name).is_dir() and _in_folder(folder / name) is not None]
    if named:
        here = [name for name in here if name in named]
        here = [name for name in here if _class_of(named[name]) in _CLASSES] or here
    if len(here) > 1:
        raise ForeignCheckpointError(
            f"{shown(folder)} has several folders that could be the tokenizer's: {', '.join(here)}.",
            "Name one of them by --checkpoint.",
        )
    if here and named and _class_of(named[here[0]]) not in _CLASSES:
        raise ForeignCheckpointError(
            f"{shown(index)} says that {here[0]} is a {_class_of(named[here[0]])}, which is not read.",
            f"Name the folder of a {' or '.join(_CLASSES)} by --checkpoint.",
        )
    return here[0] if here else None


def _class_of(entry: Any) -> str:
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else str(entry)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Which kind of thing a folder holds, and whether it may be published: checked before anything is sent."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from codegrid.pipelines.artifacts.loading import LoadingError, load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.generation.pipeline import MODEL_INDEX_NAME, ImageGenerationPipeline
from codegrid.prior.codes import MANIFEST_NAME, CodesManifest, read_manifest, shard_files
from codegrid.prior.sequence import SEQUENCE_CONFIG_NAME
from codegrid.tokenizer.hub.push import WEIGHT_FILES

PATTERNS_OF_SHARDS = ("data/*.parquet",)
_PARTS = ("tokenizer", "prior")
# What a training run leaves beside the exported model; it stays at home, like all dotted names.
_BY_PRODUCTS = {"checkpoints", "tensorboard", "pictures", "wandb", "metrics.jsonl", "skipped.txt"}
_PUBLISHED = ("README.md", "LICENSE*", "*.safetensors", "*.safetensors.index.json", "*config.json", MODEL_INDEX_NAME)
_PUBLISHED += ("evaluation*.json", "*.png")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}


def open_folder(folder: Path) -> tuple[str, Any]:
    """The kind of a folder ("tokenizer", "prior", "pipeline" or "codes"), and what it holds, loaded.

    Loading is the check: classes outside the allow-list, weights that do not fit their config, and shards that are not
    the manifest's are refused there. Of codes only the manifest is given.

    Raises:
        LoadingError, CodesError: it holds none of them, or is unfinished or damaged.
    """
    if (folder / MODEL_INDEX_NAME).is_file():
        return "pipeline", ImageGenerationPipeline.from_pretrained(folder)
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        shard_files(folder, manifest)
        return "codes", manifest
    if (folder / SEQUENCE_CONFIG_NAME).is_file():
        return "prior", load_prior_and_sequence(folder)
    if (folder / "config.json").is_file():
        return "tokenizer", load_tokenizer(folder)
    raise LoadingError(f"{folder} holds no finished tokenizer, prior, pipeline or code data set.")


def published_files(folder: Path, kind: str, content: Any) -> dict[str, Path]:
    """The files of the folder that go to the Hub, by their path there.

    Raises:
        LoadingError: one is a pickle, leads out of the folder, is no JSON, or holds an access token.
    """
    if kind == "codes":
        return _checked(folder, [folder / name for name in _names_of_codes(folder, content)])
    found = _plain_files(folder)
    for part in _PARTS if kind == "pipeline" else ():
        found += _plain_files(folder / part)
    return _checked(folder, found)


def owned_patterns(kind: str) -> tuple[str, ...]:
    """Paths in a repository that a push of this kind replaces: what it lacks of them is deleted there."""
    if kind == "codes":
        return PATTERNS_OF_SHARDS
    if kind == "pipeline":
        return tuple(f"{part}/{pattern}" for part in _PARTS for pattern in WEIGHT_FILES)
    return WEIGHT_FILES


def _names_of_codes(folder: Path, manifest: CodesManifest) -> list[str]:
    optional = [name for name in ("README.md", "skipped.jsonl") if (folder / name).is_file()]
    return [MANIFEST_NAME, *optional, *(shard.file for shard in manifest.shards)]


def _plain_files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _BY_PRODUCTS or path.is_dir():
            continue
        if path.suffix.lower() in _PICKLES:
            raise LoadingError(
                f"{path} may be a pickle, which runs code where it is loaded: only safetensors are published. Move it "
                "out of the folder."
            )
        if any(fnmatchcase(path.name, pattern) for pattern in _PUBLISHED):
            found.append(path)
    return found


def _checked(folder: Path, files: list[Path]) -> dict[str, Path]:
    home = folder.resolve()
    for file in files:
        if not file.resolve().is_relative_to(home):
            raise LoadingError(f"{file} leads out of its folder, to {file.resolve()}: put the file itself there.")
        if file.suffix in (".json", ".md"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if _TOKEN.search(text):
                raise LoadingError(f"{file} holds an access token of the Hub: take it out, and revoke it.")
        if file.suffix == ".json":
            try:
                json.loads(text)
            except ValueError as error:
                raise LoadingError(f"{file} is damaged: {error}.") from error
    return {file.relative_to(folder).as_posix(): file for file in files}

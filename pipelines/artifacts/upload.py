"""Selects the files of a finished folder for the Hub and uploads them in one commit with a completed card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.cards import CardFacts, completed
from codegrid.pipelines.artifacts.index import CONDITION_TOKENIZER, MODEL_INDEX_NAME
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.artifacts.places import without_places
from codegrid.prior.codes import MANIFEST_NAME, CodesManifest
from codegrid.tokenizer.hub.push import WEIGHT_FILES, in_subfolder, push_files

PATTERNS_OF_SHARDS = ("data/*.parquet",)
_PARTS = ("tokenizer", "prior", "context", CONDITION_TOKENIZER)
# By-products of a training run beside the exported model. They are not uploaded, like all dotted names.
_BY_PRODUCTS = {"checkpoints", "tensorboard", "pictures", "wandb", "metrics.jsonl", "skipped.txt"}
_PUBLISHED = ("README.md", "LICENSE*", "*.safetensors", "*.safetensors.index.json", "*config.json", MODEL_INDEX_NAME)
_PUBLISHED += ("evaluation*.json", "*.png")
_EVALUATIONS = "evaluation/*.json"  # what a card's tables cite
_TEXTS = {".json", ".jsonl", ".md"}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}


def upload(
    folder: Path,
    kind: str,
    content: Any,
    card: str,
    repo_id: str,
    *,
    pictures: Mapping[str, Path | bytes] | None = None,
    subfolder: str | None = None,
    license: str | None = None,
    base_tokenizer: str | None = None,
    commit_message: str | None = None,
    **options: Any,
) -> str:
    """Upload a folder that was loaded before, in one commit, and return the commit's URL. The folder does not change.

    Args:
        kind: "tokenizer", "prior", "pipeline" or "codes"; for "codes", `content` is the manifest.
        card: text of the card if the folder has no README.md.
        pictures: pictures for the card, by name; the folder's own take precedence.
        options: options of `push_files`.

    Raises:
        LoadingError: a file may not be published; nothing was uploaded.
        PublishingError: the Hub refuses or cannot be reached.
    """
    require(
        license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license) is not None,
        f"license is {license!r}: it must be an identifier of the Hub.",
        "Give one such as mit, apache-2.0 or other.",
    )
    files: dict[str, Path | bytes] = {**(pictures or {}), **published_files(folder, kind, content)}
    own = folder / "README.md"
    text = own.read_text(encoding="utf-8") if own.is_file() else card
    shown = tuple(name for name in files if "/" not in name and name.endswith(".png"))
    facts = CardFacts(repo_id, subfolder, license, base_tokenizer, shown)
    files["README.md"] = completed(text, facts).encode()
    return push_files(
        in_subfolder({name: _without_places(name, content) for name, content in files.items()}, subfolder),
        repo_id,
        repo_type="dataset" if kind == "codes" else "model",
        replaces=tuple(in_subfolder(dict.fromkeys(owned_patterns(kind)), subfolder)),
        commit_message=commit_message or f"Upload {kind}",
        **options,
    )


def published_files(folder: Path, kind: str, content: Any) -> dict[str, Path]:
    """The files of the folder to upload, by their path on the Hub.

    Raises:
        LoadingError: a file is a pickle, leads out of the folder, is invalid JSON, or holds an access token.
    """
    if kind == "codes":
        return _checked(folder, [folder / name for name in _names_of_codes(folder, content)])
    found = _plain_files(folder) + sorted(folder.glob(_EVALUATIONS))
    for part in (part for part in _PARTS if kind == "pipeline" and (folder / part).is_dir()):
        found += _plain_files(folder / part) + sorted((folder / part).glob(_EVALUATIONS))
    return _checked(folder, found)


def owned_patterns(kind: str) -> tuple[str, ...]:
    """Patterns of paths that a push of this kind replaces: those not in the push are deleted from the repository."""
    if kind == "codes":
        return PATTERNS_OF_SHARDS
    if kind == "pipeline":
        parts = tuple(f"{part}/{pattern}" for part in _PARTS for pattern in (*WEIGHT_FILES, _EVALUATIONS))
        return (*parts, _EVALUATIONS)
    return (*WEIGHT_FILES, _EVALUATIONS)


def _without_places(name: str, content: Path | bytes) -> Path | bytes:
    """A text without paths of this machine, as bytes; any other file as it is."""
    if Path(name).suffix not in _TEXTS:
        return content
    text = (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")
    return without_places(name, text).encode()


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
                f"{shown(path)} may be a pickle, which runs code where it is loaded: only safetensors are published.",
                "Move it out of the folder.",
            )
        if any(fnmatchcase(path.name, pattern) for pattern in _PUBLISHED):
            found.append(path)
    return found


def _checked(folder: Path, files: list[Path]) -> dict[str, Path]:
    home = folder.resolve()
    for file in files:
        if not file.resolve().is_relative_to(home):
            raise LoadingError(
                f"{shown(file)} leads out of its folder, to {shown(file.resolve())}.", "Put the file itself there."
            )
        if file.suffix in (".json", ".md"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if _TOKEN.search(text):
                raise LoadingError(
                    f"{shown(file)} holds an access token of the Hub.", "Take it out, and revoke it on the Hub."
                )
        if file.suffix == ".json":
            try:
                json.loads(text)
            except ValueError as error:
                raise LoadingError(
                    f"{shown(file)} is damaged: {error}.", "Make it again, or move it out of the folder."
                ) from error
    return {file.relative_to(folder).as_posix(): file for file in files}

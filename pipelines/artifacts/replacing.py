"""Saving over an older folder: the project's own files are replaced, what somebody else put there stays."""

from __future__ import annotations

import json
import os
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from codegrid.names import shown
from codegrid.pipelines.artifacts.index import CONDITION_TOKENIZER, MODEL_INDEX_NAME, PIPELINE_CLASS
from codegrid.pipelines.system.files import OutputError, replace_folder, sha256
from codegrid.tokenizer.hub.push import WEIGHT_FILES

PARTS = ("tokenizer", "prior", "context", CONDITION_TOKENIZER)  # folders inside of a pipeline's
EVALUATION = "evaluation"
# All names that saving a model or a pipeline writes.
_OWN = (*WEIGHT_FILES, "config.json", "generation_config.json", "sequence_config.json", MODEL_INDEX_NAME, "README.md")
_TABLE = re.compile(
    r"<!-- codegrid evaluation: [^>]*?(?<!, end) -->.*?<!-- codegrid evaluation: [^>]*, end -->\n?", re.S
)


def check_target(folder: Path) -> None:
    """Refuse a folder that a pipeline may not be saved into.

    Raises:
        OutputError: it is a file, or not empty and without the index of a pipeline of this project.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file.", "Choose another folder for the pipeline.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        index = json.loads((folder / MODEL_INDEX_NAME).read_text(encoding="utf-8"))
        ours = isinstance(index, dict) and index.get("_class_name") == PIPELINE_CLASS
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise OutputError(f"{folder} is not empty and holds no pipeline.", "Choose another folder for the pipeline.")


def replace_own(aside: Path, folder: Path) -> list[str]:
    """Let the finished pipeline `aside` take the place of `folder`; give lines about what was kept aside.

    What is not of the project's names goes into `aside` first, as links to the same files, so that `folder` is at each
    moment the old one or the new one, with all of its files. Evaluations stay where weights are the same, with their
    tables in the card; otherwise they are renamed.
    """
    lines: list[str] = []
    if folder.is_dir():
        same = _weights(folder) == _weights(aside)
        for part in (".", *PARTS):
            if (folder / part).is_dir() and not (part != "." and (folder / part).is_symlink()):
                lines += _keep(folder / part, aside / part, same, PARTS if part == "." else ())
        shutil.copystat(folder, aside)
    replace_folder(aside, folder)
    return lines


def set_evaluations_aside(aside: Path, folder: Path) -> list[str]:
    """Rename evaluations of other weights before a model's new files in `aside` take the place of those in `folder`.

    Where the weights are the same, the new card gets the old one's tables. Returns lines about what was renamed.
    """
    evaluations, card = folder / EVALUATION, folder / "README.md"
    has_tables = card.is_file() and _TABLE.search(card.read_text(encoding="utf-8", errors="replace")) is not None
    if not evaluations.is_dir() and not has_tables:
        return []  # nothing is hashed
    if _weight_files(folder, ".") == _weight_files(aside, "."):
        if has_tables and (aside / card.name).is_file():
            _keep_tables(card, aside / card.name)
        return []
    if not evaluations.is_dir():
        return []
    name = _free_name(folder)
    evaluations.rename(folder / name)
    return [_renamed(evaluations, name)]


def _renamed(path: Path, name: str) -> str:
    return f"The weights are others than before: {shown(path)} is of the older ones, and lies in {name} there."


def _keep(old: Path, new: Path, same: bool, parts: tuple[str, ...]) -> list[str]:
    """Link all that is not ours from `old` into `new`."""
    lines, own = [], (*_OWN, *(("*.safetensors", "*.json") if old.name == "context" else ()))
    for path in sorted(old.iterdir()):
        name = path.name
        if name in parts and path.is_dir():
            continue
        if path.is_file() and any(fnmatchcase(name, pattern) for pattern in own):
            if name == "README.md" and same and (new / name).is_file():
                _keep_tables(path, new / name)
            continue
        if name == EVALUATION and path.is_dir() and not same:
            name = _free_name(old)
            lines.append(_renamed(path, name))
        new.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / name, symlinks=True, copy_function=_link)
        else:
            _link(path, new / name)
    return lines


def _keep_tables(old: Path, new: Path) -> None:
    tables = [found[0] for found in _TABLE.finditer(old.read_text(encoding="utf-8", errors="replace"))]
    text = new.read_text(encoding="utf-8")
    missing = [table for table in tables if table not in text]
    if missing:
        new.write_text("\n\n".join([text.rstrip(), *(table.rstrip() for table in missing)]) + "\n", encoding="utf-8")


def _weights(folder: Path) -> dict[str, str]:
    return _weight_files(folder, *PARTS)


def _weight_files(folder: Path, *parts: str) -> dict[str, str]:
    found = (path for part in parts for pattern in WEIGHT_FILES for path in (folder / part).glob(pattern))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found if path.is_file()}


def _free_name(folder: Path) -> str:
    number = 1
    while (folder / f"{EVALUATION}-of-older-weights-{number}").exists():
        number += 1
    return f"{EVALUATION}-of-older-weights-{number}"


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under another name; a copy where the file system has no such links."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

"""Ownership of a run's folder: its resolved config, and the identity of the data behind its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from codegrid.names import shown
from codegrid.pipelines.system.files import (
    GO_ON,
    LOCK_NAME,
    OutputError,
    lock_folder,
    remove_leftovers,
    write_atomically,
    write_json,
)
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.pipelines.training.config import TrainingConfig
from codegrid.tokenizer.fields import completed

CONFIG_NAME = "training_config.json"
IDENTITY_NAME = "made_from.json"
_MEMBERS_NAME = ".made_from.hashes"
# Fields that may change when a run resumes, because the weights depend on them only by rounding.
_MAY_CHANGE = {
    "output_dir",
    "num_workers",
    "log_every",
    "eval_every",
    "save_every",
    "keep_last",
    "keep_every",
    "onset_bound",
    "usage_warning",
    "num_pictures",
    "num_samples",
    "tracking",
    "device",
    "channels_last",
    "gradient_checkpointing",
    "compile",
    "deterministic",
    "profile",
    "sharding",
}
# Fields that may change although the weights depend on them: the run reports the change.
_MAY_BE_CHANGED_ALOUD = {"gradient_accumulation_steps"}
# Fields that only say where something lies. What lies there is part of the identity, so that a run may be moved.
_PLACES = ("data.source", "codes", "tokenizer", "init_from")


@dataclass(frozen=True)
class Identity:
    """Identity of the data from which a run's weights are computed.

    Attributes:
        description: a line for people.
        fixed: values by name that must be the same when the run resumes, as JSON.
        members: uint64 [N], sorted hashes of its members (pictures, shards). More may be added later.
        contents: gives uint64 [N], sorted hashes of the members that a copy of them has too; None where `members` are
            such. It is called when a run begins, and when members differ by more than what was added.
    """

    description: str
    fixed: dict[str, Any] = field(default_factory=dict)
    members: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    contents: Callable[[], np.ndarray] | None = None

    @classmethod
    def of(
        cls,
        description: str,
        fixed: dict[str, Any],
        hashes: Iterable[bytes],
        contents: Callable[[], Iterable[bytes]] | None = None,
    ) -> Identity:
        """`hashes` have at least 8 bytes each, and `contents` gives such, too."""
        later = None if contents is None else lambda: _sorted(contents())
        return cls(description, json.loads(json.dumps(fixed)), _sorted(hashes), later)

    def save(self, folder: Path) -> None:
        arrays = {"members": self.members} | ({} if self.contents is None else {"contents": self.contents()})
        tensors = {name: torch.from_numpy(each.astype(np.int64, casting="unsafe")) for name, each in arrays.items()}
        write_atomically(folder / _MEMBERS_NAME, lambda aside: save_file(tensors, aside))
        write_json(folder / IDENTITY_NAME, {"description": self.description, **self.fixed})

    @classmethod
    def load(cls, folder: Path) -> Identity | None:
        """The saved identity, or None if the run's version did not save one."""
        path, members = folder / IDENTITY_NAME, folder / _MEMBERS_NAME
        if not path.is_file() or not members.is_file():
            return None
        fixed = json.loads(path.read_text(encoding="utf-8"))
        arrays = {name: each.numpy().astype(np.uint64, casting="unsafe") for name, each in load_file(members).items()}
        contents = arrays.get("contents")
        return cls(fixed.pop("description"), fixed, arrays["members"], None if contents is None else lambda: contents)


def _sorted(hashes: Iterable[bytes]) -> np.ndarray:
    return np.sort(np.frombuffer(b"".join(each[:8] for each in hashes), dtype=np.uint64))


def check_folder(folder: Path, stage: str, config: TrainingConfig, identity: Identity | None) -> list[str]:
    """Check that the folder is free for this run, or belongs to it already. Nothing is written.

    Returns:
        messages for the user about how the run resumes, or what it replaces.

    Raises:
        OutputError: the folder holds something else, or a run with other settings or data, or is in use.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{shown(folder)} is a file.", "Choose another --output-dir.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{shown(folder)}: Not a directory: {shown(there)}.", "Choose another --output-dir.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{shown(there)} is not writable.", GO_ON)
    if (folder / LOCK_NAME).exists():
        lock_folder(folder, "training").close()
    return _compare(folder, stage, config, identity)


def claim_folder(folder: Path, stage: str, config: TrainingConfig, identity: Identity | None) -> tuple[IO[str], list]:
    """`check_folder`, and claim the folder for this run.

    Returns:
        the open lock file, and the messages.

    Raises:
        OutputError: as `check_folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, "training")
    try:
        told = _compare(folder, stage, config, identity)
        write_json(folder / CONFIG_NAME, _resolved(stage, config))
        if identity is not None and not _is_saved(folder, identity):
            identity.save(folder)
    except BaseException:
        lock.close()
        raise
    remove_leftovers(folder, folder / "checkpoints", folder / "pictures")
    return lock, told


def _is_saved(folder: Path, identity: Identity) -> bool:
    """Whether a run that is gone on with has this identity, so that the pictures need not be read again."""
    before = Identity.load(folder) if any((folder / "checkpoints").glob("step-*")) else None
    return before is not None and np.array_equal(before.members, identity.members)


def _resolved(stage: str, config: TrainingConfig) -> dict[str, Any]:
    return json.loads(json.dumps({"stage": stage, **asdict(config)}))


def _compare(folder: Path, stage: str, config: TrainingConfig, identity: Identity | None) -> list[str]:
    path = folder / CONFIG_NAME
    if not path.exists():
        if folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise OutputError(
                f"{shown(folder)} is not empty and holds no training run, but {what_it_holds(folder)}.",
                "Choose another --output-dir.",
            )
        return []
    other = {"tokenizer": "prior", "prior": "tokenizer"}.get(stage)
    if other and what_it_holds(folder).endswith(other):
        raise OutputError(
            f"{shown(folder)} holds the training run of a {other} (stage was {other!r}, is {stage!r}).",
            f"Choose another --output-dir for the {stage}.",
        )
    if any((folder / "checkpoints").glob("step-*")):
        before = Identity.load(folder) if identity is not None else None
        told = _compare_config(path, _resolved(stage, config), type(config), before is not None)
        return told + (
            _compare_identity(folder, before, identity) if before is not None and identity is not None else []
        )
    if any(folder.glob("*.safetensors")):
        raise OutputError(
            f"{shown(folder)} holds a finished {stage} whose checkpoints are gone: there is nothing to resume from.",
            f"Train on from its weights with --init-from {shown(folder)} and another --output-dir.",
        )
    try:
        replaced = _compare_config(path, _resolved(stage, config), type(config), identified=False) != []
    except OutputError:
        replaced = True
    return [f"{shown(folder)} was claimed by a run that saved nothing: this one takes its place."] * replaced


def _compare_config(path: Path, resolved: dict[str, Any], kind: type[TrainingConfig], identified: bool) -> list[str]:
    """Messages on what may differ. `identified`: what lies at the named places is compared by itself."""
    folder = path.parent
    try:
        previous = completed(kind, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise OutputError(f"{shown(path)} cannot be read ({error}).", "Choose another --output-dir.") from error
    aloud = {name for name in _MAY_BE_CHANGED_ALOUD if name in previous and previous[name] != resolved.get(name)}
    if previous.get("max_steps", 0) < resolved.get("max_steps", 0):  # a longer run has another learning rate schedule
        aloud.add("max_steps")
    told = [f"{name} was {previous[name]!r}, is {resolved[name]!r}" for name in sorted(aloud)]
    moved = _moved(previous, resolved) if identified else []
    if found := differences(*({**each, **dict.fromkeys(aloud)} for each in (previous, resolved))):
        raise OutputError(
            f"{shown(folder)} holds another run. Different are: {'; '.join(found)}.",
            "Pass its settings to resume it, choose another --output-dir, or start from its weights in another folder "
            f"with --init-from {shown(folder)}.",
        )
    sentences = [f"Going on with other settings than the run began with: {'; '.join(told)}."] if told else []
    return sentences + (
        [f"Going on at another place: {'; '.join(moved)}. What lies there is compared."] if moved else []
    )


def _moved(previous: dict[str, Any], resolved: dict[str, Any]) -> list[str]:
    """The places that differ, as text for people. `previous` gets those of `resolved`."""
    found = []
    for place in _PLACES:
        *outer, name = place.split(".")
        before, now = previous, resolved
        for part in outer:
            before, now = before.get(part) or {}, now.get(part) or {}
        there, here = before.get(name), now.get(name)
        if there != here and isinstance(there, str) and isinstance(here, str):
            found.append(f"{place} was {there!r}, is {here!r}")
            before[name] = here
    return found


def _compare_identity(folder: Path, before: Identity, now: Identity) -> list[str]:
    if found := differences(before.fixed, now.fixed):
        raise _other(folder, before, now, "; ".join(found))
    gone, told = np.setdiff1d(before.members, now.members), []
    if len(gone) and before.contents is not None and now.contents is not None:
        gone = np.setdiff1d(before.contents(), now.contents())  # the files may be copies
        told = ["The files' times are others than when the run began, and what they hold is the same: going on."]
    if len(gone):
        raise _other(folder, before, now, f"{len(gone):,} of {len(before.members):,} are gone or changed")
    added = len(now.members) - len(before.members)
    if not added:
        return told
    return [
        *told,
        f"The data has grown since the run began: {before.description} became {now.description}. What is held out, and "
        "the order from here on, are those of all of it.",
    ]


def _other(folder: Path, before: Identity, now: Identity, detail: str) -> OutputError:
    return OutputError(
        f"{shown(folder)} was trained on {before.description}; now there is {now.description} ({detail}).",
        f"Give it what it began with, or start a new run from its weights: --init-from {shown(folder)} (once it is "
        "finished), and another --output-dir.",
    )


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """The differences of two resolved configs, as text for people. Fields on which no weight depends may differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted(set(before) | set(now)):
            # Do not compare a field that an earlier version lacked: its default changes nothing.
            if name in before and (where or name not in _MAY_CHANGE):
                found += differences(before[name], now.get(name), f"{where}.{name}" if where else name)
        return found
    return [] if before == now else [f"{where} was {before!r}, is {now!r}"]

"""The results of an evaluation on the disk: rows of one identity add up, those of another are set apart.

NAME.json holds the rows of one identity: what was scored, with what, on which pictures. An evaluation of another
identity renames it to NAME-MARK.json, and takes NAME.json for itself; MARK is a hash of the identity, so that going
back to it finds its rows again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegrid.pipelines.system.files import OutputError, lock_folder, write_json

Row = Mapping[str, Any]  # numbers, None, and words that name a row
_WEIGHTS = ("tokenizer_fingerprint", "prior_fingerprint")
_PATIENCE = 30  # seconds to wait for another process that writes its rows
_OTHER_FOLDER = "Choose another --output-dir, or move the file."


@dataclass
class Ledger:
    """The results of one evaluation, of one identity.

    Args:
        name: such as "generation"; the file is NAME.json.
        identity: what the rows were computed from, as JSON. Rows of another identity are never in the same file.
        settings: fields of a row that tell it from the other rows of the identity.
    """

    name: str
    identity: dict[str, Any]
    settings: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity = json.loads(json.dumps(self.identity))

    def check(self, folder: Path) -> None:
        """Refuse a folder whose NAME.json is no evaluation, before anything is computed.

        Raises:
            OutputError: it is not.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file.", "Choose another --output-dir.")
        self._read(folder / f"{self.name}.json")

    def add(self, folder: Path, rows: Sequence[Row], record: Mapping[str, Any], drop: bool = False) -> list[Row]:
        """Add the rows to NAME.json and return all of its rows, in the order of their settings.

        A row replaces the one of the same settings. `said` gets a sentence for each file that is set apart.

        Args:
            record: with what the rows were made; that of the newest stays.
            drop: delete rows of other weights instead of setting them apart.

        Raises:
            OutputError: NAME.json is no evaluation, or cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            path = folder / f"{self.name}.json"
            before = self._read(path)
            if before is not None and before.get("identity") != self.identity:
                self._set_apart(path, before, drop)
                before = None
            aside = path.with_name(f"{self.name}-{_mark(self.identity)}.json")
            known = [old for old in (self._read(aside), before) if old and old.get("identity") == self.identity]
            merged = self._merged([row for old in known for row in old["results"]], rows)
            commands = [command for old in known for command in old.get("commands", [])]
            commands = list(dict.fromkeys([*commands, *([record["command"]] if "command" in record else [])]))
            head = {"kind": self.name, "results": merged, "identity": self.identity}
            write_json(path, {**head, **record, "commands": commands})
            aside.unlink(missing_ok=True)
        return merged

    def _merged(self, before: Sequence[Row], new: Sequence[Row]) -> list[Row]:
        rows = {tuple(row.get(name) for name in self.settings): dict(row) for row in (*before, *new)}
        names = list(dict.fromkeys(name for row in (*new, *before) for name in row))
        order = sorted(rows, key=lambda key: [(value is not None, value or 0) for value in key])
        return [{name: rows[key].get(name) for name in names} for key in order]

    def _set_apart(self, path: Path, before: dict[str, Any], drop: bool) -> None:
        identity = before.get("identity")
        weights = [name for name in _WEIGHTS if name in before or name in self.identity]
        if drop and any((identity or before).get(name) != self.identity.get(name) for name in weights):
            path.unlink()
            self.said.append(f"The results in {path} were of other weights: they are replaced.")
            return
        target = path.with_name(f"{self.name}-{_mark(identity or before)}.json")
        os.replace(path, target)
        if identity is None:
            reason = "of an earlier version, or not of this evaluation"
        else:
            parts = sorted({*identity, *self.identity})
            other = [part for part in parts if identity.get(part) != self.identity.get(part)]
            reason = f"another {', '.join(name.replace('_', ' ') for name in other)}"
        self.said.append(f"The earlier results in {path} ({reason}) are kept apart, in {target.name}.")

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            mine = values["kind"] == self.name and all(isinstance(row, dict) for row in values["results"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is no result of this evaluation ({error}).", _OTHER_FOLDER) from error
        if not mine:
            raise OutputError(f"{path} is no result of this evaluation.", _OTHER_FOLDER)
        return values


def _mark(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _locked(folder: Path) -> Any:
    """The folder's lock, as a context; another process holds it only while it writes."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return lock_folder(folder, "writing results")
        except OutputError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)

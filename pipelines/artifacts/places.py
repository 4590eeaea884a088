"""Takes the machine's paths out of what is published: where an owner's folders lie is nobody's business."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_ABSOLUTE = re.compile(r"(?:file://)?(?:/[^/\n]|[A-Za-z]:[\\/])")
# A path in code marks or quotes may hold spaces; others end at a space, a mark or a quote.
_MARKED = re.compile(r"(?<!`)`((?:/|[A-Za-z]:[\\/])[^`\n]+)`(?!`)|'((?:/|[A-Za-z]:[\\/])[^'\n]+)'")
_BARE = re.compile(r"(?<![\w.:/\\~<-])(/[^\s\"'`<>|,;:()\[\]{}]+/[^\s\"'`<>|,;:()\[\]{}]*)")
_ROOTS = {"home", "Users", "root", "tmp", "var", "mnt", "media", "data", "scratch", "opt", "srv", "work", "private"}


def without_places(name: str, text: str) -> str:
    """The text of the file `name`, with the last part of each absolute path in place of the path.

    JSON keeps its layout if nothing changes.
    """
    if name.endswith(".json"):
        value = json.loads(text)
        shorter = _of_value(value)
        return text if shorter == value else json.dumps(shorter, indent=2, ensure_ascii=False) + "\n"
    if name.endswith(".jsonl"):
        lines = [json.dumps(_of_value(json.loads(line)), ensure_ascii=False) for line in text.splitlines()]
        return "".join(f"{line}\n" for line in lines)
    return _of_text(text)


def _of_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {_of_text(str(key)): _of_value(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_of_value(each) for each in value]
    if not isinstance(value, str):
        return value
    is_a_path = _ABSOLUTE.match(value) and not any(mark in value for mark in (" /", " -", "'", '"', "`"))
    return _last(value) if is_a_path else _of_text(value)


def _of_text(text: str) -> str:
    text = _MARKED.sub(lambda found: found[0][0] + _last(found[1] or found[2]) + found[0][-1], text)
    return _BARE.sub(lambda found: _last(found[0]) if _is_of_a_machine(found[0]) else found[0], text)


def _last(value: str) -> str:
    """The last part of a path; text behind ": ", as in the description of a source, stays."""
    path, mark, rest = value.removeprefix("file://").partition(": ")
    if mark:
        rest = _of_text(rest)
    kind = PurePosixPath if path.startswith("/") else PureWindowsPath
    name = "~" if path.rstrip("/") == str(Path.home()) else kind(path).name
    return f"{name}{mark}{rest}"


def _is_of_a_machine(path: str) -> bool:
    first = path.split("/")[1]
    return first in _ROOTS or Path("/", first).exists()

"""Suggestions for misspelt names: the nearest of the known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(name: str, kind: str, names: Iterable[str]) -> str:
    """A sentence that `name` is not one of `names`, with the nearest name if one is near, and all names."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is {kind}.{meant} There are {', '.join(known)}."


def unknown_option(option: str, options: Iterable[str], command: str) -> str:
    """A sentence that `command` has no such option, with the nearest option if one is near."""
    near = difflib.get_close_matches(option, list(options), n=1)
    if near:
        return f"{option}: did you mean {near[0]}?"
    return f"{option} is no option of `{command}`; `{command} --help` lists them."

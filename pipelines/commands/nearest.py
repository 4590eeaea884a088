"""Suggestions for misspelt names: the nearest of the known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(name: str, kind: str, names: Iterable[str]) -> tuple[str, str]:
    """What is wrong and what to do if `name` is not one of `names`: the nearest if one is near, and all of them."""
    known = list(names)
    meant = did_you_mean(repr(name), map(repr, known))
    return f"{name!r} is {kind}.", f"{meant}There are {', '.join(known)}."


def did_you_mean(name: str, names: Iterable[str], least: float = 0.6) -> str:
    """A question with the nearest name and a space behind it; empty if no name is `least` near, in [0, 1]."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=least)
    return f"Did you mean {near[0]}? " if near else ""

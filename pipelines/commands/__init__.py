"""The command `codegrid NAME`: the table of names, how each is parsed, and what it calls."""

from __future__ import annotations

from codegrid.pipelines.commands.entry import main

__all__ = ["main"]

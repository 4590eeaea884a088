"""The one command, `codegrid NAME`: which names there are, how each is parsed, and what it calls."""

from __future__ import annotations

from codegrid.pipelines.commands.entry import main

__all__ = ["main"]

"""What is checked of any command's `output_dir` before the command begins."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegrid.errors import CodegridError
from codegrid.names import shown


def check_output(given: Mapping[str, Any]) -> None:
    """Refuse an `output_dir` that nobody can make, and one inside of a folder that the command reads pictures from.

    What is written there would be read as pictures the next time.

    Args:
        given: the command's options by name; a config's fields.

    Raises:
        CodegridError: as above.
    """
    output = given.get("output_dir")
    if output is None:
        return
    if not str(output):
        raise CodegridError("--output-dir is an empty name.", "Name a folder.")
    path = Path(output)
    for folder in (path, *path.parents):
        try:
            is_there = os.path.lexists(folder)
            if is_there and not folder.is_dir():  # also a link to nothing, or to itself
                raise CodegridError(
                    f"--output-dir {shown(str(output))} cannot be made: {shown(str(folder))} is there and no folder.",
                    "Choose another --output-dir.",
                )
        except OSError as error:
            raise CodegridError(
                f"--output-dir {shown(str(output))} cannot be made: {error.strerror}.", "Choose another --output-dir."
            ) from error
        if is_there:
            break
    for source in _sources(given):
        if os.path.isdir(source) and Path(source).resolve() in (path.resolve(), *path.resolve().parents):
            raise CodegridError(
                f"--output-dir {shown(str(output))} lies inside of {shown(source)}, whose pictures are read.",
                "Choose a folder outside of it: what is written there would be read the next time.",
            )


def _sources(given: Mapping[str, Any]) -> list[str]:
    """The sources of pictures among a command's options: configs with a `source`, and texts of such a name."""
    found = [value.source for value in given.values() if dataclasses.is_dataclass(value) and hasattr(value, "source")]
    names = ("source", "reference", "samples", "test_data")
    found += [given[name] for name in names if isinstance(given.get(name), str)]
    return [source for source in found if isinstance(source, str)]

"""What a folder is, for the sentence that refuses it."""

from __future__ import annotations

import json
from pathlib import Path

from codegrid.names import shown

# Files by which a folder is known, the telling ones first, and what a person calls the folder.
_MARKS = (
    ("training_config.json", "the training run of a {stage}"),
    ("model_index.json", "a pipeline"),
    ("generation.json", "generated images"),
    ("manifest.json", "a code data set"),
    (".plan.json", "an unfinished code data set"),
    ("sequence_config.json", "a prior"),
    ("config.json", "a model"),
)


def what_it_holds(folder: Path) -> str:
    """What a folder holds, in a few words: "the training run of a prior", "a pipeline", "thesis.tex and 3 more"."""
    for name, what in _MARKS:
        if (folder / name).is_file():
            return what.format(stage=_stage(folder / name))
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{shown(names[0])}{more}" if names else "nothing"


def _stage(config: Path) -> str:
    try:
        stage = json.loads(config.read_text(encoding="utf-8")).get("stage")
    except (OSError, ValueError, AttributeError):
        stage = None
    return stage if stage in ("tokenizer", "prior") else "model"

"""The commands of a page of docs/recipes, as they stand there, made small."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path
from typing import Any

from documents import ROOT, blocks, codegrid_words, read

from codegrid.pipelines.commands import main

FEW_STEPS = ["--max-steps", "2", "--batch-size", "4", "--tracking"]
_SMALL = {"train-tokenizer": FEW_STEPS, "train-prior": [*FEW_STEPS, "--model.num-hidden-layers", "1"]}


def recipe_of(page: str) -> dict[str, Any]:
    """The names of the script beside a page."""
    return runpy.run_path(str((ROOT / "docs" / "recipes" / page).with_suffix(".py")))


def run_page(page: str, small: dict[str, list[str]], places: dict[str, str]) -> list[str]:
    """Run the lines of the page's blocks that are commands of the project or of the page's script.

    Args:
        small: options that are added, by command; None for a line that is left out.
        places: words of the page in place of which others are taken.

    Returns:
        the names of the commands that ran.
    """
    recipe, ran = recipe_of(page), []
    script = f"python docs/recipes/{Path(page).stem}.py"
    for line in (line for block in blocks(read(ROOT / "docs" / "recipes" / page)) for line in lines_of(block.text)):
        words, run = codegrid_words(line), main
        if line.startswith(script):
            words, run = shlex.split(line.removeprefix(script)), recipe["main"]
        if words is None or small.get(words[0], []) is None:
            continue
        words = [places.get(word, word) for word in words]
        kept = [word for index, word in enumerate(words) if "--max-steps" not in words[max(0, index - 1) : index + 1]]
        run([*kept, *(_SMALL | small).get(words[0], [])])
        ran.append(words[0])
    return ran


def lines_of(text: str) -> list[str]:
    return text.replace("\\\n", " ").split("\n")

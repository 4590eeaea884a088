"""docs/first_steps.ipynb: its cells run one after the other, on a small pipeline where the notebook looks for one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))
PIPELINE = ROOT / "tests" / "saved_by_be0a219" / "pipeline"


def run_cells() -> dict[str, Any]:
    """The names that the code cells have left; what Jupyter would show of a cell is computed too."""
    names: dict[str, Any] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"first_steps.ipynb, {cell['id']}", "exec"), names)
    return names


@pytest.mark.parametrize("own", [True, False])
def test_the_cells_run(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PIPELINE, tmp_path / "runs" / "quickstart" / "pipeline")
    if own:
        (tmp_path / "my_pictures").mkdir()
        for index in range(12):
            colour = tuple(random.randrange(256) for _ in range(3))
            Image.new("RGB", (30 + index, 40), colour).save(tmp_path / "my_pictures" / f"{index:02}.png")
    monkeypatch.chdir(tmp_path)
    names = run_cells()
    assert len(names["pictures"]) == 10
    assert names["pictures"][0].size == ((30, 40) if own else (28, 28))
    half = names["half"]
    assert names["codes"].shape == (10, 2 * half, 2 * half)
    assert (names["changed"][0, half:] == names["codes"][1, half:]).all()
    assert (names["changed"][0, :half] == names["codes"][0, :half]).all()
    assert len(names["samples"]) == len(names["pipe"].class_names)
    assert len(names["completed"]) == 5
    sheet = names["sheet"](names["samples"], names["completed"])
    assert sheet.size == (96 * 5, 96 * 2)
    assert np.asarray(sheet).std() > 0


def test_the_notebook_is_saved_without_output_and_says_what_each_cell_does() -> None:
    kinds = [cell["cell_type"] for cell in NOTEBOOK["cells"]]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2) + ["markdown"]
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert len(cell["source"]) <= 26

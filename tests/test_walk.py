"""The walk of the data: how many files a picture enters on its way from the disk to a row of codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from codegrid.pipelines.codes import tokenize
from codegrid.pipelines.data.records import DataConfig
from codegrid.tokenizer import VQModel

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES = 7


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Files of this project, outside of tokenizer/, whose functions run from a picture's name to its row of codes."""
    found: set[str] = set()
    encode = tokenize._encode  # draws the pictures, one after the other, and gives the rows

    def trace(frame, event, _):
        if event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("pipelines", "prior"):
                found.add(path.relative_to(ROOT).as_posix())

    def traced(*arguments):
        sys.setprofile(trace)
        try:
            return encode(*arguments)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(tokenize, "_encode", traced)
    return found


def test_a_picture_enters_few_files_on_its_way_to_a_row(
    tiny_vqmodel: VQModel, image_folder: Path, tmp_path: Path, entered: set[str]
):
    tiny_vqmodel.save_pretrained(tmp_path / "tokenizer")
    config = tokenize.TokenizationConfig(
        str(tmp_path / "tokenizer"), DataConfig(str(image_folder)), str(tmp_path / "codes"), device="cpu"
    )
    tokenize.tokenize_dataset(config)
    entered.discard("pipelines/codegrid/errors.py")  # `require` sees a condition and a sentence, no picture
    assert {"pipelines/data/folders.py", "pipelines/data/batches.py", "pipelines/codes/tokenize.py"} <= entered
    assert len(entered) <= MOST_FILES, sorted(entered)

"""docs/recipes/book.md on a small text: what the page's commands do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recipe_pages import recipe_of, run_page


@pytest.fixture
def text(tmp_path: Path) -> bytes:
    words = ["Ge1:1", "begat", "and", "the", "LORD", "said", "unto\n"]
    text = " ".join(np.random.default_rng(0).choice(words, 2000)).encode()
    (tmp_path / "kjv.txt").write_bytes(text)
    return text


def test_every_held_out_character_is_scored_once_and_none_is_trained_on(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe_of("book.md")["windows"]("kjv.txt", "TRAINING.npy", "HELD.npy")
    cut = len(text) * 9 // 10
    rows = np.load("HELD.npy", allow_pickle=False)
    scored = rows[:, 128:].tobytes()
    assert text[cut:].startswith(scored)
    assert len(text) - cut - len(scored) < 128
    assert rows[0, :128].tobytes() == text[cut - 128 : cut]
    training = np.load("TRAINING.npy", allow_pickle=False)
    assert all(row.tobytes() in text[:cut] for row in training[:200])


def test_the_page_runs(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"nanogpt": None, "score-nanogpt": None, "generate": ["--num-images", "1"]}
    ran = run_page("book.md", small, {})
    assert {"windows", "import-codes", "train-prior", "evaluate", "generate", "show", "compress", "decompress"} <= {
        *ran
    }
    assert "bits of 7" in capsys.readouterr().out
    assert np.array_equal(np.load("BACK/codes.npy"), np.load("HELD.npy"))

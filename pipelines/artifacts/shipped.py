"""The pipelines that come with the package, each under a name of its own: no download, no training."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).with_name("shipped")
# Each folder is a pipeline with its card, and `expected.npz` beside it: codes and the pictures that they decode to.
SHIPPED = ("fashion-mnist",)
EXPECTED_NAME = "expected.npz"


def shipped_folder(name: str, what: str) -> Path | None:
    """The folder of the pipeline that comes under this name, or of its tokenizer or prior; None if none does.

    Args:
        what: "pipeline", "tokenizer" or "prior".
    """
    if name not in SHIPPED:
        return None
    return _FOLDER / name if what == "pipeline" else _FOLDER / name / what

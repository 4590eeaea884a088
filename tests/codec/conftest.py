"""A pipeline with a context model, of parts that are kept in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegrid.pipelines.compression.codec import ImageCodec
from codegrid.pipelines.generation.make import make_pipeline

SAVED = Path(__file__).resolve().parents[1] / "saved_by_be0a219"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "pipeline"
    parts = {part: str(SAVED / "pipeline" / part) for part in ("tokenizer", "prior")}
    make_pipeline(**parts, output_dir=str(folder), context=str(SAVED / "codes"))
    return folder


@pytest.fixture(scope="module")
def codec(pipeline: Path) -> ImageCodec:
    return ImageCodec.from_pretrained(pipeline)

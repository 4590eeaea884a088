"""Finds the kind of a folder by loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codegrid.names import shown
from codegrid.pipelines.artifacts.index import MODEL_INDEX_NAME
from codegrid.pipelines.artifacts.loading import LoadingError, load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior.codes import MANIFEST_NAME, read_manifest, shard_files
from codegrid.prior.sequence_config import SEQUENCE_CONFIG_NAME


def open_folder(folder: Path) -> tuple[str, Any]:
    """The kind of a folder ("tokenizer", "prior", "pipeline" or "codes") and its loaded content.

    Loading is the check: it refuses classes outside the allow-list, weights that do not fit their config, and
    shards that differ from the manifest. For codes, only the manifest is returned.

    Raises:
        LoadingError, CodesError: the folder is none of these kinds, or is unfinished or damaged.
    """
    if (folder / MODEL_INDEX_NAME).is_file():
        return "pipeline", ImageGenerationPipeline.from_pretrained(folder)
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder)
        shard_files(folder, manifest)
        return "codes", manifest
    if (folder / SEQUENCE_CONFIG_NAME).is_file():
        return "prior", load_prior_and_sequence(folder)
    if (folder / "config.json").is_file():
        return "tokenizer", load_tokenizer(folder)
    raise LoadingError(
        f"{shown(folder)} holds no finished tokenizer, prior, pipeline or code data set.",
        "Name a folder that train-tokenizer, train-prior, make-pipeline or tokenize-dataset finished.",
    )

"""Duplicates between the two parts of a run: looked for once, before its first step, and kept in its folder."""

from __future__ import annotations

import json

from codegrid.pipelines.data.duplicates import Overlap, find_overlap
from codegrid.pipelines.data.records import ImageSource
from codegrid.pipelines.system.files import write_json
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.run import Run

NAME = "duplicates.json"


def overlap_of_run(
    run: Run, config: TokenizerTrainingConfig, images: ImageSource, validation: ImageSource | None
) -> Overlap | None:
    """What the parts share; from the run's folder where it is resumed with the same pictures.

    None where nothing is held out, and on other ranks than the main process.
    """
    if validation is None or not run.is_main:
        return None
    known = _read(run, _key(images, validation))
    return known or find_overlap(images, validation, config.preprocessing, config.backbone.in_channels)


def save_overlap(run: Run, overlap: Overlap, images: ImageSource, validation: ImageSource) -> None:
    """Write duplicates.json into the claimed folder."""
    write_json(run.folder / NAME, {"fingerprints": _key(images, validation), **overlap.record()})


def _key(images: ImageSource, validation: ImageSource) -> list[str]:
    return [images.fingerprint, validation.fingerprint]


def _read(run: Run, key: list[str]) -> Overlap | None:
    try:
        values = json.loads((run.folder / NAME).read_text(encoding="utf-8"))
        if values.pop("fingerprints") != key:
            return None
        overlap = Overlap(**values)
        overlap.sentence()
        return overlap
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing or damaged: it is computed again

"""Export of a finished model into a folder. Its files appear whole, the config last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from codegrid.names import shown
from codegrid.pipelines.artifacts.cards import prior_card, tokenizer_card
from codegrid.pipelines.artifacts.replacing import set_evaluations_aside
from codegrid.pipelines.system.files import GO_ON, OutputError, fsync
from codegrid.prior import SequenceConfig, save_prior
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.hub.push import WEIGHT_FILES

_CONFIG = "config.json"


def export_tokenizer(model: VQModel, folder: Path, source: str, scores: Mapping[str, float]) -> None:
    """Write a tokenizer and its card into `folder`. `VQModel.from_pretrained(folder)` loads it."""

    def write(aside: Path) -> None:
        model.save_pretrained(aside)
        (aside / "README.md").write_text(tokenizer_card(model.config, source, scores), encoding="utf-8")

    export(folder, write)


def export_prior(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    folder: Path,
    codes: str,
    scores: Mapping[str, float],
    tokenizer: str | None = None,
) -> None:
    """Write a prior, its sequence config and its card into `folder`. `tokenizer` is the one that made the codes."""

    def write(aside: Path) -> None:
        save_prior(model, sequence, aside)
        card = prior_card(sequence, codes, scores, tokenizer, model.config.model_type)
        (aside / "README.md").write_text(card, encoding="utf-8")

    export(folder, write)


def export(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary folder, flush it, then move its files into `folder`, `config.json` last.

    Weight files of an older model that the new one does not replace go: an index of its shards would be read first.
    Evaluations of other weights are renamed, and a line says so; tables of the same weights stay in the card.
    """
    aside = folder / ".tmp-export"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        files = list(aside.iterdir())
        names = {file.name for file in files}
        for line in set_evaluations_aside(aside, folder):
            print(line)
        for file in files:
            fsync(file)
        for name in sorted(names - {_CONFIG}):
            os.replace(aside / name, folder / name)
        for old in folder.iterdir():
            if old.name not in names and any(fnmatchcase(old.name, pattern) for pattern in WEIGHT_FILES):
                old.unlink()
        for name in names & {_CONFIG}:
            os.replace(aside / name, folder / name)
        fsync(folder)
    except (OSError, SafetensorError) as error:  # safetensors raises its own error on a full disk
        raise OutputError(f"Could not write the model into {shown(folder)}: {error}.", GO_ON) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)

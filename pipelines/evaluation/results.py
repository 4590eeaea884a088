"""Output of an evaluation: a JSON with all that is needed to repeat it, and a table in the model's card."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from codegrid.pipelines.artifacts.cards import with_evaluation
from codegrid.pipelines.data.records import ImageStream
from codegrid.pipelines.evaluation.ledger import Ledger, Row
from codegrid.pipelines.system.files import write_text
from codegrid.tokenizer import VQModel

_LIBRARIES = ("codegrid", "torch", "torchvision", "torchmetrics", "torch-fidelity", "transformers", "numpy", "pillow")
FOLDER_NAME = "evaluation"  # inside a model's folder


def output_folder(output_dir: str | None, model: str) -> Path:
    """The user's folder, or a folder beside the model's, named after it."""
    if output_dir is not None:
        return Path(output_dir)
    path = Path(model)
    return path.with_name(f"{path.name}-evaluation") if path.is_dir() else Path(f"{path.name}-evaluation")


def circumstances(accelerator: Accelerator) -> dict[str, Any]:
    """The circumstances of an evaluation: command, commit, versions, device and precision."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": _command(),
        "commit": _commit(),
        "precision": accelerator.policy.precision,
        "policy": asdict(accelerator.policy),
        "device": f"{accelerator.num_processes} x {device.type} ({name}), {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def _command() -> str:
    """The command line of this process. It starts with `codegrid NAME` if `codegrid` runs it."""
    return f"{sys.argv[0]} {shlex.join(sys.argv[1:])}"


def describe_data(images: ImageStream, source: str, split: str, model: VQModel) -> dict[str, Any]:
    """A description of the images and of how they became squares."""
    return {
        "source": source,
        "split": split,
        "description": images.description,
        "fingerprint": images.fingerprint,
        "preprocessing": model.config.preprocessing,
        "resize_filter": "PIL bicubic, antialiased",
    }


def save_rows(
    ledger: Ledger,
    rows: Sequence[Row],
    record: Mapping[str, Any],
    folder: Path,
    model: str | None,
    notes: Sequence[str] = (),
) -> list[Row]:
    """Add rows to the results in `folder`. If `model` is a local folder, it gets them too and its card the table.

    Args:
        record: with what they were made; `record["data"]["description"]` says on which pictures.
        notes: sentences for the card.

    Returns:
        all rows of the identity, in the order of their settings.
    """
    found = ledger.add(folder, rows, record)
    card = Path(model or "") / "README.md"
    if model and card.is_file():
        inside = ledger.add(Path(model) / FOLDER_NAME, rows, record, drop=True)
        text, data = card.read_text(encoding="utf-8"), record["data"]["description"]
        write_text(card, with_evaluation(text, ledger.name, inside, data, notes))
    return found


def _commit() -> str | None:
    """The commit of this project's checkout, with "+changes" if files differ from it; None without a checkout."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

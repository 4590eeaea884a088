"""Reads weights from foreign files. Nothing in such a file is ever run.

torch's files are pickles. They are read with `weights_only=True`, which makes only tensors and plain containers.
Training frameworks leave objects of other classes beside the weights (callbacks, hyperparameters), which this mode
refuses. Inert stand-ins replace the classes of `_LEFTOVERS`. A file that names any other class is refused.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from codegrid.errors import CodegridError

# Modules whose objects lie beside the weights in files of Lightning and LlamaGen.
_LEFTOVERS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "argparse.", "typing.", "numpy.")
_LEFTOVERS += ("collections.", "pathlib.", "torch.optim.", "transformers.", "functools.partial", "__builtin__.")
_HARMLESS_BUILTINS = {f"builtins.{name}" for name in ("dict", "list", "set", "int", "float", "str", "bool", "tuple")}


class ForeignCheckpointError(CodegridError):
    """A checkpoint of another project cannot be imported; the message says why and what to do."""


def read_content(path: str | Path) -> Any:
    """What a .safetensors file or a torch file (.ckpt, .pt, .pth, .bin) holds: tensors, and plain containers of them.

    Raises:
        ForeignCheckpointError: the file is missing, damaged or not a checkpoint, or has objects other than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ForeignCheckpointError(f"There is no file {path}.", "Name the checkpoint's file by --checkpoint.")
    with path.open("rb") as file:
        start = file.read(64)
    _refuse_what_is_no_checkpoint(path, start)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise _damaged(path, error) from error
    return _read_torch_file(path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """A family's .yaml or .json beside its checkpoint, as plain values.

    Raises:
        ForeignCheckpointError: the file is missing or not a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ForeignCheckpointError(
            f"There is no file {path}.", "Name the file of settings by --config, or leave it out."
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ForeignCheckpointError(
            f"{path} cannot be read: {str(error).splitlines()[0]}.",
            "Give the yaml or json that lies beside the checkpoint (--config).",
        ) from error
    if not isinstance(values, dict):
        raise ForeignCheckpointError(
            f"{path} holds no mapping of settings, but {type(values).__name__}.",
            "Give the yaml or json that lies beside the checkpoint (--config).",
        )
    return values


def _refuse_what_is_no_checkpoint(path: Path, start: bytes) -> None:
    if not start:
        raise ForeignCheckpointError(f"{path} is empty.", "Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ForeignCheckpointError(f"{path} is a Git LFS pointer, not the file itself.", "Run `git lfs pull` there.")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ForeignCheckpointError(f"{path} is a web page, not a checkpoint.", "Download the file itself.")


def _damaged(path: Path, error: Exception) -> ForeignCheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ForeignCheckpointError(
        f"{path} ({path.stat().st_size} bytes) is damaged, cut short or no checkpoint ({reason}).",
        "The download is not whole: download it again.",
    )


def _read_torch_file(path: Path) -> Any:
    in_zip = zipfile.is_zipfile(path)
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if in_zip else []
    except Exception as error:  # zipfile, pickletools and torch raise their own kinds
        raise _damaged(path, error) from error
    refused = sorted(name for name in foreign if not name.startswith(_LEFTOVERS) and name not in _HARMLESS_BUILTINS)
    if refused:
        raise _holds_objects(path, ", ".join(refused[:8]))
    stand_ins = [(type("Leftover", (_Leftover,), {}), name) for name in foreign]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # Memory-mapped: a file of a few GB also holds the optimizer's state, which nobody needs.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except UnpicklingError as error:
        # torch's message has several paragraphs; the cause follows this phrase.
        met = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines() or ["an unknown operation"]
        raise _holds_objects(path, met[0][:80]) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _holds_objects(path: Path, names: str) -> ForeignCheckpointError:
    return ForeignCheckpointError(
        f"{path} is no checkpoint, or one that holds more than weights ({names}): reading such a pickle can run code.",
        "Where you trust it, save its state dict alone as safetensors and import that.",
    )


class _Leftover:
    """Stands in for a class that a pickle names: it accepts any arguments and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Leftover:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

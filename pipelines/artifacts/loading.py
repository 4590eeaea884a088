"""Loading from a folder or the Hub, with errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from codegrid.errors import CodegridError, require
from codegrid.prior import SequenceConfig, load_prior
from codegrid.prior.modeling import check_weight_files
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.modeling import float_dtype

# The files of a model. Nothing else is ever downloaded, so that no pickle reaches the disk.
_MODEL_FILES = ("*.json", "*.safetensors", "*.md")
DeviceMap: TypeAlias = str | int | torch.device | dict[str, str | int | torch.device] | None
Model = TypeVar("Model", bound=PreTrainedModel)


class LoadingError(CodegridError):
    """A checkpoint cannot be used. The message names it and the remedy."""


def local_folder(
    folder_or_repo: str | Path,
    what: str,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder, or the snapshot of the Hub repository of that name; with `subfolder`, the folder inside it.

    Args:
        what: "tokenizer", "prior" or "pipeline", for the message.
        revision: branch, tag or commit on the Hub.
        token: None uses HF_TOKEN or the token that `hf auth login` stored.
        cache_dir: where downloads are kept; None is the Hub's own cache (HF_HOME).
        local_files_only: use only files that were downloaded before, without asking the Hub.
        force_download: download files again that are already in the cache.

    Raises:
        LoadingError: it is neither a folder nor a repository, has no such subfolder, or the download is incomplete.
    """
    inside = _subfolder(subfolder)
    folder = Path(folder_or_repo)
    if folder.exists() and not folder.is_dir():
        raise LoadingError(f"{folder} is a file: the {what} must be a folder or the name of a Hub repository.")
    from_hub = not folder.is_dir()
    if from_hub:
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "force_download": force_download}
        patterns = [f"{inside}/{pattern}" if subfolder else pattern for pattern in _MODEL_FILES]
        try:
            folder = Path(
                snapshot_download(
                    str(folder_or_repo), revision=revision, token=token, allow_patterns=patterns, **options
                )
            )
        except Exception as error:
            raise LoadingError(
                f"The {what} {str(folder_or_repo)!r} is neither a folder here nor a repository that the Hub gives "
                f"({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
    inner = folder / inside
    if from_hub and (missing := _missing_files(inner, what)):
        begun = any((folder.parent.parent / "blobs").glob("*.incomplete"))
        reason = "the download is not whole" if begun else f"the download is not whole, or it is no {what}"
        raise LoadingError(
            f"{folder_or_repo}: {reason}: {', '.join(missing)} not in {inner}. Load it with a connection and without "
            "local_files_only (force_download takes all files anew)."
        )
    if not inner.is_dir():
        raise LoadingError(f"{folder_or_repo} has no folder {subfolder!r} to take the {what} from.")
    return inner


def _missing_files(folder: Path, what: str) -> list[str]:
    """The files that a download of this kind lacks; empty if there is no such folder."""
    if not folder.is_dir() or what not in ("tokenizer", "prior", "pipeline"):
        return []
    if what == "pipeline":
        missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
        for part in ("tokenizer", "prior"):
            inner = _missing_files(folder / part, part) if (folder / part).is_dir() else [""]
            missing += [f"{part}/{name}" for name in inner]
        return missing
    names = ["config.json", *(["sequence_config.json"] if what == "prior" else [])]
    index = folder / "model.safetensors.index.json"
    try:
        names += sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no index, or a damaged one: reported later
        names += [] if index.is_file() else ["model.safetensors"]
    return [name for name in names if not (folder / name).is_file()]


def load_tokenizer(
    folder_or_repo: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    **hub: Any,
) -> VQModel:
    """A tokenizer in evaluation mode.

    Args:
        folder_or_repo, revision, subfolder, token, hub: as in `local_folder`.
        dtype: dtype of the weights; None and "auto" keep the stored one. `torch_dtype` is its older name.
        device_map: the device; "auto" is an accelerator if there is one, None the CPU.

    Raises:
        LoadingError: the folder is missing, unfinished or holds another kind of model.
        CodegridError: dtype or device_map is none.
    """
    wanted, device = float_dtype(dtype, torch_dtype), _device(device_map)
    folder = local_folder(folder_or_repo, "tokenizer", revision, subfolder, token, **hub_options(hub))
    path = folder / "config.json"
    if not path.is_file():
        unfinished = (folder / "training_config.json").is_file()
        hint = "its training is not finished: run its command again" if unfinished else "it has no config.json"
        raise LoadingError(f"{folder} is no tokenizer: {hint}.")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        if kind != VQModelConfig.model_type:
            raise LoadingError(
                f"{folder} is no tokenizer of this project: its config.json says model_type {kind!r}, not "
                f"{VQModelConfig.model_type!r}."
            )
        check_weight_files(folder)
        return _placed(VQModel.from_pretrained(folder).eval(), wanted, device)
    except LoadingError:
        raise
    except Exception as error:  # transformers, safetensors and json have each their own
        raise LoadingError(f"The tokenizer in {folder} cannot be loaded: {error}") from error


def load_prior_and_sequence(
    folder_or_repo: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    **hub: Any,
) -> tuple[PreTrainedModel, SequenceConfig]:
    """A prior in evaluation mode and its SequenceConfig. The arguments are those of `load_tokenizer`.

    Raises:
        LoadingError: the folder is missing, or holds something else.
        CodegridError: dtype or device_map is none.
    """
    wanted, device = float_dtype(dtype, torch_dtype), _device(device_map)
    folder = local_folder(folder_or_repo, "prior", revision, subfolder, token, **hub_options(hub))
    try:
        prior, sequence = load_prior(folder)
        return _placed(prior, wanted, device), sequence
    except Exception as error:  # transformers, safetensors and json have each their own
        raise LoadingError(f"The prior in {folder} cannot be loaded: {error}") from error


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Check the names of the Hub's options and return them.

    Raises:
        CodegridError: a name is unknown.
    """
    known = ("cache_dir", "local_files_only", "force_download")
    unknown = sorted(set(options) - set(known))
    require(not unknown, f"Unknown arguments {', '.join(unknown)}: beside dtype and device_map are {', '.join(known)}.")
    return options


def _device(device_map: DeviceMap) -> torch.device | None:
    """The one device that a device_map names, or None if it names none."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None or isinstance(device_map, torch.device):
        return device_map
    if device_map == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise CodegridError(
            f"device_map is {device_map!r}: a model lies on one device here; give its name ('cuda:1'), or 'auto'."
        ) from error


def _placed(model: Model, dtype: torch.dtype | None, device: torch.device | None) -> Model:
    return model if dtype is None and device is None else model.to(device=device, dtype=dtype)


def _subfolder(name: str | None) -> PurePosixPath:
    path = PurePosixPath(name or ".")
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise LoadingError(f"subfolder is {name!r}: it must lie in the folder, such as 'tokenizer'.")
    return path

"""Loading from a folder or the Hub, with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from transformers import PreTrainedModel

from codegrid.downloads import AGAIN, HUB_OPTIONS, INDEX_NAME, WEIGHTS_NAME, place_in, read_json, snapshot, weight_files
from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.artifacts.shipped import shipped_folder
from codegrid.prior import SequenceConfig, load_prior
from codegrid.prior.sequence_config import SEQUENCE_CONFIG_NAME
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.modeling import float_dtype

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
    """The local folder, or the pipeline of that name that comes with the package, or the snapshot of the Hub repository
    of that name; with `subfolder`, the folder inside it.

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
    options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "force_download": force_download}
    folder = Path(folder_or_repo)
    if folder.exists() and not folder.is_dir():
        raise LoadingError(f"{shown(folder)} is a file.", f"Give the {what}'s folder, or the name of a Hub repository.")
    shipped = None if folder.is_dir() else shipped_folder(str(folder_or_repo), "pipeline" if subfolder else what)
    folder = shipped or folder
    from_hub = not folder.is_dir()
    try:
        inside = place_in(subfolder)
        if from_hub:
            folder = snapshot(str(folder_or_repo), what, revision=revision, subfolder=subfolder, token=token, **options)
    except CodegridError as error:
        raise LoadingError(error.what, error.remedy) from error
    inner = folder / inside
    if not inner.is_dir():
        raise LoadingError(
            f"{folder_or_repo} has no folder {subfolder!r} to take the {what} from.", "Give another subfolder."
        )
    missing = _missing_files(inner, what)
    if from_hub and missing:
        begun = any((folder.parent.parent / "blobs").glob("*.incomplete"))
        reason = "the download is not whole" if begun else f"the download is not whole, or it is no {what}"
        raise LoadingError(
            f"{folder_or_repo}: {reason}: {', '.join(missing)} not in {shown(inner)}.",
            "Load it with a connection and without local_files_only (force_download takes all files anew).",
        )
    gone = [name for name in missing if name.endswith("/")]
    if gone and "model_index.json" not in missing:
        raise LoadingError(f"{shown(inner)} is no whole pipeline: it has no {', '.join(gone)}.", AGAIN)
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
    index = folder / INDEX_NAME
    try:
        names += sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no index, or a damaged one: reported later
        names += [] if index.is_file() else [WEIGHTS_NAME]
    return [name for name in names if not (folder / name).is_file()]


def is_without_pictures(folder: str | Path) -> bool:
    """Whether `folder` is a prior whose codes were imported."""
    return (Path(folder) / SEQUENCE_CONFIG_NAME).is_file() and SequenceConfig.load(folder).axes is not None


def refuse_without_pictures(folder: Path) -> None:
    """Raises: LoadingError: `folder` is a prior whose codes were imported, and a tokenizer or a pipeline is wanted."""
    if is_without_pictures(folder):
        raise LoadingError(
            f"{shown(folder)} holds a prior of codes that `codegrid import-codes` brought: they have no pictures.",
            "It is for codegrid generate, evaluate prior, compress and decompress.",
        )


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
    refuse_without_pictures(folder)
    if not path.is_file() and not path.is_symlink():
        if (folder / "training_config.json").is_file():
            raise LoadingError(
                f"{shown(folder)} is no tokenizer yet: its training is not finished.", "Run its command again."
            )
        raise LoadingError(
            f"{shown(folder)} is no tokenizer: it has no config.json.",
            "Name a folder that `codegrid train-tokenizer`, `codegrid import-checkpoint` or save_pretrained wrote.",
        )
    try:
        kind = read_json(path).get("model_type")
        if kind != VQModelConfig.model_type:
            raise CodegridError(
                f"It is no tokenizer of this project: its config.json says model_type {kind!r}, not "
                f"{VQModelConfig.model_type!r}.",
                "Name a tokenizer's folder, or bring another project's by `codegrid import-checkpoint`.",
            )
        weight_files(folder)
        return _placed(VQModel.from_pretrained(folder).eval(), wanted, device)
    except Exception as error:  # transformers, safetensors and json have each their own
        raise _cannot_be_loaded("tokenizer", folder, error) from error


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
        raise _cannot_be_loaded("prior", folder, error) from error


def _cannot_be_loaded(what: str, folder: Path, error: Exception) -> LoadingError:
    start = f"The {what} in {shown(folder)} cannot be loaded: "
    if isinstance(error, CodegridError):
        return LoadingError(start + error.what, error.remedy or AGAIN)
    reason = (str(error).splitlines() or [""])[0].rstrip(". ")
    return LoadingError(f"{start}{reason or type(error).__name__}.", AGAIN)


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Check the names of the Hub's options and return them.

    Raises:
        CodegridError: a name is unknown.
    """
    unknown = sorted(set(options) - set(HUB_OPTIONS))
    require(
        not unknown,
        f"Unknown arguments {', '.join(unknown)}.",
        f"Beside dtype and device_map there are {', '.join(HUB_OPTIONS)}.",
    )
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
            f"device_map is {device_map!r}, and a model lies on one device here.",
            "Give its name ('cuda:1'), or 'auto'.",
        ) from error


def _placed(model: Model, dtype: torch.dtype | None, device: torch.device | None) -> Model:
    return model if dtype is None and device is None else model.to(device=device, dtype=dtype)

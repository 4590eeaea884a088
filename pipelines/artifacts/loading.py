"""Loading from a folder or the Hub, with an error that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior import SequenceConfig, load_prior
from codegrid.prior.modeling import check_weight_files
from codegrid.tokenizer import VQModel, VQModelConfig

# What a model is made of. Nothing else is ever downloaded, so that no pickle reaches the disk.
_MODEL_FILES = ("*.json", "*.safetensors", "*.md")


class LoadingError(CodegridError):
    """A checkpoint cannot be used; the message names it and the remedy."""


def local_folder(
    folder_or_repo: str | Path,
    what: str,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder itself, or the snapshot of the Hub repository of that name; in it, `subfolder`.

    Args:
        what: "tokenizer" and the like, for the message.
        revision: branch, tag or commit on the Hub.
        token: None takes HF_TOKEN or the one that `hf auth login` stored.

    Raises:
        LoadingError: it is neither, or has no such subfolder.
    """
    inside = _subfolder(subfolder)
    folder = Path(folder_or_repo)
    if folder.exists() and not folder.is_dir():
        raise LoadingError(f"{folder} is a file: the {what} must be a folder or the name of a Hub repository.")
    if not folder.is_dir():
        patterns = [f"{inside}/{pattern}" if subfolder else pattern for pattern in _MODEL_FILES]
        try:
            folder = Path(
                snapshot_download(str(folder_or_repo), revision=revision, token=token, allow_patterns=patterns)
            )
        except Exception as error:
            raise LoadingError(
                f"The {what} {str(folder_or_repo)!r} is neither a folder here nor a repository that the Hub gives "
                f"({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
    if not (folder / inside).is_dir():
        raise LoadingError(f"{folder_or_repo} has no folder {subfolder!r} to take the {what} from.")
    return folder / inside


def load_tokenizer(
    folder_or_repo: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> VQModel:
    """A tokenizer in evaluation mode; the arguments are those of `local_folder`.

    Raises:
        LoadingError: the folder is missing, unfinished, or holds another kind of model.
    """
    folder = local_folder(folder_or_repo, "tokenizer", revision, subfolder, token)
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
        return VQModel.from_pretrained(folder).eval()
    except LoadingError:
        raise
    except Exception as error:  # transformers, safetensors and json have each their own
        raise LoadingError(f"The tokenizer in {folder} cannot be loaded: {error}") from error


def load_prior_and_sequence(
    folder_or_repo: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> tuple[PreTrainedModel, SequenceConfig]:
    """A prior in evaluation mode and what its tokens mean; the arguments are those of `local_folder`.

    Raises:
        LoadingError: the folder is missing, or holds something else.
    """
    folder = local_folder(folder_or_repo, "prior", revision, subfolder, token)
    try:
        return load_prior(folder)
    except Exception as error:  # transformers, safetensors and json have each their own
        raise LoadingError(f"The prior in {folder} cannot be loaded: {error}") from error


def _subfolder(name: str | None) -> PurePosixPath:
    path = PurePosixPath(name or ".")
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise LoadingError(f"subfolder is {name!r}: it must lie in the folder, such as 'tokenizer'.")
    return path

"""Loading a tokenizer from a folder or the Hub, with an error that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download

from tokenizer import VQModel, VQModelConfig


class LoadingError(ValueError):
    """A checkpoint cannot be used; the message names it and the remedy."""


def local_folder(folder_or_repo: str | Path, what: str, revision: str | None = None) -> Path:
    """The folder itself, or the snapshot of the Hub repository of that name.

    Raises:
        LoadingError: it is neither.
    """
    folder = Path(folder_or_repo)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise LoadingError(f"{folder} is a file: the {what} must be a folder or the name of a Hub repository.")
    try:
        return Path(snapshot_download(str(folder_or_repo), revision=revision))
    except Exception as error:
        raise LoadingError(
            f"The {what} {str(folder_or_repo)!r} is neither a folder here nor a repository that the Hub gives "
            f"({type(error).__name__}: {str(error).splitlines()[0]})."
        ) from error


def load_tokenizer(folder_or_repo: str | Path, revision: str | None = None) -> VQModel:
    """A tokenizer in evaluation mode.

    Raises:
        LoadingError: the folder is missing, unfinished, or holds another kind of model.
    """
    folder = local_folder(folder_or_repo, "tokenizer", revision)
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
        return VQModel.from_pretrained(folder).eval()
    except LoadingError:
        raise
    except Exception as error:  # transformers, safetensors and json have each their own
        raise LoadingError(f"The tokenizer in {folder} cannot be loaded: {error}") from error

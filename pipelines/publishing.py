"""Uploading a folder to the Hub: a tokenizer, a prior, a pipeline or a code data set, in one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from pipelines.generation import MODEL_INDEX_NAME
from pipelines.loading import LoadingError
from prior.codes import MANIFEST_NAME

# What a training run leaves beside the exported model, and our own notes.
_NOT_PUBLISHED = ["checkpoints/*", "tensorboard/*", "pictures/*", "wandb/*", "metrics.jsonl", "skipped.*", ".*"]


def push_to_hub(folder: str, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a finished folder in one commit; the repository is made where it is missing. Gives its address.

    Args:
        folder: of a tokenizer, prior, pipeline or code data set.
        repo_id: USER/NAME on the Hub.
        private: whether a new repository is private.
        revision: branch; none is the main one.

    Raises:
        LoadingError: the folder holds nothing to publish, or the Hub refuses.
    """
    path = Path(folder)
    is_codes = (path / MANIFEST_NAME).is_file()
    if not is_codes and not any((path / name).is_file() for name in (MODEL_INDEX_NAME, "config.json")):
        raise LoadingError(f"{folder} holds no finished tokenizer, prior, pipeline or code data set.")
    api, kind = HfApi(), "dataset" if is_codes else "model"
    try:
        api.create_repo(repo_id, private=private, repo_type=kind, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            repo_type=kind,
            revision=revision,
            ignore_patterns=None if is_codes else _NOT_PUBLISHED,
            commit_message=f"Upload {kind} with codegrid",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise LoadingError(f"The Hub did not take {folder} as {repo_id}: {error}") from error
    print(f"{folder} is at {commit.commit_url}.")
    return str(commit.commit_url)

"""Publishes a tokenizer, a prior, a pipeline or a code data set on the Hub in one commit, with its card."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from codegrid.names import shown
from codegrid.pipelines.artifacts.cards import codes_card, pipeline_card, prior_card, tokenizer_card
from codegrid.pipelines.artifacts.upload import upload
from codegrid.pipelines.generation.sheet import SAMPLES_NAME, card_pictures
from codegrid.pipelines.publishing.kinds import open_folder
from codegrid.prior import SequenceConfig, save_prior
from codegrid.tokenizer.hub.push import check_login

_RECONSTRUCTIONS_NAME = "reconstructions.png"


def push_to_hub(
    folder: str,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    base_tokenizer: str | None = None,
) -> str:
    """Upload a tokenizer, prior, pipeline or code data set to the Hub in one commit; return its URL.

    Log in with `hf auth login` first, or set HF_TOKEN. To repeat an interrupted push, run the same command.

    Args:
        folder: folder of a finished tokenizer, prior, pipeline or code data set.
        repo_id: USER/NAME on the Hub; a missing repository is created.
        private: whether a new repository is private.
        revision: branch; None is the main branch.
        subfolder: folder in the repository; None is the root.
        commit_message: the commit's first line.
        create_pr: open a pull request instead of changing the branch.
        license: the licence's identifier on the Hub, such as mit or cc-by-4.0, for the card.
        base_tokenizer: USER/NAME of the tokenizer on the Hub; the card of a prior, pipeline or codes links to it.
    """
    print(f"Pushing {shown(folder)} to {shown(repo_id)}.")
    address = push_folder(
        folder,
        repo_id,
        private=private or None,
        revision=revision,
        subfolder=subfolder,
        commit_message=commit_message,
        create_pr=create_pr,
        license=license,
        base_tokenizer=base_tokenizer,
    )
    print(f"{shown(folder)} is at {address}")
    return address


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    base_tokenizer: str | None = None,
) -> str:
    """Check a folder by loading it, complete its card, and upload it in one commit; return the commit's URL.

    A pipeline without samples.png gets one. Nothing in the folder changes. The arguments are those of `push_to_hub`;
    `token` None uses HF_TOKEN or the token that `hf auth login` stored.

    Raises:
        LoadingError, CodesError: the folder is damaged or may not be published; nothing was uploaded.
        PublishingError: there is no login, or the Hub refuses or cannot be reached.
    """
    check_login(token)
    path = Path(folder)
    kind, content = open_folder(path)
    return upload(
        path,
        kind,
        content,
        _card(kind, content),
        repo_id,
        pictures=_pictures(path, kind, content),
        private=private,
        revision=revision,
        subfolder=subfolder,
        token=token,
        commit_message=commit_message,
        create_pr=create_pr,
        license=license,
        base_tokenizer=base_tokenizer,
    )


def push_prior(model: PreTrainedModel, sequence: SequenceConfig, repo_id: str, **options: Any) -> str:
    """Save and upload a prior in one commit. `options` are those of `push_folder`."""
    check_login(options.get("token"))
    with TemporaryDirectory() as folder:
        save_prior(model, sequence, folder)
        return push_folder(folder, repo_id, **options)


def _pictures(folder: Path, kind: str, content: Any) -> dict[str, Path | bytes]:
    """Pictures for the card if the folder has none: a pipeline's samples, or a training run's reconstructions."""
    if kind == "pipeline" and not (folder / SAMPLES_NAME).is_file():
        return card_pictures(content)
    newest = max((folder / "pictures").glob("reconstructions-*.png"), default=None)
    return {_RECONSTRUCTIONS_NAME: newest} if kind == "tokenizer" and newest is not None else {}


def _card(kind: str, content: Any) -> str:
    """The card of a folder without one, from the content alone."""
    if kind == "tokenizer":
        return tokenizer_card(content.config)
    if kind == "prior":
        return prior_card(content[1], model_type=content[0].config.model_type)
    if kind == "pipeline":
        return pipeline_card(content.sequence)
    return codes_card(content)

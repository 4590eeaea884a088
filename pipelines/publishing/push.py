"""Publishing on the Hub: a tokenizer, a prior, a pipeline or a code data set, in one commit, with its card."""

from __future__ import annotations

import io
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.pipelines.artifacts.cards import (
    CardFacts,
    codes_card,
    completed,
    pipeline_card,
    prior_card,
    tokenizer_card,
)
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.publishing.kinds import open_folder, owned_patterns, published_files
from codegrid.prior import SequenceConfig, save_prior
from codegrid.tokenizer.hub.push import in_subfolder, push_files

_SAMPLES_NAME = "samples.png"
_RECONSTRUCTIONS_NAME = "reconstructions.png"
_MOST_CLASSES, _PER_CLASS = 10, 4


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
    """Upload a tokenizer, prior, pipeline or code data set to the Hub in one commit; gives its address.

    Log in with `hf auth login` first, or set HF_TOKEN. A push that was interrupted is repeated with the same command.

    Args:
        folder: of a finished tokenizer, prior, pipeline or code data set.
        repo_id: USER/NAME on the Hub; it is made where it is missing.
        private: whether a new repository is private.
        revision: branch; None is the main one.
        subfolder: where in the repository; None is its root.
        commit_message: the commit's first line.
        create_pr: open a pull request instead of changing the branch.
        license: its identifier on the Hub, such as mit or cc-by-4.0; it goes into the card.
        base_tokenizer: USER/NAME of the tokenizer on the Hub, which the card of a prior, pipeline or codes links to.
    """
    print(f"Pushing {folder} to {repo_id}.")
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
    print(f"{folder} is at {address}")
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
    """Check a folder by loading it, complete its card, and upload it in one commit; gives the commit's address.

    A pipeline without samples.png gets one. Nothing in the folder changes. The arguments are those of `push_to_hub`;
    `token` None takes HF_TOKEN or the one that `hf auth login` stored.

    Raises:
        LoadingError, CodesError: the folder is damaged or may not be published; nothing was sent.
        PublishingError: the Hub refuses, or cannot be reached.
    """
    require(
        license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license) is not None,
        f"license is {license!r}: it must be an identifier of the Hub, such as mit, apache-2.0 or other.",
    )
    path = Path(folder)
    kind, content = open_folder(path)
    files: dict[str, Path | bytes] = dict(published_files(path, kind, content))
    files.update(_pictures(path, kind, content, files))
    card = path / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else _card(kind, content)
    pictures = tuple(name for name in files if "/" not in name and name.endswith(".png"))
    facts = CardFacts(repo_id, subfolder, license, base_tokenizer, pictures)
    files["README.md"] = completed(text, facts).encode()
    return push_files(
        in_subfolder(files, subfolder),
        repo_id,
        repo_type="dataset" if kind == "codes" else "model",
        replaces=tuple(in_subfolder(dict.fromkeys(owned_patterns(kind)), subfolder)),
        private=private,
        revision=revision,
        token=token,
        commit_message=commit_message or f"Upload {kind}",
        create_pr=create_pr,
    )


def push_prior(model: PreTrainedModel, sequence: SequenceConfig, repo_id: str, **options: Any) -> str:
    """Save and upload a prior in one commit; `options` are those of `push_folder`."""
    with TemporaryDirectory() as folder:
        save_prior(model, sequence, folder)
        return push_folder(folder, repo_id, **options)


def _pictures(folder: Path, kind: str, content: Any, files: dict[str, Path | bytes]) -> dict[str, Path | bytes]:
    """Pictures for the card, where the folder has none: samples of a pipeline, a training run's reconstructions."""
    if kind == "pipeline" and _SAMPLES_NAME not in files:
        return {_SAMPLES_NAME: _png(_samples(content))}
    newest = max((folder / "pictures").glob("reconstructions-*.png"), default=None)
    if kind == "tokenizer" and newest is not None:
        return {_RECONSTRUCTIONS_NAME: newest}
    return {}


def _samples(pipe: ImageGenerationPipeline) -> Image.Image:
    if pipe.class_names is None:
        return class_sheet(pipe(num_images=16, seed=0, progress=False).images, None)
    labels = list(range(min(_MOST_CLASSES, len(pipe.class_names))))
    output = pipe(labels, num_images_per_label=_PER_CLASS, seed=0, progress=False)
    return class_sheet(output.images, [pipe.class_names[label] for label in output.labels])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _card(kind: str, content: Any) -> str:
    """The card of a folder that has none: what can be read off the thing itself."""
    if kind == "tokenizer":
        return tokenizer_card(content.config)
    if kind == "prior":
        return prior_card(content[1], model_type=content[0].config.model_type)
    if kind == "pipeline":
        return pipeline_card(content.sequence)
    return codes_card(content)

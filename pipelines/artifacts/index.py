"""A pipeline's model_index.json, which names the classes of its parts. A file can never cause an import."""

from __future__ import annotations

from pathlib import Path

from codegrid.downloads import read_json
from codegrid.errors import CodegridError
from codegrid.names import shown
from codegrid.pipelines.artifacts.loading import LoadingError, refuse_without_pictures
from codegrid.pipelines.system.files import write_json
from codegrid.prior import ARCHITECTURES, SamplingConfig
from codegrid.prior.architectures import architecture_of_class
from codegrid.tokenizer.fields import from_dict

MODEL_INDEX_NAME = "model_index.json"
PIPELINE_CLASS = "ImageGenerationPipeline"
CONDITION_TOKENIZER = "condition_tokenizer"  # a part that only some pipelines have
_TOKENIZER = ["codegrid.tokenizer", "VQModel"]
# Names of the libraries up to 0.1.0. Folders with these names stay readable.
_FORMER_NAMES = {"tokenizer": "codegrid.tokenizer", "prior": "codegrid.prior"}


def write_index(folder: Path, prior: str, sampling: SamplingConfig, two_tokenizers: bool = False) -> None:
    """Write `folder`/model_index.json. `prior` is the name of a class in `ARCHITECTURES`.

    `two_tokenizers`: the pictures that the prior follows have a tokenizer of their own.
    """
    record = architecture_of_class(prior)
    if record is None:
        raise CodegridError(
            f"A pipeline's prior is of a registered architecture, and {prior} is of none.",
            "Register it by codegrid.prior.register_architecture.",
        )
    named = [record.library, record.class_name]
    index = {"_class_name": PIPELINE_CLASS, "tokenizer": _TOKENIZER, "prior": named, "sampling": sampling.to_dict()}
    write_json(folder / MODEL_INDEX_NAME, {**index, **({CONDITION_TOKENIZER: _TOKENIZER} if two_tokenizers else {})})


def read_index(folder: Path) -> SamplingConfig:
    """Check model_index.json against the allow-list and return the pipeline's sampling defaults.

    Raises:
        LoadingError: the file is missing or damaged, or names a class outside the allow-list.
    """
    path = folder / MODEL_INDEX_NAME
    if not path.is_file() and not path.is_symlink():
        refuse_without_pictures(folder)
        raise LoadingError(
            f"{shown(folder)} is no pipeline: it has no {MODEL_INDEX_NAME}.",
            "Make one of a tokenizer and a prior by `codegrid make-pipeline`.",
        )
    try:
        index = read_json(path)
    except CodegridError as error:
        raise LoadingError(error.what, error.remedy) from error
    try:
        sampling = from_dict(SamplingConfig, index.pop("sampling"), where="sampling")
        named = {key: _today(value) for key, value in index.items()}
    except (CodegridError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadingError(
            f"{shown(path)} is damaged ({error}).",
            "Make the pipeline again (`codegrid make-pipeline`), or download it.",
        ) from error
    allowed = [
        {"_class_name": PIPELINE_CLASS, "tokenizer": _TOKENIZER, "prior": [record.library, record.class_name]}
        for record in ARCHITECTURES.values()
    ]
    if named not in [*allowed, *({**each, CONDITION_TOKENIZER: _TOKENIZER} for each in allowed)]:
        raise LoadingError(
            f"{shown(path)} names {index}: this pipeline loads {allowed[0]} and nothing else.",
            "Load a pipeline that `codegrid make-pipeline` or save_pretrained wrote.",
        )
    return sampling


def _today(value: object) -> object:
    """[library, class] with the library's current name."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return [_FORMER_NAMES.get(value[0], value[0]), value[1]]
    return value

"""The prior: a stock causal model of transformers, and its folder.

A saved prior runs without this file: `AutoModelForCausalLM.from_pretrained(folder)` gives the same model. An
architecture that is not part of transformers needs `import codegrid.prior` first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from codegrid.downloads import place_in, read_json, snapshot, weight_files
from codegrid.errors import CodegridError, MissingFileError, require
from codegrid.prior.architectures import ARCHITECTURES, Architecture, architecture_of_class
from codegrid.prior.conditions import find_text_tokenizer, save_text_tokenizer
from codegrid.prior.configuration import PriorConfig, transformers_config
from codegrid.prior.sequence_config import SEQUENCE_CONFIG_NAME, SequenceConfig

# Upper bounds for the sizes in config.json: a larger one is damaged, or meant to keep the machine busy.
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 1024),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 4096),
    **dict.fromkeys(("hidden_size", "head_dim", "n_embd"), 2**17),
    **dict.fromkeys(("intermediate_size", "n_inner"), 2**20),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 2**21),
    "vocab_size": 2**32,
}


def make_prior(config: PriorConfig, sequence: SequenceConfig) -> PreTrainedModel:
    """A prior with new weights (transformers' initialisation, from torch's global generator), in training mode.

    It takes tokens [B, T] of the prefix and the codes. At each position it predicts the next code.

    Raises:
        CodegridError: the config does not fit the sequence.
    """
    model = config.record.model_class(transformers_config(config, sequence))
    model.generation_config = generation_config(sequence)
    return model.train()


def generation_config(sequence: SequenceConfig) -> GenerationConfig:
    """Makes `model.generate` give an image's codes: all of them, only codes, from the whole distribution."""
    return GenerationConfig(
        do_sample=True,
        top_k=0,  # the default is 50
        suppress_tokens=list(range(sequence.codebook_size, sequence.vocab_size)),
        min_new_tokens=sequence.length,
        max_new_tokens=sequence.length,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def cached_width(config: PreTrainedConfig) -> int:
    """Size of the key cache per position: its keys in all layers. The values take as much again."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return config.hidden_size // config.num_attention_heads * heads * config.num_hidden_layers


def save_prior(model: PreTrainedModel, sequence: SequenceConfig, folder: str | Path) -> None:
    """Write weights (safetensors), config.json, generation_config.json and sequence_config.json into `folder`.

    The tokenizer of texts that the prior follows goes beside them.

    Raises:
        CodegridError: the model is none of `ARCHITECTURES`, or its vocabulary is not that of `sequence`.
    """
    require(
        architecture_of_class(type(model).__name__) is not None,
        f"A prior is saved as one of {_class_names()}, not as {type(model).__name__}.",
        "Unwrap it first.",
    )
    _check_fit(model.config, sequence, "the model's config")
    model.generation_config = generation_config(sequence)
    model.save_pretrained(folder)
    save_text_tokenizer(sequence.conditioning, folder)
    sequence.save(folder)  # last: load_prior reads it first


def load_prior(
    folder_or_repo: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, SequenceConfig]:
    """Load a prior from a folder or Hub repository: only safetensors, and never code from the folder.

    Args:
        revision, token, cache_dir, local_files_only, force_download: for a Hub repository, as in
            `codegrid.downloads.snapshot`.
        subfolder: the prior's place in the folder or repository; None is the root.
        kwargs: for the model's `from_pretrained`, such as `dtype` and `device_map`.

    Returns:
        The model in evaluation mode, and its `SequenceConfig`.

    Raises:
        MissingFileError: the folder does not exist or is not a prior.
        CodegridError: its files do not fit each other, or this project does not load them. The message says which.
    """
    inside, folder = place_in(subfolder), Path(folder_or_repo)
    if not folder.is_dir():
        folder = snapshot(
            str(folder_or_repo),
            "prior",
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    folder = folder / inside
    sequence = SequenceConfig.load(folder)
    find_text_tokenizer(sequence.conditioning, folder)
    record = _check_architecture(folder)
    files = weight_files(folder)
    kwargs.setdefault("attn_implementation", "sdpa")
    config = record.config_class.from_pretrained(folder)
    _check_fit(config, sequence, str(folder / "config.json"))
    _check_shapes(files, folder, config, record.model_class)
    model, info = record.model_class.from_pretrained(
        folder,
        **kwargs,
        use_safetensors=True,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # reported by name with the others below
        output_loading_info=True,
    )
    wrong = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    wrong = {key: names for key, names in wrong.items() if names}
    require(
        not wrong,
        f"The weights in {folder} do not fit its config.json: {wrong}.",
        "Save or download the prior again, weights and config.json together.",
    )
    return model.eval(), sequence


def _check_architecture(folder: Path) -> Architecture:
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"There is no config.json in {folder}: it is not the folder of a prior.",
            "Name a folder that `codegrid train-prior` or save_prior wrote.",
        )
    config = read_json(path)
    found, kind = config.get("architectures"), config.get("model_type")
    name = found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str) else None
    record = None if name is None else architecture_of_class(name)
    if record is None or kind != record.model_type:
        raise CodegridError(
            f"{path} names the architecture {found} (model_type {kind!r}).",
            f"Load a prior that is one of {_class_names()}.",
        )
    require(
        not (folder / "adapter_config.json").exists(),
        f"{folder} holds an adapter (adapter_config.json).",
        "Merge it into the weights and save them first.",
    )
    _check_sizes(config, path)
    require(
        config.get("quantization_config") is None,
        f"{path} has a quantization_config, and only float weights are read.",
        "Dequantize the prior and save it first.",
    )
    return record


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    """Check the sizes in config.json before a layer is made from them. The names are those of Llama and GPT-2."""
    for name, most in _MOST.items():
        value = config.get(name)
        sized = value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most)
        require(
            sized,
            f"{path} says {name} {value!r}.",
            f"It has to be a whole number of at most {most}: save or download the prior again.",
        )


def _class_names() -> str:
    return ", ".join(record.class_name for record in ARCHITECTURES.values())


def _check_shapes(
    files: list[Path], folder: Path, config: PreTrainedConfig, model_class: type[PreTrainedModel]
) -> None:
    """Check that every weight is there with the config's shape, before anything of a made-up size is allocated."""
    with torch.device("meta"):
        model = model_class(config)
    missing = set(model.state_dict()) - set(model.all_tied_weights_keys)
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                missing.discard(name)
                expected = model.state_dict().get(name)
                found = tensors.get_slice(name).get_shape()
                require(
                    expected is None or list(expected.shape) == found,
                    f"The weights in {folder} do not fit its config.json: mismatched_keys, {name} is {found} in "
                    f"{file.name}.",
                    "Save or download the prior again, weights and config.json together.",
                )
    require(
        not missing,
        f"The weights in {folder} do not fit its config.json: missing_keys {sorted(missing)}.",
        "Save or download the prior again, weights and config.json together.",
    )


def _check_fit(config: PreTrainedConfig, sequence: SequenceConfig, where: str) -> None:
    require(
        config.vocab_size == sequence.vocab_size,
        f"{where} says vocab_size {config.vocab_size}, {SEQUENCE_CONFIG_NAME} {sequence.vocab_size} "
        f"({sequence.codebook_size} codes, {sequence.conditioning.describe()} and null): they belong to different "
        "priors.",
        "Take both files from one prior.",
    )
    require(
        config.max_position_embeddings >= sequence.prefix_length + sequence.length - 1,
        f"{where} says max_position_embeddings {config.max_position_embeddings}, too few for a sequence of "
        f"{sequence.length} codes after {sequence.prefix_length} tokens.",
        f"Take config.json and {SEQUENCE_CONFIG_NAME} from one prior.",
    )

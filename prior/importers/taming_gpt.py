"""taming-transformers' class-conditional and unconditional GPT (Esser et al. 2021, https://arxiv.org/abs/2012.09841).

Its network is minGPT: GPT-2 with the exact GELU and a separate output layer. There, class c and the first token of an
unconditional prior are rows of the codes' embedding; here they get tokens of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from codegrid.errors import CodegridError
from codegrid.prior.importers.layout import PriorFamily, filled
from codegrid.prior.sequence_config import SequenceConfig

TITLE = "GPT of taming-transformers'"
_SIGNS = (r"^transformer\.tok_emb\.weight$", r"^transformer\.pos_emb$", r"^transformer\.blocks\.0\.attn\.key\.weight$")
_NAMES = {"ln1": "ln_1", "ln2": "ln_2", "attn.proj": "attn.c_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}
_CODEBOOKS = ("quantize.used", "quantize.embedding.weight", "quantize.embed.weight")  # of the first stage in the file


def convert(
    weights: Mapping[str, Tensor],
    grid_size: int,
    class_names: tuple[str, ...] | None,
    heads: int | None,
    settings: Mapping[str, Any] | None,
) -> tuple[GPT2LMHeadModel, SequenceConfig]:
    """See `convert_prior`. It needs the settings: the weights tell neither the heads nor the first token's meaning."""
    params = _params(settings)
    _check_order(weights)
    theirs = {key.removeprefix("transformer."): value.float() for key, value in weights.items() if _is_ours(key)}
    embedding, positions = theirs.pop("tok_emb.weight"), theirs.pop("pos_emb")[0]  # [V, D], [T, D]
    layers = 1 + max(int(found[1]) for key in theirs if (found := re.match(r"blocks\.(\d+)\.", key)))
    network = params["transformer_config"].get("params") or {}
    _check_network(network, len(embedding), layers, embedding.shape[1])
    size = next((len(weights[key]) for name in _CODEBOOKS if (key := f"first_stage_model.{name}") in weights), None)
    sequence = _sequence(params, size or len(embedding), grid_size, class_names)
    ours = _embeddings(theirs, embedding, positions, sequence, params)
    ours |= _blocks(theirs, layers)
    config = GPT2Config(
        vocab_size=sequence.vocab_size,
        n_positions=sequence.length + 1,
        n_embd=embedding.shape[1],
        n_layer=layers,
        n_head=heads or network.get("n_head", 8),  # minGPT's own default
        activation_function="gelu",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    left_over = sorted(f"transformer.{key}" for key in theirs)
    return filled(GPT2LMHeadModel, config, ours, left_over, sequence, TITLE), sequence


def _is_ours(key: str) -> bool:
    return key.startswith("transformer.") and not key.endswith(".attn.mask")


def _params(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The settings of the whole model, which contain the transformer's."""
    if not settings:
        raise CodegridError(
            "The weights of taming-transformers' GPT tell neither its heads nor what its first token means.",
            "Give its yaml (--config).",
        )
    params = (settings.get("model") or {}).get("params") or {}
    if not isinstance(params.get("transformer_config"), Mapping):
        raise CodegridError(
            "The settings have no model.params.transformer_config: they are not those of a GPT.",
            "Give the GPT's own yaml (--config).",
        )
    return params


def _check_order(weights: Mapping[str, Tensor]) -> None:
    order = weights.get("permuter.forward_shuffle_idx")
    if order is not None and not torch.equal(order.long(), torch.arange(len(order))):
        raise CodegridError(
            "This GPT takes an image's codes in another order than row by row (its permuter, first "
            f"{', '.join(map(str, order[:4].tolist()))}).",
            "Only GPTs without a permuter can be imported: the first stage can be taken from the same file with "
            "the family taming.",
        )


def _check_network(network: Mapping[str, Any], vocabulary: int, layers: int, width: int) -> None:
    found = {"vocab_size": vocabulary, "n_layer": layers, "n_embd": width}
    differing = {name: value for name, value in found.items() if network.get(name, value) != value}
    wrong = [f"{name} {network[name]} (the weights: {value})" for name, value in differing.items()]
    if wrong:
        raise CodegridError(
            f"The settings are of another checkpoint than the weights: they say {', '.join(wrong)}.",
            "Give the yaml that lies beside these weights (--config).",
        )
    if network.get("n_unmasked", 0) > 1:
        raise CodegridError(
            f"n_unmasked is {network['n_unmasked']}: this GPT looks ahead.",
            "Only GPTs with attention to the past alone (n_unmasked 0) can be imported: take another checkpoint.",
        )


def _sequence(
    params: Mapping[str, Any], codebook_size: int, grid_size: int, class_names: tuple[str, ...] | None
) -> SequenceConfig:
    """Sequences without classes, or with as many as the settings' Labelator has."""
    condition = params.get("cond_stage_config")
    grid = (grid_size, grid_size)
    if condition == "__is_unconditional__" or params.get("unconditional"):
        if class_names:
            raise CodegridError(
                f"{len(class_names)} class names were given; the checkpoint is unconditional.",
                "Leave the class names out.",
            )
        return SequenceConfig(codebook_size, grid)
    target = str(condition.get("target") if isinstance(condition, Mapping) else condition)
    if not isinstance(condition, Mapping) or not target.endswith(".Labelator"):
        raise CodegridError(
            f"This GPT is conditioned on {params.get('cond_stage_key', 'something')!r} ({target}), and priors "
            "here know classes, or nothing.",
            "Import a class-conditional or unconditional GPT; the first stage can be taken from this file with "
            "the family taming.",
        )
    classes = (condition.get("params") or {}).get("n_classes")
    if not isinstance(classes, int) or classes < 1:
        raise CodegridError(f"cond_stage_config.params.n_classes is {classes!r}.", "Give at least 1.")
    names = class_names or tuple(map(str, range(classes)))
    if len(names) != classes:
        raise CodegridError(
            f"{len(names)} class names were given; the checkpoint has {classes} classes.",
            "Give one name for each class.",
        )
    return SequenceConfig(codebook_size, grid, class_names=names, null_class=False)


def _embeddings(
    theirs: dict[str, Tensor],
    embedding: Tensor,
    positions: Tensor,
    sequence: SequenceConfig,
    params: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Embeddings of tokens and positions, and the output layer; removes their keys from `theirs`."""
    start = int(params.get("sos_token", 0))
    prefixes = list(range(sequence.num_classes)) or [start]
    most = max(*prefixes, sequence.codebook_size - 1)
    if most >= len(embedding):
        raise CodegridError(
            f"The embedding has {len(embedding)} rows, too few for code, class or start token {most}.",
            "Give the yaml that lies beside these weights (--config).",
        )
    if len(positions) < sequence.length:
        raise CodegridError(
            f"The checkpoint has {len(positions)} positions, too few for {sequence.grid_shape[0]} x "
            f"{sequence.grid_shape[1]} codes.",
            "Give a smaller --grid-size.",
        )
    codes, first = embedding[: sequence.codebook_size], embedding[prefixes]
    if not sequence.null_class:  # the null token keeps its place in the vocabulary and is never used
        first = F.pad(first, (0, 0, 0, 1))
    # One position more than training uses, as in `make_prior`.
    used = positions[: sequence.length + 1]
    ours = {
        "transformer.wte.weight": torch.cat([codes, first]),  # [codes | class tokens | null]
        "transformer.wpe.weight": F.pad(used, (0, 0, 0, sequence.length + 1 - len(used))),
    }
    if "head.weight" in theirs:  # class tokens are never predicted: the softmax runs over the codes only
        head = theirs.pop("head.weight")[: sequence.codebook_size]
        ours["lm_head.weight"] = F.pad(head, (0, 0, 0, len(first)))
    for kind in ("weight", "bias"):
        if f"ln_f.{kind}" in theirs:
            ours[f"transformer.ln_f.{kind}"] = theirs.pop(f"ln_f.{kind}")
    return ours


def _blocks(theirs: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The blocks' weights; removes their keys from `theirs`. GPT-2's matrices are transposed: [in, out]."""
    ours = {}
    for layer in range(layers):
        for kind in ("weight", "bias"):
            parts = [f"blocks.{layer}.attn.{name}.{kind}" for name in ("query", "key", "value")]
            if all(part in theirs for part in parts):
                joined = torch.cat([theirs.pop(part) for part in parts])
                ours[f"transformer.h.{layer}.attn.c_attn.{kind}"] = joined.t().contiguous()
            for name, own in _NAMES.items():
                value = theirs.pop(f"blocks.{layer}.{name}.{kind}", None)
                if value is not None:
                    ours[f"transformer.h.{layer}.{own}.{kind}"] = value.t().contiguous()
    return ours


FAMILY = PriorFamily(
    title="taming-transformers' class-conditional or unconditional GPT",
    signs=_SIGNS,
    convert=convert,
    example="--checkpoint last.ckpt --config project.yaml --tokenizer TOKENIZER",
    peer="CompVis/taming-transformers",
)

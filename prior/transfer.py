"""Starting a prior from another one's weights: the same codes, the same classes or others."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.architectures import Architecture, architecture_named, architecture_of
from codegrid.prior.architectures.base import num_positions
from codegrid.prior.conditioning import ClassCondition, Condition, NoCondition
from codegrid.prior.conditions import PictureCondition, parts_of
from codegrid.prior.modeling import generation_config
from codegrid.prior.sequence_config import SequenceConfig

# The architecture of any order that a prior of raster order becomes: it has the same weights and two embeddings more.
_OF_ANY_ORDER = {"llama": "any_order_llama", "gpt2": "any_order_gpt2"}

# Those whose positions count from each other alone, so that a longer condition moves nothing.
_OF_ANY_LENGTH = ("llama", "qwen3")


def transferred(
    model: PreTrainedModel, old: SequenceConfig, new: SequenceConfig, any_order: bool = False
) -> PreTrainedModel:
    """A prior of `new` sequences with the weights of one of `old` sequences, in training mode.

    Classes are matched by name. A class that is new starts as the null token: as an image of no class. Pictures and
    texts start from those of the same tokens, however the pictures are made; all their tokens start as the null token,
    where the other prior follows none. A prior of
    raster order becomes one of any order whose embeddings of places start at 0: in raster order it is the prior that
    it started from.

    Args:
        model: the prior to start from; it is left as it is.
        old, new: what the tokens of the two mean.
        any_order: make a prior of any order of one of raster order.

    Raises:
        CodegridError: the codes are not of one kind (codebook, grid, depth, order), or their conditions have other
            tokens, or another number of them than a prior of learned places has; or there is no architecture of any
            order with these weights.
    """
    kind = _of_any_order(model) if any_order else None
    for name in ("codebook_size", "grid_shape", "depth", "order"):
        before, now = getattr(old, name), getattr(new, name)
        require(
            before == now,
            f"{name} of the codes is {now}, of the prior to start from {before}.",
            "Take codes of the tokenizer that the prior was trained with, or start without its weights.",
        )
    before, now = _tokens_of(old), _tokens_of(new)
    require(
        all(before.get(kind, part) == part for kind, part in now.items()),
        f"These codes follow {new.conditioning.describe()}, the prior to start from {old.conditioning.describe()}.",
        "Start from a prior whose pictures and texts are of the same tokenizers, or without another prior's weights.",
    )
    config = copy.deepcopy(model.config)
    if old.prefix_length != new.prefix_length:
        record = architecture_of(model)
        require(
            kind is None and record is not None and record.name in _OF_ANY_LENGTH,
            f"These codes have {new.prefix_length} tokens before them, and a {type(model).__name__} of "
            f"{old.prefix_length} has learned where each code stands.",
            f"Start from one of {', '.join(_OF_ANY_LENGTH)}, or from fresh weights.",
        )
        config.max_position_embeddings = num_positions(new)
    if kind is not None:
        values = config.to_dict()
        config = kind.config_class(
            **{name: value for name, value in values.items() if name not in ("model_type", "architectures")}
        )
        config._attn_implementation = model.config._attn_implementation
    config.vocab_size = new.vocab_size
    started = (type(model) if kind is None else kind.model_class)(config)
    sources = _sources(old, new)  # [V], the old token of each new one
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(table.weight) for table in tables if table is not None}
    own = dict(started.named_parameters())
    with torch.no_grad():
        for name in own.keys() - dict(model.named_parameters()).keys():
            own[name].zero_()  # the embeddings of places
        for name, weight in model.named_parameters():
            own[name].copy_(weight[sources] if id(weight) in tables else weight)
    started.generation_config = generation_config(new)
    return started.train()


def _tokens_of(sequence: SequenceConfig) -> dict[str, Condition]:
    """The conditions other than classes by their type, without what makes no difference for their tokens."""
    parts = [part for part in parts_of(sequence.conditioning) if not isinstance(part, (NoCondition, ClassCondition))]
    return {part.type: replace(part, made_by=None) if isinstance(part, PictureCondition) else part for part in parts}


def becomes_any_order(model: PreTrainedModel) -> bool:
    """Whether `transferred` makes a prior of any order of this one."""
    record = architecture_of(model)
    return record is not None and record.name in _OF_ANY_ORDER


def _of_any_order(model: PreTrainedModel) -> Architecture:
    record = architecture_of(model)
    require(
        becomes_any_order(model),
        f"A prior of any order cannot start from a {type(model).__name__}: none of that kind has its weights.",
        f"Start from one of the architectures {', '.join(_OF_ANY_ORDER)}, or from fresh weights.",
    )
    assert record is not None
    return architecture_named(_OF_ANY_ORDER[record.name])


def _sources(old: SequenceConfig, new: SequenceConfig) -> torch.Tensor:
    """For each token of `new` the token of `old` whose row it takes: int64 [new.vocab_size]."""
    before, first = {}, old.codebook_size
    for part in parts_of(old.conditioning):
        before[part.type] = (part, first)
        first += part.vocab_size
    sources = list(range(old.codebook_size))
    for part in parts_of(new.conditioning):
        if isinstance(part, ClassCondition):
            classes, first = before.get(part.type, (None, 0))
            known = {name: first + label for label, name in enumerate(getattr(classes, "class_names", ()))}
            sources += [known.get(name, old.null_token) for name in part.class_names]
        elif part.type in before:
            first = before[part.type][1]
            sources += range(first, first + part.vocab_size)
        else:
            sources += [old.null_token] * part.vocab_size
    return torch.tensor([*sources, old.null_token])

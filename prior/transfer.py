"""Starting a prior from another one's weights: the same codes, the same classes or others."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.modeling import generation_config
from codegrid.prior.sequence_config import SequenceConfig


def transferred(model: PreTrainedModel, old: SequenceConfig, new: SequenceConfig) -> PreTrainedModel:
    """A prior of `new` sequences with the weights of one of `old` sequences, in training mode.

    Classes are matched by name. A class that is new starts as the null token: as an image of no class.

    Args:
        model: the prior to start from; it is left as it is.
        old, new: what the tokens of the two mean.

    Raises:
        CodegridError: the codes are not of one kind (codebook, grid, depth, order), or another condition than classes
            is among them.
    """
    for name in ("codebook_size", "grid_shape", "depth", "order"):
        before, now = getattr(old, name), getattr(new, name)
        require(
            before == now,
            f"{name} of the codes is {now}, of the prior to start from {before}.",
            "Take codes of the tokenizer that the prior was trained with, or start without its weights.",
        )
    other = old.condition or new.condition
    require(
        other is None,
        "A prior is started from another one's weights where both follow classes, or nothing: one of them follows "
        f"{other.type if other else 'nothing'}.",
        "Start without the other prior's weights.",
    )
    config = copy.deepcopy(model.config)
    config.vocab_size = new.vocab_size
    started = type(model)(config)
    sources = _sources(old, new)  # [V], the old token of each new one
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(table.weight) for table in tables if table is not None}
    own = dict(started.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            own[name].copy_(weight[sources] if id(weight) in tables else weight)
    started.generation_config = generation_config(new)
    return started.train()


def _sources(old: SequenceConfig, new: SequenceConfig) -> torch.Tensor:
    """For each token of `new` the token of `old` whose row it takes: int64 [new.vocab_size]."""
    known = {name: old.codebook_size + label for label, name in enumerate(old.class_names or ())}
    classes = [known.get(name, old.null_token) for name in new.class_names or ()]
    return torch.tensor([*range(old.codebook_size), *classes, old.null_token])

"""Parts of a prior that training leaves as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel


def freeze(model: PreTrainedModel, parts: Collection[str]) -> None:
    """Take the parts' weights out of the gradient, so that the optimizer is made without them.

    Args:
        parts: of "embeddings" (tokens and positions), "blocks", and "head" (the last norm and the output layer).
            Where input and output share one table, it is part of the embeddings.
    """
    embeddings = {
        id(weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.split(".")[-1] == "embeddings"
        for weight in module.parameters()
    }
    blocks = {
        id(weight) for module in model.modules() if isinstance(module, nn.ModuleList) for weight in module.parameters()
    }
    for weight in model.parameters():
        part = "embeddings" if id(weight) in embeddings else "blocks" if id(weight) in blocks else "head"
        weight.requires_grad_(part not in parts)

"""A prior's fast forward pass for training, over whole sequences. It computes what the stock model does.

Each architecture has its own (`Architecture.training_forward`). A model without one, or with parts that it does not
expect (adapters, biases), runs the forward pass of transformers.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.architectures import Architecture, architecture_of


def hidden_states(
    model: PreTrainedModel,
    tokens: Tensor,
    checkpointing: bool = False,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Tokens [B, T] -> the input of the output layer, [B, T, D].

    Args:
        places: the own and target places of the tokens, each [B, T], for a prior of any order; None is raster order.
        checkpointing: gradient checkpointing: store only the activations between the blocks, and compute the blocks
            again in the backward pass.

    Raises:
        CodegridError: checkpointing is set for a model that `check_checkpointing` refuses.
    """
    if places is not None:
        own, target = places
        return model.base_model(input_ids=tokens, own=own, target=target, use_cache=False).last_hidden_state
    record = _with_forward(model)
    if record is not None and record.training_forward is not None:
        return record.training_forward(model, tokens, checkpointing)
    if checkpointing:
        check_checkpointing(model)
    # A key/value cache would keep every layer's keys and values alive for nothing.
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def check_checkpointing(model: PreTrainedModel) -> None:
    """Refuse gradient checkpointing where it would change nothing.

    Raises:
        CodegridError: the architecture has none, or the model has other parts (an adapter, for example).
    """
    record = _with_forward(model)
    require(
        record is not None and record.checkpointing,
        f"Gradient checkpointing is not there for this {type(model).__name__}: its architecture has no forward pass "
        "with it, or it holds other layers than its architecture (an adapter).",
        "Turn checkpointing off.",
    )


def _with_forward(model: PreTrainedModel) -> Architecture | None:
    """The record whose `training_forward` computes what this model does."""
    record = architecture_of(model)
    return record if record is not None and record.training_forward is not None and record.is_plain(model) else None

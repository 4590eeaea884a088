"""What the families share: converted weights become a model, or an error that lists the keys."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior.modeling import generation_config
from codegrid.prior.sequence import SequenceConfig


def filled(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: dict[str, Tensor],
    left_over: list[str],
    sequence: SequenceConfig,
    title: str,
) -> PreTrainedModel:
    """The model with these weights, in evaluation mode.

    Args:
        left_over: keys of the checkpoint that are no part of the family's network.
        title: of what the checkpoint should be, for the error.

    Raises:
        CodegridError: weights are missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = model_class(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = {
        "missing": sorted(set(shapes) - set(weights)),
        "not known": left_over,
        "of another shape": sorted(n for n in shapes if n in weights and tuple(weights[n].shape) != shapes[n]),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {', '.join(names[:12])}" for what, names in wrong.items() if names)
        raise CodegridError(f"The checkpoint is no whole {title}. {listed}.")
    model.load_state_dict(weights, assign=True)
    model.generation_config = generation_config(sequence)
    return model.eval()

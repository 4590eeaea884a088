"""Shared by the families: their record, and the step from converted weights to a model or an error with the keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior.modeling import generation_config
from codegrid.prior.sequence_config import SequenceConfig


@dataclass(frozen=True)
class PriorFamily:
    """How the priors of one foreign project are converted.

    Args:
        title: a name for people.
        signs: regular expressions; weights are of the family if each expression finds a key.
        convert: (weights, grid_size, class_names or None, heads or None, settings or None) -> the model and its
            `SequenceConfig`.
        example: arguments of `codegrid import-checkpoint NAME` besides --output-dir, for its help.
        peer: the repository with the project's own code; `codegrid dev import-parity` compares with it.
    """

    title: str
    signs: tuple[str, ...]
    convert: Callable[
        [Mapping[str, Tensor], int, tuple[str, ...] | None, int | None, Mapping[str, Any] | None],
        tuple[PreTrainedModel, SequenceConfig],
    ]
    example: str
    peer: str

    def fits(self, keys: Iterable[str]) -> bool:
        keys = list(keys)
        return all(any(re.search(sign, key) for key in keys) for sign in self.signs)


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
        left_over: keys of the checkpoint that are not part of the family's network.
        title: names the expected kind of checkpoint in the error.

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
        raise CodegridError(
            f"The checkpoint is no whole {title}. {listed}.",
            "Download it again, whole, or choose the family that it is of.",
        )
    model.load_state_dict(weights, assign=True)
    model.generation_config = generation_config(sequence)
    return model.eval()

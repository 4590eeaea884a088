"""What the toolkit has to know of an architecture: one record each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from codegrid.prior.decoder_weights import DecoderWeights

if TYPE_CHECKING:
    from codegrid.prior.configuration import PriorConfig
    from codegrid.prior.sequence import SequenceConfig


def _nothing_to_check(config: PriorConfig) -> None: ...


def _never(model: PreTrainedModel) -> bool:
    return False


@dataclass(frozen=True)
class Architecture:
    """An architecture of priors: a causal language model of transformers, or one that is built like them.

    Args:
        name: what `PriorConfig.architecture` says; also the tag of a model card.
        title: for people, as in "A Llama that predicts ...".
        config_class, model_class: of transformers, or subclasses. `config_class.model_type` and the name of
            `model_class` must be its own: saved priors are found again by them.
        config: (prior config, sequence) -> the model's config. `shared_values` has what every architecture needs.
            Raises CodegridError where the sequence does not fit.
        read_weights: (model, number of codes, positions, `AsMap`) -> what decoding reads, see `DecoderWeights`.
        check: raises CodegridError where the fields of a `PriorConfig` do not fit this architecture.
        training_forward: (model, tokens [B, T], checkpointing) -> what the output layer takes [B, T, D], in less time
            than the model's own forward pass and equal to it up to rounding; None where there is none.
        is_plain: whether `training_forward` computes what this model does (it may hold adapters, or be configured
            otherwise). A model that is not plain runs as transformers wrote it.
        checkpointing: whether `training_forward` can compute the blocks again in the backward pass.
        matrix_layers: classes of the layers that are one matrix product each: what operations are counted by.
        library: the package that `model_index.json` names beside the class.
    """

    name: str
    title: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    config: Callable[[PriorConfig, SequenceConfig], PreTrainedConfig]
    read_weights: Callable[..., DecoderWeights]
    check: Callable[[PriorConfig], None] = _nothing_to_check
    training_forward: Callable[[Any, Tensor, bool], Tensor] | None = None
    is_plain: Callable[[Any], bool] = _never
    checkpointing: bool = False
    matrix_layers: tuple[type[nn.Module], ...] = (nn.Linear,)
    library: str = "transformers"

    @property
    def model_type(self) -> str:
        return self.config_class.model_type

    @property
    def class_name(self) -> str:
        """Of the model, as config.json and model_index.json name it."""
        return self.model_class.__name__


def shared_values(config: PriorConfig, sequence: SequenceConfig) -> dict[str, Any]:
    """What every architecture's config is told, by the names that all of transformers' configs have."""
    # Llama's default tokens are 1 and 2: the code 2 would end an image.
    shared: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    shared |= {"vocab_size": sequence.vocab_size, "initializer_range": config.initializer_range}
    return shared | {"tie_word_embeddings": config.tie_word_embeddings, "attn_implementation": "sdpa"}


def num_positions(sequence: SequenceConfig) -> int:
    """Positions of a model: one more than training sees, because serving engines count the prefix and every code."""
    return sequence.prefix_length + sequence.length

"""What the toolkit has to know about an architecture: one record for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from codegrid.prior.decoder_weights import DecoderWeights

if TYPE_CHECKING:
    from codegrid.prior.configuration import PriorConfig
    from codegrid.prior.sequence_config import SequenceConfig


def _nothing_to_check(config: PriorConfig) -> None: ...


def _never(model: PreTrainedModel) -> bool:
    return False


@dataclass(frozen=True)
class Architecture:
    """An architecture of priors: a causal language model of transformers, or a model with the same interface.

    Args:
        name: the value of `PriorConfig.architecture`; also the tag of a model card.
        title: a name for people, as in "A Llama that predicts ...".
        config_class, model_class: classes of transformers, or subclasses. No other architecture may have the same
            `config_class.model_type` or name of `model_class`, because loading finds a saved prior's record by them.
        config: (prior config, sequence) -> the model's config. `shared_values` has what every architecture needs.
            Raises CodegridError if the sequence does not fit.
        read_weights: (model, number of codes, positions, `AsMap`) -> the weights for decoding, see `DecoderWeights`.
        check: raises CodegridError if the fields of a `PriorConfig` do not fit this architecture.
        training_forward: (model, tokens [B, T], checkpointing) -> the input of the output layer [B, T, D]. It is faster
            than the model's own forward pass and equal to it up to rounding. None if the architecture has none.
        is_plain: whether `training_forward` computes the same as this model, which may hold adapters or have another
            configuration. A model that is not plain runs the forward pass of transformers.
        checkpointing: whether `training_forward` supports gradient checkpointing of the blocks.
        matrix_layers: classes of the layers that are one matrix product each. Operations are counted by them.
        library: the package that `model_index.json` names beside the class.
        reads: "before": a code follows from those before it in raster order. "any order": from those that were given,
            in any order (the model's forward pass takes `own` and `target` places, see `any_order.py`). "around": from
            all known ones around it; null stands for an unknown code (see `bert.py`).
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
    reads: Literal["before", "any order", "around"] = "before"

    @property
    def model_type(self) -> str:
        return self.config_class.model_type

    @property
    def class_name(self) -> str:
        """The name of the model's class in config.json and model_index.json."""
        return self.model_class.__name__


def shared_values(config: PriorConfig, sequence: SequenceConfig) -> dict[str, Any]:
    """The values of every architecture's config, by the names that all configs of transformers share."""
    # Llama's default special tokens are 1 and 2, so code 2 would end an image.
    shared: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    shared |= {"vocab_size": sequence.vocab_size, "initializer_range": config.initializer_range}
    return shared | {"tie_word_embeddings": config.tie_word_embeddings, "attn_implementation": "sdpa"}


def num_positions(sequence: SequenceConfig) -> int:
    """Positions of a model: one more than training uses, because serving engines count the prefix and every code."""
    return sequence.prefix_length + sequence.length

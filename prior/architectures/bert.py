"""A stock BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805) as a masked prior: MaskGIT,
https://arxiv.org/abs/2202.04200.

It sees the prefix and all codes at once and predicts the unknown ones. An unknown code is the null token: in the prefix
null means "no class", at the place of a code "no code", so the vocabulary is that of other priors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from codegrid.errors import CodegridError, require
from codegrid.prior.architectures.base import Architecture, num_positions, shared_values
from codegrid.prior.architectures.gpt2 import check_gpt2
from codegrid.prior.decoder_weights import AsMap, DecoderWeights

if TYPE_CHECKING:
    from codegrid.prior.configuration import PriorConfig
    from codegrid.prior.sequence_config import SequenceConfig


def _config(config: PriorConfig, sequence: SequenceConfig) -> BertConfig:
    require(
        sequence.depth == 1,
        f"A masked prior draws many positions at once, and there are {sequence.depth} codes at each, which follow each "
        "other.",
        "Use the architecture 'any_order_llama' or 'llama'.",
    )
    return BertConfig(
        **shared_values(config, sequence),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size or 4 * config.hidden_size,
        max_position_embeddings=num_positions(sequence),
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=config.attention_dropout,
    )


def _no_decoding(model: PreTrainedModel, num_codes: int, length: int, as_map: AsMap) -> DecoderWeights:
    raise CodegridError(
        f"A masked prior ({type(model).__name__}) has no decoding of one code after the other.",
        "Sample it with `codegrid.prior.sample_codes`, or use another prior for this.",
    )


BERT = Architecture(
    name="bert",
    title="BERT (masked prior)",
    config_class=BertConfig,
    model_class=BertForMaskedLM,
    config=_config,
    read_weights=_no_decoding,
    check=check_gpt2,
    reads="around",
)

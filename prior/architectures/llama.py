"""A stock Llama (Touvron et al. 2023, https://arxiv.org/abs/2302.13971), the default architecture of a prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import LlamaConfig, LlamaForCausalLM

from codegrid.errors import require
from codegrid.prior.architectures.base import Architecture, num_positions, shared_values
from codegrid.prior.architectures.llama_decoding import read_llama
from codegrid.prior.architectures.llama_training import is_plain_llama, llama_forward

if TYPE_CHECKING:
    from codegrid.prior.configuration import PriorConfig
    from codegrid.prior.sequence_config import SequenceConfig


def check_rotary(config: PriorConfig) -> None:
    """Rotary positions rotate pairs of a head's dimensions."""
    require(
        config.hidden_size // config.num_attention_heads % 2 == 0,
        f"hidden_size {config.hidden_size} over num_attention_heads {config.num_attention_heads} gives no even whole "
        "number of dimensions a head (rotary positions turn pairs of them).",
        "Change one of the two.",
    )


def llama_values(config: PriorConfig, sequence: SequenceConfig) -> dict[str, Any]:
    """The fields of a LlamaConfig and of configs derived from it."""
    return shared_values(config, sequence) | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size or _default_intermediate_size(config.hidden_size),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "max_position_embeddings": num_positions(sequence),
        "rms_norm_eps": config.rms_norm_eps,
        "attention_dropout": config.attention_dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rope_theta)},
    }


def _default_intermediate_size(hidden_size: int, multiple: int = 64) -> int:
    return -(-8 * hidden_size // (3 * multiple)) * multiple


LLAMA = Architecture(
    name="llama",
    title="Llama",
    config_class=LlamaConfig,
    model_class=LlamaForCausalLM,
    config=lambda config, sequence: LlamaConfig(**llama_values(config, sequence)),
    read_weights=read_llama,
    check=check_rotary,
    training_forward=llama_forward,
    is_plain=is_plain_llama,
    checkpointing=True,
)

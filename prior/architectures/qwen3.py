"""A stock Qwen3: a Llama that normalises queries and keys, head by head, before the rotation.

Dehghani et al. 2023, https://arxiv.org/abs/2302.05442; Yang et al. 2025, https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM

from codegrid.prior.architectures.base import Architecture
from codegrid.prior.architectures.llama import check_rotary, llama_values
from codegrid.prior.architectures.llama_decoding import read_llama
from codegrid.prior.architectures.llama_training import is_plain_llama, llama_forward

QWEN3 = Architecture(
    name="qwen3",
    title="Qwen3",
    config_class=Qwen3Config,
    model_class=Qwen3ForCausalLM,
    config=lambda config, sequence: Qwen3Config(**llama_values(config, sequence)),
    read_weights=read_llama,
    check=check_rotary,
    training_forward=llama_forward,
    is_plain=is_plain_llama,
    checkpointing=True,
)

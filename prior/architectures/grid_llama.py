"""A Llama whose rotary positions are the rows and columns of the code grid; its keys are those of transformers' Llama.

Rotary positions: Su et al. 2021, https://arxiv.org/abs/2104.09864. One half of each head rotates by the row, the other
half by the column, as in LlamaGen: Sun et al. 2024, https://arxiv.org/abs/2406.06525.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from codegrid.errors import require
from codegrid.prior.architectures.base import Architecture
from codegrid.prior.architectures.llama import check_rotary, llama_values
from codegrid.prior.architectures.llama_decoding import read_llama
from codegrid.prior.architectures.llama_training import is_plain_llama, llama_forward

if TYPE_CHECKING:
    from codegrid.prior.configuration import PriorConfig
    from codegrid.prior.sequence_config import SequenceConfig


class GridLlamaConfig(LlamaConfig):
    """LlamaConfig with the grid.

    Args:
        grid_width: columns of the grid. After the prefix, positions run through the grid row by row.
        prefix_length: tokens of the prefix. Several tokens lie row by row directly above the grid, like the codes of
            another picture of that width. A single token has the position of the first code.
        zero_prefix: sets the prefix's queries and keys to zero, as LlamaGen's code does, so that every later position
            gives the prefix the score 0. False keeps them, without rotation.
    """

    model_type = "codegrid_grid_llama"

    grid_width: int = 16
    zero_prefix: bool = False
    prefix_length: int = 1

    def to_diff_dict(self) -> dict[str, Any]:
        """The values of config.json. A prefix of one token is left out, as in files from before longer prefixes."""
        values = super().to_diff_dict()
        return {name: value for name, value in values.items() if name != "prefix_length" or value != 1}


class GridRotaryEmbedding(nn.Module):
    """Cosines and sines of a head's pairs: the first half rotates by the row, the second by the column."""

    def __init__(self, config: GridLlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        theta = (config.rope_parameters or {}).get("rope_theta")
        assert theta is not None  # transformers fills it in
        self.theta = theta
        self.grid_width, self.zero_prefix = config.grid_width, config.zero_prefix
        self.prefix_length = config.prefix_length

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [B, T], starting with the prefix -> cos and sin [B, T, head_dim], in the dtype of `x`."""
        # Computed in every call: `from_pretrained` would leave garbage in a buffer that is not saved.
        half = self.head_dim // 2
        waves = self.theta ** (-torch.arange(0, half, 2, device=x.device).float() / half)  # [head_dim / 4]
        cell = position_ids - self.prefix_length  # negative in the prefix
        if self.prefix_length == 1:
            cell = cell.clamp(min=0)
        row, column = cell // self.grid_width, cell % self.grid_width
        angles = torch.cat([row[..., None] * waves, column[..., None] * waves], dim=-1)  # [B, T, head_dim / 2]
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        if self.zero_prefix:
            is_code = (position_ids >= self.prefix_length)[..., None]
            cos, sin = cos * is_code, sin * is_code
        return cos.to(x.dtype), sin.to(x.dtype)


class GridLlamaForCausalLM(LlamaForCausalLM):
    config_class = GridLlamaConfig

    def __init__(self, config: GridLlamaConfig) -> None:
        super().__init__(config)
        self.model.rotary_emb = GridRotaryEmbedding(config)


def _check(config: PriorConfig) -> None:
    check_rotary(config)
    head_dim = config.hidden_size // config.num_attention_heads
    require(
        head_dim % 4 == 0,
        f"hidden_size over num_attention_heads gives {head_dim} dimensions a head; positions on the grid need a "
        "multiple of 4.",
        "Change hidden_size or num_attention_heads.",
    )


def _config(config: PriorConfig, sequence: SequenceConfig) -> GridLlamaConfig:
    require(
        sequence.depth == 1,
        f"Positions on the grid are rows and columns, and there are {sequence.depth} codes at each position.",
        "Use architecture 'llama' (positions 'rotary').",
    )
    grid = {"grid_width": sequence.grid_shape[1], "prefix_length": sequence.prefix_length}
    return GridLlamaConfig(**llama_values(config, sequence), **grid)


GRID_LLAMA = Architecture(
    name="grid_llama",
    title="Llama with positions on the grid",
    config_class=GridLlamaConfig,
    model_class=GridLlamaForCausalLM,
    config=_config,
    read_weights=read_llama,
    check=_check,
    training_forward=llama_forward,
    is_plain=is_plain_llama,
    checkpointing=True,
    library="codegrid.prior",
)

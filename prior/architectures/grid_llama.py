"""A Llama whose rotary positions are the rows and columns of the code grid; else it is transformers', key by key.

Rotary positions: Su et al. 2021, https://arxiv.org/abs/2104.09864; a half of each head for the rows and a half for the
columns, as LlamaGen has them: Sun et al. 2024, https://arxiv.org/abs/2406.06525.
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
    from codegrid.prior.sequence import SequenceConfig


class GridLlamaConfig(LlamaConfig):
    """LlamaConfig, and the grid.

    Args:
        grid_width: columns of the grid; positions follow it line by line, after the prefix.
        prefix_length: tokens of the prefix. Several lie line by line right above the grid, as the codes of another
            picture of that width would; a single one lies where the first code lies.
        zero_prefix: the prefix's queries and keys are zero, as in LlamaGen's code: every later position gives it the
            score 0. False leaves them as they are, not turned.
    """

    model_type = "codegrid_grid_llama"

    grid_width: int = 16
    zero_prefix: bool = False
    prefix_length: int = 1

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: as before there were longer prefixes, where there is none."""
        values = super().to_diff_dict()
        return {name: value for name, value in values.items() if name != "prefix_length" or value != 1}


class GridRotaryEmbedding(nn.Module):
    """Cosines and sines of a head's pairs: the first half turns by the row, the second by the column."""

    def __init__(self, config: GridLlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.theta = config.rope_parameters["rope_theta"]
        self.grid_width, self.zero_prefix = config.grid_width, config.zero_prefix
        self.prefix_length = config.prefix_length

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [B, T], the prefix's first -> two of [B, T, head_dim], in the dtype of `x`."""
        # Made anew each time: a buffer that is not saved would come back from `from_pretrained` as garbage.
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
    require(head_dim % 4 == 0, f"Positions on the grid need a multiple of 4 dimensions a head, not {head_dim}.")


def _config(config: PriorConfig, sequence: SequenceConfig) -> GridLlamaConfig:
    require(
        sequence.depth == 1,
        f"Positions on the grid are rows and columns, and these sequences have {sequence.depth} codes at each "
        "position: use architecture 'llama' (positions 'rotary').",
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

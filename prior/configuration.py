"""The config of a prior: its sizes, and the transformers config that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from transformers import PreTrainedConfig

from codegrid.errors import require
from codegrid.prior.architectures import Architecture, architecture_named
from codegrid.prior.sequence_config import SequenceConfig

# The architecture that "auto" chooses by `positions`; `qk_norm` with rotary positions chooses a Qwen3.
_BY_POSITIONS = {"rotary": "llama", "rotary_2d": "grid_llama", "learned": "gpt2"}
# Upper bounds for a config: a mistyped size is refused before any work.
_MOST = {"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096}
_MOST |= {"hidden_size": 2**17, "intermediate_size": 2**20}


@dataclass(frozen=True)
class PriorConfig:
    """Size of a prior. The names are those of transformers' LlamaConfig.

    Args:
        hidden_size: width; a multiple of `num_attention_heads`, with an even number of dimensions per head.
        num_hidden_layers: depth, in blocks.
        num_attention_heads: attention heads per layer.
        num_key_value_heads: number of key/value heads, each shared by a group of attention heads; None for one per
            attention head.
        intermediate_size: width of the gated MLP. None is 8/3 of `hidden_size` rounded up to a multiple of 64, which
            gives the MLP as many weights as an ungated one of 4 times the width (arXiv:2002.05202).
        attention_dropout: dropout of the attention weights, in training.
        positions: chooses the architecture if `architecture` is "auto": "rotary" a Llama, "rotary_2d" a grid_llama,
            "learned" a GPT-2.
        qk_norm: chooses a Qwen3 if `architecture` is "auto" and positions are "rotary".
        rope_theta: base of the rotary positions' wavelengths (arXiv:2104.09864).
        rms_norm_eps: epsilon of the norms.
        initializer_range: standard deviation of the initial weights.
        tie_word_embeddings: the output layer shares the embedding's weight.
        architecture: one of `ARCHITECTURES`. "llama" has rotary positions that count the tokens. "grid_llama" rotates
            one half of each head by the row of the grid and the other by the column; it needs a depth of 1, and
            dimensions per head that are a multiple of 4. "qwen3" is a Llama that normalises queries and keys
            (arXiv:2302.05442). "gpt2" has learned positions, layer norms and by default an ungated MLP of 4 times the
            width; it has no shared key heads. "any_order_llama" and "any_order_gpt2" are a Llama and a GPT-2 whose
            codes come in any order, and "bert" a masked prior (MaskGIT, arXiv:2202.04200), for a depth of 1. "auto"
            chooses by `positions` and `qk_norm`; their defaults give a Llama.

    Raises:
        CodegridError: a field is out of its range. The message names it.
    """

    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    attention_dropout: float = 0.0
    positions: Literal["rotary", "rotary_2d", "learned"] = "rotary"
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    architecture: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type.startswith("int") and value is not None:
                require(value >= 1, f"{field.name} is {value}.", "Give at least 1.")
                require(value <= _MOST[field.name], f"{field.name} is {value}.", f"Give at most {_MOST[field.name]}.")
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        require(
            self.hidden_size % heads == 0,
            f"hidden_size {self.hidden_size} over num_attention_heads {heads} gives no whole number of dimensions a "
            "head.",
            "Change one of the two.",
        )
        require(
            shared is None or heads % shared == 0,
            f"num_key_value_heads {shared} does not divide num_attention_heads {heads}.",
            "Give a divisor of num_attention_heads.",
        )
        self._check_architecture()
        require(
            0 <= self.attention_dropout < 1,
            f"attention_dropout is {self.attention_dropout}.",
            "Give a number from 0 to below 1.",
        )
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}.", "Give a number above 0.")

    def _check_architecture(self) -> None:
        require(
            self.positions in _BY_POSITIONS,
            f"positions is {self.positions!r}.",
            "Choose one of 'rotary', 'rotary_2d' and 'learned'.",
        )
        require(
            not self.qk_norm or self.positions == "rotary",
            f"qk_norm is set with positions {self.positions!r}, and no architecture here has both.",
            "Set positions to 'rotary', or turn qk_norm off.",
        )
        require(
            self.architecture == "auto" or (self.positions == "rotary" and not self.qk_norm),
            f"architecture {self.architecture!r} says which positions and norms there are, and positions "
            f"({self.positions!r}) or qk_norm ({self.qk_norm}) is given as well.",
            "Leave out positions and qk_norm.",
        )
        self.record.check(self)

    @property
    def record(self) -> Architecture:
        """The record of the architecture that the fields choose."""
        if self.architecture != "auto":
            return architecture_named(self.architecture)
        return architecture_named("qwen3" if self.qk_norm else _BY_POSITIONS[self.positions])


def transformers_config(config: PriorConfig, sequence: SequenceConfig) -> PreTrainedConfig:
    """The transformers config of the architecture that `config` describes, for tokens of `sequence`.

    Raises:
        CodegridError: the architecture does not fit the sequence.
    """
    return config.record.config(config, sequence)

"""What a prior is made of: its sizes, and the config of transformers that they give."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from codegrid.errors import require
from codegrid.prior.grid_llama import GridLlamaConfig
from codegrid.prior.sequence import SequenceConfig


@dataclass(frozen=True)
class PriorConfig:
    """Size of a prior. The names are those of transformers' LlamaConfig.

    Args:
        hidden_size: width; a multiple of `num_attention_heads`, with an even number of dimensions a head.
        num_hidden_layers: depth, in blocks.
        num_attention_heads: heads a layer.
        num_key_value_heads: heads that share keys and values; None for as many as there are attention heads.
        intermediate_size: width of the gated MLP; None for 8/3 of `hidden_size` rounded up to a multiple of 64, which
            gives the MLP as many weights as an ungated one of 4 times the width (arXiv:2002.05202).
        attention_dropout: of attention weights, while training.
        positions: "rotary" counts the tokens; "rotary_2d" counts rows and columns of the grid, a half of each head for
            each (needs a depth of 1, and dimensions a head that are a multiple of 4); "learned" makes a GPT-2, with
            layer norms and an ungated MLP of 4 times the width by default (without shared key heads).
        qk_norm: norm queries and keys, head by head, before they are turned (arXiv:2302.05442), which makes a Qwen3;
            with positions "rotary" only.
        rope_theta: base of the rotary positions' wavelengths (arXiv:2104.09864).
        rms_norm_eps: in the norms.
        initializer_range: standard deviation of the initial weights.
        tie_word_embeddings: the output layer is the embedding.

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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type.startswith("int") and value is not None:
                require(value >= 1, f"{field.name} is {value}: it must be at least 1.")
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        learned = self.positions == "learned"
        require(
            self.hidden_size % heads == 0 and (learned or self.hidden_size // heads % 2 == 0),
            f"hidden_size {self.hidden_size} over num_attention_heads {heads} must give an even whole number of "
            "dimensions a head (rotary positions turn pairs of them).",
        )
        require(
            shared is None or heads % shared == 0,
            f"num_key_value_heads {shared} must divide num_attention_heads {heads}.",
        )
        require(
            self.positions in ("rotary", "rotary_2d", "learned"),
            f"positions is {self.positions!r}: it must be 'rotary', 'rotary_2d' or 'learned'.",
        )
        require(
            not self.qk_norm or self.positions == "rotary",
            f"qk_norm goes with positions 'rotary' only, not {self.positions!r}: no architecture here has both.",
        )
        require(
            not learned or shared in (None, heads),
            f"num_key_value_heads {shared}: with positions 'learned' every head has keys of its own, leave it out.",
        )
        require(
            self.positions != "rotary_2d" or self.hidden_size // heads % 4 == 0,
            f"positions 'rotary_2d' needs a multiple of 4 dimensions a head, not {self.hidden_size // heads}.",
        )
        require(
            0 <= self.attention_dropout < 1, f"attention_dropout is {self.attention_dropout}: it must lie in [0, 1)."
        )
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: it must be above 0.")


def transformers_config(config: PriorConfig, sequence: SequenceConfig) -> PreTrainedConfig:
    """The config of the stock architecture, or of `grid_llama.py`, that `config` describes, for tokens of `sequence`.

    Raises:
        CodegridError: positions on the grid, where a position has several codes.
    """
    # Llama's default tokens are 1 and 2: the code 2 would end an image.
    common: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    common |= {"vocab_size": sequence.vocab_size, "initializer_range": config.initializer_range}
    common |= {"tie_word_embeddings": config.tie_word_embeddings, "attn_implementation": "sdpa"}
    # One more than training sees, because serving engines count the prefix and every code made against it.
    length = sequence.length + 1
    if config.positions == "learned":
        return GPT2Config(
            n_positions=length,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            attn_pdrop=config.attention_dropout,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **common,
        )
    common |= {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size or _default_intermediate_size(config.hidden_size),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": config.rms_norm_eps,
        "attention_dropout": config.attention_dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rope_theta)},
    }
    if config.qk_norm:
        return Qwen3Config(**common)
    if config.positions == "rotary":
        return LlamaConfig(**common)
    require(
        sequence.depth == 1,
        f"positions 'rotary_2d' knows rows and columns, and these sequences have {sequence.depth} codes at each "
        "position: use 'rotary'.",
    )
    return GridLlamaConfig(**common, grid_width=sequence.grid_shape[1])


def _default_intermediate_size(hidden_size: int, multiple: int = 64) -> int:
    return -(-8 * hidden_size // (3 * multiple)) * multiple

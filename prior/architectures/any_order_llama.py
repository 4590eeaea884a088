"""A Llama whose codes come in any order: each input says where it stands, and attention is turned by places.

Two embeddings, of an input's own place and of the place that is asked for next, are added to a Llama's (RAR,
https://arxiv.org/abs/2411.00776). Its rotary positions are places too: keys turn by their own place, queries by the one
before the place that they ask for. So a query meets the code to the left of its target, or above it, under the same
angle in every order. In raster order both are the plain count: a Llama that was trained in raster order is one of these
with embeddings of 0, and training can start from it (`prior/transfer.py`). Places count the prefix and then the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from codegrid.errors import require
from codegrid.prior.architectures.any_order import counted_places
from codegrid.prior.architectures.base import Architecture
from codegrid.prior.architectures.llama import check_rotary, llama_values
from codegrid.prior.architectures.llama_decoding import Rotation, read_llama
from codegrid.prior.architectures.llama_training import is_plain_llama, llama_blocks, rotation_at
from codegrid.prior.decoder_weights import AsMap, DecoderWeights


class AnyOrderLlamaConfig(LlamaConfig):
    """LlamaConfig under a name of its own."""

    model_type = "codegrid_any_order_llama"


class AnyOrderLlamaModel(LlamaModel):
    """LlamaModel with the two embeddings of places."""

    config_class = AnyOrderLlamaConfig

    def __init__(self, config: AnyOrderLlamaConfig) -> None:
        super().__init__(config)
        self.own_places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.target_places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        own: Tensor | None = None,
        target: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """`own` and `target` are places [B, T] of the inputs and of what is asked for; None is raster order."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        if own is not None and target is not None:
            hidden = inputs_embeds + self.own_places(own) + self.target_places(target)
            return BaseModelOutputWithPast(last_hidden_state=self._by_places(hidden, own, target))
        places = counted_places(inputs_embeds, others) if position_ids is None else position_ids
        asked = (places + 1).clamp(max=self.config.max_position_embeddings - 1)
        embedded = inputs_embeds + self.own_places(places) + self.target_places(asked)
        return super().forward(inputs_embeds=embedded, position_ids=position_ids, **others)

    def _by_places(self, hidden: Tensor, own: Tensor, target: Tensor) -> Tensor:
        """Embeddings [B, T, D] -> the input of the output layer [B, T, D]."""
        require(
            is_plain_llama(self),
            "Codes in another order than raster need plain linear layers, and this model holds others (an adapter).",
            "Merge the adapter first.",
        )
        config = self.config
        heads = torch.arange(config.num_attention_heads + config.num_key_value_heads, device=hidden.device)
        asks = (heads < config.num_attention_heads)[:, None]  # [H + Hkv, 1]
        turns = zip(rotation_at(self, hidden, target - 1), rotation_at(self, hidden, own), strict=True)
        rotation = [torch.where(asks, query, key) for query, key in turns]  # [B, T, H + Hkv, hd] each
        return llama_blocks(self, hidden, rotation[0], rotation[1], False)


class AnyOrderLlamaForCausalLM(LlamaForCausalLM):
    config_class = AnyOrderLlamaConfig

    def __init__(self, config: AnyOrderLlamaConfig) -> None:
        super().__init__(config)
        self.model = AnyOrderLlamaModel(config)
        self.post_init()


def _read(model: AnyOrderLlamaForCausalLM, num_codes: int, length: int, as_map: AsMap) -> DecoderWeights:
    """See `read_weights`."""
    weights = read_llama(model, num_codes, length + 1, as_map)  # the last place may come before others
    own, target = model.model.own_places.weight.detach(), model.model.target_places.weight.detach()
    rotation = weights.turn
    assert isinstance(rotation, Rotation)
    return replace(
        weights,
        length=length,
        embed_places=lambda place, asked: F.embedding(place, own) + F.embedding(asked, target),
        turn_places=_Turn(rotation, model.config.num_attention_heads),
    )


@dataclass(frozen=True)
class _Turn:
    """Turns queries by the place before the one that is asked for, and keys by their own."""

    rotation: Rotation
    num_heads: int

    def __call__(self, own: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Places [...] -> heads [..., H + Hkv, hd] -> the same, turned."""
        turns = self.rotation((target - 1)[..., None]), self.rotation(own[..., None])

        def turned(heads: Tensor) -> Tensor:
            parts = heads[..., : self.num_heads, :], heads[..., self.num_heads :, :]
            return torch.cat([turn(part) for turn, part in zip(turns, parts, strict=True)], -2)

        return turned


ANY_ORDER_LLAMA = Architecture(
    name="any_order_llama",
    title="Llama of codes in any order",
    config_class=AnyOrderLlamaConfig,
    model_class=AnyOrderLlamaForCausalLM,
    config=lambda config, sequence: AnyOrderLlamaConfig(**llama_values(config, sequence)),
    read_weights=_read,
    check=check_rotary,
    library="codegrid.prior",
    reads="any order",
)

"""A GPT-2 whose codes come in any order: each input also says which place it is of and which place is asked for next.

Two learned embeddings are added to a stock GPT-2's: of the input's own place and of the target's place (RAR,
https://arxiv.org/abs/2411.00776; sigma-GPT, https://arxiv.org/abs/2404.09562). Its stock positions count the inputs, so
they tell how many codes are known. Places count the prefix and then the codes in the order of the sequence. Without
places the forward pass is that of raster order: the i-th input is of place i and asks for place i + 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.pytorch_utils import Conv1D

from codegrid.prior.architectures.base import Architecture
from codegrid.prior.architectures.gpt2 import check_gpt2, gpt2_values, read_gpt2
from codegrid.prior.decoder_weights import AsMap, DecoderWeights


def counted_places(inputs_embeds: Tensor, others: dict[str, Any]) -> Tensor:
    """The places [1, T] of inputs [B, T, D] in raster order, counted from the end of the cache among `others`."""
    cache = others.get("cache", others.get("past_key_values"))
    start = 0 if cache is None else cache.get_seq_length()
    return torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)[None]


class AnyOrderGPT2Config(GPT2Config):
    """GPT2Config under a name of its own."""

    model_type = "codegrid_any_order_gpt2"


class AnyOrderGPT2Model(GPT2Model):
    """GPT2Model with the two embeddings of places."""

    config_class = AnyOrderGPT2Config

    def __init__(self, config: AnyOrderGPT2Config) -> None:
        super().__init__(config)
        self.own_places = nn.Embedding(config.n_positions, config.n_embd)
        self.target_places = nn.Embedding(config.n_positions, config.n_embd)
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
            inputs_embeds = self.wte(input_ids)
        assert inputs_embeds is not None
        if own is None:
            own = position_ids
        if own is None:
            own = counted_places(inputs_embeds, others)
        if target is None:
            target = (own + 1).clamp(max=self.config.n_positions - 1)
        embedded = inputs_embeds + self.own_places(own) + self.target_places(target)
        return super().forward(inputs_embeds=embedded, position_ids=position_ids, **others)


class AnyOrderGPT2LMHeadModel(GPT2LMHeadModel):
    config_class = AnyOrderGPT2Config

    def __init__(self, config: AnyOrderGPT2Config) -> None:
        super().__init__(config)
        self.transformer = AnyOrderGPT2Model(config)
        self.post_init()


def _read(model: AnyOrderGPT2LMHeadModel, num_codes: int, length: int, as_map: AsMap) -> DecoderWeights:
    """See `read_weights`."""
    weights = read_gpt2(model, num_codes, length, as_map)
    own, target = model.transformer.own_places.weight.detach(), model.transformer.target_places.weight.detach()
    return replace(weights, embed_places=lambda place, asked: F.embedding(place, own) + F.embedding(asked, target))


ANY_ORDER = Architecture(
    name="any_order_gpt2",
    title="GPT-2 of codes in any order",
    config_class=AnyOrderGPT2Config,
    model_class=AnyOrderGPT2LMHeadModel,
    config=lambda config, sequence: AnyOrderGPT2Config(**gpt2_values(config, sequence)),
    read_weights=_read,
    check=check_gpt2,
    matrix_layers=(nn.Linear, Conv1D),
    library="codegrid.prior",
    reads="any order",
)

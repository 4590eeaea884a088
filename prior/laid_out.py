"""A model's weights as decoding reads them, kept from one call to the next."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.decoding import read_weights
from codegrid.prior.linear_maps import WeightFormat


class LaidOut:
    """Lays a model out when it is first asked for, and again when the model has changed.

    It holds as much memory as the model, unless it is `in_place`: then nothing is laid out, and the model's own weights
    are read, in more products. A copy of it, or what pickle makes of it, starts empty.
    """

    def __init__(self, in_place: bool = False) -> None:
        self.in_place = in_place
        self._kept: tuple[Any, DecoderWeights] | None = None

    def read(self, model: PreTrainedModel, num_codes: int, length: int, weights: WeightFormat) -> DecoderWeights:
        """`read_weights`, or what it gave the last time that the same was asked of the same weights."""
        asked = (id(model), num_codes, length, weights, torch.get_num_threads(), _state(model))
        kept = self._kept
        if kept is None or kept[0] != asked:
            self._kept = None  # the older one's memory is free before the new one is made
            read = read_weights(model, num_codes, length, weights=weights, in_place=self.in_place)
            kept = self._kept = (asked, read)
        return kept[1]

    def forget(self) -> None:
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None, "in_place": self.in_place}


@torch.no_grad()
def _state(model: PreTrainedModel) -> tuple[Any, ...]:
    """Changes with the weights: places, versions and, since `weight.data` can be changed unseen, norms.

    One pass over the weights, where laying them out takes several.
    """
    weights = [weight.detach() for weight in model.parameters()]
    places = tuple((w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype, w.device) for w in weights)
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(weights)]).tolist()
    return places, tuple(norms)

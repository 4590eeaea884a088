"""The weights that decoding reads, for every architecture: pre-norm blocks of causal attention and an MLP.

Architectures differ in the norms, the MLP and the positions. Each has a file in `prior/architectures/` that reads its
model into these classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from codegrid.errors import CodegridError
from codegrid.prior.linear_maps import Linear, SideBySide, WeightFormat, linear_map


@dataclass(frozen=True)
class AsMap:
    """A weight [out, in] and a bias -> the map, as `read_weights` was asked for it."""

    pack: bool | None = None
    weights: WeightFormat = "exact"
    in_place: bool = False

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return linear_map(weight, bias, self.pack, self.weights)


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block."""

    attention_norm: Callable[[Tensor], Tensor]  # [R, D] -> [R, D]
    qkv: Linear  # D -> (H + 2 * Hkv) * hd
    output: Linear  # H * hd -> D
    mlp_norm: Callable[[Tensor], Tensor]  # [R, D] -> [R, D]
    mlp: Linear  # D -> D; maps rows as the others do, but is not linear
    head_norm: Callable[[Tensor], Tensor] | None = None  # of queries and keys, [R, H + Hkv, hd]


@dataclass(frozen=True)
class DecoderWeights:
    """A prior's weights, read once for any number of decoding runs. Later changes of the model have no effect."""

    embed: Callable[[Tensor, Any], Tensor]  # tokens [R] and their position -> [R, D]; or [R, N] and positions [N]
    # A position -> what turns queries and keys [R, H + Hkv, hd] of every layer by it; or positions [M, 1], [R, M, ...].
    turn: Callable[[Any], Callable[[Tensor], Tensor]]
    layers: tuple[LayerWeights, ...]
    norm: Callable[[Tensor], Tensor]  # [R, D] -> [R, D]
    head: Linear  # D -> codes
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    length: int  # positions that can be decoded
    device: torch.device
    dtype: torch.dtype
    # Of a prior of any order: own and target places -> what is added to `embed`; and -> what turns the queries and keys
    # [..., H + Hkv, hd] of every layer by these places, in place of `turn` (None: nothing turns).
    embed_places: Callable[[Tensor, Tensor], Tensor] | None = None
    turn_places: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]] | None = None

    @property
    def row_multiple(self) -> int:
        """Rows are padded to a multiple of this on a CPU, so that the bits of logits do not depend on their number."""
        maps = [self.head, *(part for layer in self.layers for part in (layer.qkv, layer.output, layer.mlp))]
        # The attention of one row with one key head is a single matrix product, which several threads split up.
        attention = 2 if self.num_key_value_heads == 1 else 1
        return math.lcm(attention, *(part.row_multiple for part in maps))


def joined(modules: list[nn.Module], as_map: AsMap, rows: int | None = None) -> Linear:
    """One map for several linear layers with the same input; it gives the first `rows` outputs.

    Raises:
        CodegridError: a module is not a plain linear layer, but an adapter, for example.
    """
    if as_map.in_place:
        parts = [as_map(_matrix(each)[:rows], None if each.bias is None else each.bias[:rows]) for each in modules]
        return parts[0] if len(parts) == 1 else SideBySide(parts)
    weight = torch.cat([_matrix(module) for module in modules])[:rows]  # [out, in]
    biases = [module.bias.detach() for module in modules if module.bias is not None]
    return as_map(weight, torch.cat(biases)[:rows] if biases else None)


def _matrix(module: nn.Module) -> Tensor:
    """The weight [out, in] of a linear layer, or of GPT-2's layer, which stores it transposed."""
    if type(module) not in (nn.Linear, Conv1D) or not module.weight.is_floating_point():
        raise CodegridError(
            f"Sampling reads plain linear layers, and found {type(module).__name__}.",
            "Merge adapters and dequantize the weights first.",
        )
    weight = module.weight.detach()
    return weight if type(module) is nn.Linear else weight.t()

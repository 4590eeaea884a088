"""Which of a checkpoint's tensors are the network's: trained or averaged ones, and what wraps their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from codegrid.tokenizer.importers.reading import ForeignCheckpointError

# Which weights are taken, where a file has both kinds: those that the family's own code takes, or a kind by name.
Kind = Literal["family", "trained", "averaged"]

# Keys under which training code keeps weights, in the order of the search.
TRAINED = ("state_dict", "model", "module", "model_state_dict", "params")
AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "shadow")
_WRAPS = re.compile(r"(^|\.)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_HEADS = ("model", "vqgan", "vqvae", "vae", "vq_model", "tokenizer", "generator", "net", "network")
_COUNTERS = ("n_averaged", "decay", "num_updates")  # of the averages themselves


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one network.

    Attributes:
        weights: by their names without wrappers.
        container: the key under which the file keeps them; "" for the file itself.
        averaged: whether that container holds averages of the weights.
        beside: the keys of the file's other weights.
        prefixes: wrappers that were taken off the names.
    """

    weights: dict[str, Tensor]
    container: str = ""
    averaged: bool = False
    beside: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def said(self) -> list[str]:
        """Lines on what was taken, for people; none for a plain file."""
        lines = []
        if self.beside:
            kind = "averaged" if self.averaged else "trained"
            others = ", ".join(self.beside)
            lines.append(f"Taken are the {kind} weights (under {self.container}); those under {others} are left.")
        if self.prefixes:
            lines.append(f"Taken off the weights' names: {', '.join(f'{prefix}.' for prefix in self.prefixes)}")
        return lines


def checkpoint_of(content: Any, where: str, averaged: bool = False) -> Checkpoint:
    """The weights in what a file holds: a state dict itself, or one under a key that training code uses.

    Args:
        where: the file, for the message.
        averaged: take averages where there are some beside trained weights.

    Raises:
        ForeignCheckpointError: there are no weights.
    """
    found = {} if not isinstance(content, Mapping) else {name: _tensors(content.get(name)) for name in TRAINED}
    if isinstance(content, Mapping):
        found |= {name: _tensors(content.get(name)) for name in AVERAGED}
    found = {name: weights for name, weights in found.items() if weights}
    order = (*AVERAGED, *TRAINED) if averaged else (*TRAINED, *AVERAGED)
    chosen = next((name for name in order if name in found), "")
    weights = found.pop(chosen) if chosen else _tensors(content)
    if not weights:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ForeignCheckpointError(
            f"{where} holds no weights, neither directly nor under {', '.join((*TRAINED, *AVERAGED))}: {keys}.",
            "Save the state dict alone as safetensors and import that.",
        )
    plain, prefixes = without_wrappers(weights)
    return Checkpoint(plain, chosen, chosen in AVERAGED, tuple(found), prefixes)


def without_wrappers(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights by their names without what DDP, FSDP, torch.compile and modules around the network add to them.

    Returns:
        The weights, and the prefixes that were taken off.

    Raises:
        ForeignCheckpointError: two weights would have one name.
    """
    names = {key: key for key in weights if key not in _COUNTERS}
    prefixes: dict[str, None] = {}
    for key in names:
        while found := _WRAPS.search(names[key]):
            prefixes[found[0].strip(".")] = None
            names[key] = names[key][: found.start()] + found[1] + names[key][found.end() :]
    while names and len(heads := {name.partition(".")[0] for name in names.values()}) == 1:
        head = heads.pop()
        if head not in _HEADS or head in names.values():
            break
        prefixes[head] = None
        names = {key: name.removeprefix(f"{head}.") for key, name in names.items()}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ForeignCheckpointError(
            f"The checkpoint holds {twice} twice, with and without {', '.join(prefixes)} before it.",
            "Save the state dict of one network alone as safetensors and import that.",
        )
    return {name: weights[key] for key, name in names.items()}, tuple(prefixes)


def _tensors(content: Any, depth: int = 2) -> dict[str, Tensor]:
    """The tensors of a mapping by name; of one that has none, those of a state dict within it."""
    if not isinstance(content, Mapping):
        return {}
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if any(name not in _COUNTERS for name in weights) or not depth:
        return weights
    inner = (_tensors(content.get(name), depth - 1) for name in (*TRAINED, *AVERAGED))
    return next((weights for weights in inner if weights), {})

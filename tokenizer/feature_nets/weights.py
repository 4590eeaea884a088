"""Weights of published nets, from a local file or downloaded. If they are missing, the error says how to get them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from codegrid.errors import CodegridError, MissingFileError

Weights = dict[str, Tensor]


class WeightsError(CodegridError):
    """A frozen net's weights are not available; the message says how to get them."""


def read_weights(path: Path, option: str) -> Weights:
    """The tensors of a `.safetensors` or `.pth` file.

    Args:
        option: the config's field that named the file, for the error.

    Raises:
        MissingFileError: there is no such file.
    """
    if not path.is_file():
        raise MissingFileError(f"The weights {path} do not exist.", f"Name a file that is there by {option}.")
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


def download_weights(model: str, option: str, turn_off: str) -> Weights:
    """torchvision's weights of its classifier `model`, from the torch hub's cache or downloaded.

    Args:
        option: the config's field that takes a local file instead.
        turn_off: the setting that makes the net unnecessary.

    Raises:
        WeightsError: they are not available; the message says how to get them.
    """
    weights = torchvision.models.get_model_weights(model).DEFAULT
    name = Path(weights.url).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise WeightsError(
            f"torchvision's weights of {model!r} could not be downloaded ({type(error).__name__}: {error}).",
            f"Get {name} from {weights.url} on a machine with internet, then put it at {cached}, or pass its path "
            f"as {option}. Without it, turn the term off: {turn_off}.",
        ) from error


def load_renamed(net: nn.Module, weights: Weights, rename: Callable[[str], str], name: str, where: str) -> None:
    """Fill `net` with the file's tensors, renamed by `rename(key)`, in float32. Unused tensors of the file are ignored.

    BatchNorm's `num_batches_tracked` may be missing, as in torchvision's older files: only training reads it.

    Raises:
        CodegridError: a tensor is missing or of another shape; the message has `name`, `where` and the first tensor.
    """
    wanted = net.state_dict()
    found = {key: weights.get(rename(key)) for key in wanted}
    for key in wanted:
        if found[key] is None and key.endswith("num_batches_tracked"):
            found[key] = torch.zeros((), dtype=torch.int64)
    wrong = [key for key, tensor in found.items() if tensor is None or tensor.shape != wanted[key].shape]
    if wrong:
        raise CodegridError(
            f"{where} does not hold torchvision's weights of {name!r}: {len(wrong)} tensors are missing or of "
            f"another shape, the first is {rename(wrong[0])}.",
            "Give the file of that net.",
        )
    tensors = {key: tensor.to(wanted[key].dtype) for key, tensor in found.items() if tensor is not None}
    net.load_state_dict(tensors, assign=True)

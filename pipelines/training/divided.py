"""Tensors that are divided among ranks (torch's DTensor): what each rank holds of them, and the whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_divided(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; a tensor that is not divided is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors, those that are divided whole and on the CPU. All ranks call it with the same names, in their order.

    Args:
        keep: whether this rank wants them; the others get none.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # one at a time on the device
        if keep:
            found[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return found


def divided_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, divided as `like` is; itself where that is not divided."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

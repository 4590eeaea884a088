"""Pixels <-> the model's tensors: the only place that knows the range [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from codegrid.errors import CodegridError, require

# How far a value may lie outside of [-1, 1]: resampling and the decoder overshoot; 0..255 and pictures normalised by a
# data set's mean and deviation lie further out.
OVERSHOOT = 0.5


def check_images(images: torch.Tensor, values: bool = True) -> None:
    """Refuse what the model cannot mean: it reads floats in [-1, 1].

    Args:
        values: look at the values as well; on an accelerator this waits for the device.

    Raises:
        CodegridError: no tensor, integers, NaN, or a value outside of [-1, 1] by more than `OVERSHOOT`.
    """
    require(
        isinstance(images, torch.Tensor),
        f"The model's images are tensors [B, C, H, W], not {type(images).__name__}.",
        "codegrid.tokenizer.images.to_images makes them of paths, PIL pictures and arrays.",
    )
    require(
        images.is_floating_point(),
        f"Images must be floats in [-1, 1], not {images.dtype}.",
        "Turn uint8 [B, H, W, C] into them by codegrid.tokenizer.images.to_model, or x / 127.5 - 1.",
    )
    if not values or not images.numel():
        return
    low, high = (float(extreme) for extreme in images.detach().aminmax())  # NaN where there is one
    require(
        low == low and high == high,
        "Images must be floats in [-1, 1]: these hold NaN (0 / 0, or a bad file).",
        "Leave these images out, or mend what made them.",
    )
    require(
        low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT,
        f"Images must be floats in [-1, 1]: these run from {low:.5g} to {high:.5g}.",
        "From 0..255 it is x / 127.5 - 1, from 0..1 it is x * 2 - 1; a decoder's overshoot goes by x.clamp(-1, 1).",
    )


def to_model(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1], on the same device.

    Raises:
        CodegridError: another dtype or number of dimensions.
    """
    pixels = torch.as_tensor(pixels)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise CodegridError(
            f"Pixels must be uint8 [B, H, W, C], not {pixels.dtype} {list(pixels.shape)}.",
            "Turn them into it: `to_uint8` makes it of floats.",
        )
    # Bytes lie channels-last. A GPU's model wants them so; on a CPU the order of sums, and so their bits, are those of
    # contiguous images.
    layout = torch.contiguous_format if pixels.device.type == "cpu" else torch.preserve_format
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] of any float dtype -> uint8 [B, H, W, C]: clamped to [-1, 1] and rounded; undoes `to_model` exactly.

    Raises:
        CodegridError: not a float tensor of four dimensions.
    """
    if not images.is_floating_point() or images.ndim != 4:
        raise CodegridError(
            f"Images must be floats [B, C, H, W], not {images.dtype} {list(images.shape)}.",
            "Turn them into it: `to_model` makes it of bytes.",
        )
    pixels = images.detach().float().add(1.0).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def for_people(images: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> the channels of a picture for people: all of 1 or 3, else the first three; the first of 2."""
    channels = images.shape[1]
    return images if channels in (1, 3) else images[:, : 1 if channels == 2 else 3]


def check_colours(channels: int, what: str) -> None:
    """Refuse what is made for grey or colour pictures alone, before anything is computed.

    Args:
        channels: of the tokenizer's images.
        what: what needs grey or colour, as the beginning of a sentence.

    Raises:
        CodegridError: there are neither 1 nor 3 channels.
    """
    require(
        channels in (1, 3),
        f"{what} takes grey or colour pictures, and the tokenizer's have {channels} channels.",
        "Training, tokenizing and `codegrid reconstruct` take any number of channels.",
    )


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """[B, C, H, W] in [-1, 1] -> B pictures, grey for C = 1 and RGB for C = 3.

    Raises:
        CodegridError: another number of channels, or what `to_uint8` refuses.
    """
    pixels = to_uint8(images).cpu().numpy()
    if pixels.shape[-1] not in (1, 3):
        raise CodegridError(
            f"Pictures have 1 or 3 channels, not {pixels.shape[-1]}.", "`for_people` keeps the first three."
        )
    return [Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array) for array in pixels]

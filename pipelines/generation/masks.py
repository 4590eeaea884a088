"""Masks of pixels: reading them, what they mean for codes, filling what lies under them, and the blend back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from codegrid.errors import require
from codegrid.tokenizer import Preprocessing
from codegrid.tokenizer.images import load_image
from codegrid.tokenizer.images.squares import prepare

Mask: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"

_BLEND = 2  # pixels inside of the mask over which the old picture fades out


def read_masks(mask_images: Any, number: int) -> list[np.ndarray]:
    """One mask for all or one each -> `number` arrays bool [H, W], True where the picture is drawn again (white).

    Args:
        mask_images: PIL pictures, files, or arrays and tensors [H, W]: bool, integers of 0 to 255, or floats of 0 to 1.
            At least half of white is white.

    Raises:
        CodegridError: their number is another, one is no mask, or all of it is black.
    """
    stacked = isinstance(mask_images, (np.ndarray, Tensor)) and mask_images.ndim == 3
    given = list(mask_images) if stacked or isinstance(mask_images, (list, tuple)) else [mask_images]
    require(
        len(given) in (1, number), f"There are {len(given)} masks for {number} pictures.", "Give one, or one a picture."
    )
    masks = [_read(one) for one in given]
    for mask in masks:
        require(
            bool(mask.any()), "The mask is black: nothing is drawn again.", "Paint white what is to be drawn again."
        )
    return masks * (number if len(masks) == 1 else 1)


def _read(mask: Any) -> np.ndarray:
    if isinstance(mask, (str, Path)):
        mask = load_image(Path(mask))
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    require(
        array.ndim == 2 and array.dtype.kind in "buif",
        f"A mask is {array.dtype} {list(array.shape)}.",
        "Give numbers [H, W], a grey PIL picture or a file.",
    )
    if array.dtype.kind == "b":
        return array
    white = 1.0 if array.dtype.kind == "f" else 255
    return array >= (white + (array.dtype.kind != "f")) / 2


def prepared_mask(mask: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A mask of a picture's size -> of the prepared picture's; what takes a part of a white pixel is white."""
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    cut = prepare(picture, preprocessing, 1)[:, :, 0] > 0
    if picture.size != (cut.shape[1], cut.shape[0]):  # scaling mixes pixels: one more on each side
        cut = np.asarray(Image.fromarray(np.where(cut, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))) > 0
    return cut


def cells_of(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks of pixels bool [N, H, W] -> bool [N, h, w]: the positions of which a pixel is in the mask."""
    return F.adaptive_max_pool2d(mask[:, None].float(), grid)[:, 0] > 0


def filled(image: Tensor, mask: Tensor) -> Tensor:
    """An image [C, H, W] with what lies under the mask (bool [H, W]) made up from the rest alone.

    Means of what is known are taken at half the resolution again and again, until something is known everywhere, and
    go back into the gaps (Gortler et al. 1996, "The Lumigraph": pull-push). Without anything known it is 0.
    """
    known = (~mask)[None, None].to(image.dtype)  # [1, 1, H, W]
    values = torch.where(mask, torch.zeros_like(image), image)[None]  # [1, C, H, W]
    levels = []
    while not known.all() and max(known.shape[-2:]) > 1:
        levels.append((values, known))
        weight = F.avg_pool2d(known, 2, ceil_mode=True)
        values = F.avg_pool2d(values * known, 2, ceil_mode=True) / weight.clamp(min=1e-12)
        known = (weight > 0).to(image.dtype)
    for finer, there in reversed(levels):
        coarse = F.interpolate(values, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        values = torch.where(there > 0, finer, coarse)
    return values[0]


def composite(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """`after` inside of the masks bool [N, H, W], `before` outside, both [N, C, H, W]; the blend lies wholly inside.

    It goes from the pixels around the mask, continued into it, to `after`: what `before` has under the mask counts
    nowhere.
    """
    inner = mask[:, None].float()
    share = inner
    known = (~mask)[:, None].to(before.dtype)
    edge = before.masked_fill(mask[:, None], 0)
    for _ in range(_BLEND):
        inner = -F.max_pool2d(-inner, 3, stride=1, padding=1)  # one pixel less on each side
        share = share + inner
        weight = F.avg_pool2d(known, 3, stride=1, padding=1)
        mean = F.avg_pool2d(edge, 3, stride=1, padding=1) / weight.clamp(min=1e-12)
        edge = torch.where(known > 0, edge, mean)  # one pixel more on each side; 0 where nothing is near
        known = (weight > 0).to(before.dtype)
    share = (share / (_BLEND + 1)).to(before.dtype)
    return torch.where(mask[:, None], edge + share * (after - edge), before)

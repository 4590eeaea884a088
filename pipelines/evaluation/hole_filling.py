"""Ways to fill a hole in pictures: a prior's, and those that it is compared with. Pictures are uint8 [N, H, W, C]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.generation.masks import composite
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.devices import evaluating
from codegrid.prior.sampling import image_generator
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.moving import to_device

MOST_SAMPLES = 100  # results a picture
_TRAINING_AT_ONCE = 1000


def reconstructed(pipe: ImageGenerationPipeline, pixels: Tensor, masks: np.ndarray, labels: list[int] | None) -> Tensor:
    """The hole filled with the tokenizer's reconstruction of the whole picture: uint8 [N, 1, H, W, C]."""
    images = to_model(pixels)
    with evaluating(pipe.tokenizer):
        codes = pipe.tokenizer.encode(to_device(images, pipe.tokenizer.device)).cpu()
    made = composite(images, pipe.decode(codes, labels), torch.from_numpy(masks))
    return to_uint8(made)[:, None]


def biharmonic(pixels: Tensor, masks: np.ndarray) -> Tensor:
    """Scikit-image's biharmonic inpainting (Damelin & Hoang 2018, https://doi.org/10.1155/2018/3950312).

    Returns:
        uint8 [N, 1, H, W, C].
    """
    fill = biharmonic_of_scikit_image()
    made = [
        fill(picture / 255, mask, channel_axis=-1) for picture, mask in zip(pixels.double().numpy(), masks, strict=True)
    ]
    known = torch.from_numpy(~masks)[..., None]
    filled = torch.from_numpy(np.stack(made)).clamp(0, 1).mul(255).round().to(torch.uint8)
    return torch.where(known, pixels, filled)[:, None]


def biharmonic_of_scikit_image() -> Any:
    """Scikit-image's function.

    Raises:
        LoadingError: scikit-image is not installed.
    """
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise LoadingError(
            "The row of biharmonic inpainting needs scikit-image, which is not installed.",
            'Install it with pip install "codegrid[evaluation]", or leave the row out with --no-biharmonic.',
        ) from error
    return inpaint_biharmonic


def nearest_training(pixels: Tensor, masks: np.ndarray, training: Tensor) -> Tensor:
    """The hole filled from the training picture that is nearest outside of the hole: uint8 [N, 1, H, W, C].

    Args:
        training: uint8 [M, H, W, C].
    """
    inside = torch.from_numpy(masks)[..., None].expand_as(pixels)
    known = (~inside).flatten(1).float()  # [N, D]
    picture = pixels.flatten(1).float() / 255 * known
    nearest = torch.full((len(pixels),), torch.inf)
    place = torch.zeros(len(pixels), dtype=torch.int64)
    for first in range(0, len(training), _TRAINING_AT_ONCE):
        others = training[first : first + _TRAINING_AT_ONCE].flatten(1).float() / 255  # [m, D]
        # sum over what is known of (x - t)^2, less the sum of x^2, which is the same for every t
        least, where = (known @ others.square().T - 2 * picture @ others.T).min(1)
        place = torch.where(least < nearest, where + first, place)
        nearest = torch.minimum(least, nearest)
    return torch.where(inside, training[place], pixels)[:, None]


def drawn_again(
    pipe: ImageGenerationPipeline,
    pixels: Tensor,
    hole: np.ndarray | float,
    rows: Sequence[int],
    labels: list[int] | None,
    samples: int,
    seed: int,
    options: dict[str, Any],
) -> Tensor:
    """The pipeline's results, uint8 [N, samples, H, W, C]; the i-th of a picture depends on seed, its row and i alone.

    Args:
        hole: masks [N, H, W], or the share of the codes that is kept (variations).
        options: keyword arguments of `inpaint`.
    """
    streams = [image_generator(seed, row * MOST_SAMPLES + place) for row in rows for place in range(samples)]
    options = {**options, "num_images_per_image": samples, "generator": streams, "output_type": "np", "progress": False}
    images = to_model(pixels)
    if isinstance(hole, float):
        made = pipe.variations(images, hole, labels, **options)
    else:
        made = pipe.inpaint(images, hole, labels, **options)
    assert isinstance(made.images, np.ndarray)
    return torch.from_numpy(made.images).unflatten(0, (len(pixels), samples))

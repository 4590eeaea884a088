"""The prefix and the random stream of each image that is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codegrid.errors import CodegridError
from codegrid.prior.distribution import SamplingConfig
from codegrid.prior.guidance import guidance_of
from codegrid.prior.sequence import dropped, prefix_tokens
from codegrid.prior.sequence_config import SequenceConfig


def prefixes_and_streams(
    settings: SamplingConfig,
    labels: Tensor | Sequence[int] | None,
    seeds: Sequence[int] | None,
    generators: Sequence[torch.Generator] | None,
    sequence: SequenceConfig,
    drop: Tensor | None = None,
) -> tuple[Tensor, Sequence[torch.Generator]]:
    """First tokens [B, prefix_length] on the CPU and the random stream of each image, from `sample_codes`' arguments.

    Raises:
        CodegridError: they do not fit each other or the prior, or it is not said how many images there are.
    """
    guidance_of(settings, sequence)  # refuses guidance that this prior has not
    _check_null_class(settings, labels is not None, sequence)
    streams = _one_stream_an_image(labels, seeds, generators)
    prefixes = _prefixes(labels, len(streams), sequence)
    return prefixes if drop is None else dropped(prefixes, drop.cpu(), sequence), streams


def _check_null_class(settings: SamplingConfig, labelled: bool, sequence: SequenceConfig) -> None:
    """Guidance needs labels and the null class; images without a class need a null class that the prior learned."""
    each, scale = settings.part_guidance, settings.guidance_scale
    said = f"guidance_scale is {scale}" if each is None else f"part_guidance is {each}"
    if settings.is_guided and not labelled:
        raise CodegridError(f"{said}, but no labels are given.", "Give labels: guidance leads towards a class.")
    if not labelled and not sequence.null_class:
        raise CodegridError("This prior has no null class, and no labels are given.", "Give labels.")


def _one_stream_an_image(
    labels: Tensor | Sequence[int] | None,
    seeds: Sequence[int] | None,
    generators: Sequence[torch.Generator] | None,
) -> Sequence[torch.Generator]:
    if seeds is not None and generators is not None:
        raise CodegridError("Both seeds and generators are given.", "Give one of them.")
    streams = generators if generators is not None else seeds
    if streams is None:
        if labels is None:
            raise CodegridError("It is not said how many images.", "Give labels, seeds or generators, one an image.")
        seeds = torch.randint(2**32, (len(labels),)).tolist()
    elif labels is not None and len(labels) != len(streams):
        raise CodegridError(
            f"There are {len(labels)} labels, but {len(streams)} seeds or generators.", "Give one an image."
        )
    if generators is not None:
        return generators
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds or ()]


def _prefixes(labels: Tensor | Sequence[int] | None, images: int, sequence: SequenceConfig) -> Tensor:
    """First tokens [B, prefix_length] int64, on the CPU."""
    if labels is None:
        return sequence.null_prefix.expand(images, -1)
    return prefix_tokens(torch.as_tensor(labels).cpu(), images, sequence)

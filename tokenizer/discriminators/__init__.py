"""The registry of discriminators: one import line each. The contract tests run over it."""

from __future__ import annotations

from typing import Union

from torch import nn

from codegrid.errors import require
from codegrid.tokenizer.discriminators.dino import DinoConfig, DinoDiscriminator
from codegrid.tokenizer.discriminators.patchgan import PatchGAN, PatchGANConfig
from codegrid.tokenizer.discriminators.stylegan import StyleGANConfig, StyleGANDiscriminator

DISCRIMINATORS: dict[str, tuple[type, type[nn.Module]]] = {
    "patchgan": (PatchGANConfig, PatchGAN),
    "stylegan": (StyleGANConfig, StyleGANDiscriminator),
    "dino": (DinoConfig, DinoDiscriminator),
}
# Any of their configs: the type of a config's field, told apart by `type`.
AnyDiscriminatorConfig = Union[tuple(config for config, _ in DISCRIMINATORS.values())]  # noqa: UP007


def make_discriminator(config: AnyDiscriminatorConfig, in_channels: int, num_classes: int = 0) -> nn.Module:
    """A discriminator of images [B, in_channels, H, W] in [-1, 1]; it gives logits [B, 1, H', W'].

    Its `judges_alone` says whether an image's logits are free of the other images in the batch. Where
    `config.conditional` is set, it takes labels int64 [B] in [0, num_classes) beside the images.

    Raises:
        MissingFileError, WeightsError: a frozen net's weights cannot be had; the message names the option.
        CodegridError: `config.conditional` is set and there are no classes.
    """
    require(
        not config.conditional or num_classes >= 1,
        "objective.discriminator.conditional is set, and the data has no classes: use data with labels, or set it off.",
    )
    return DISCRIMINATORS[config.type][1](config, in_channels, num_classes)


__all__ = [
    "DISCRIMINATORS",
    "AnyDiscriminatorConfig",
    "DinoConfig",
    "DinoDiscriminator",
    "PatchGAN",
    "PatchGANConfig",
    "StyleGANConfig",
    "StyleGANDiscriminator",
    "make_discriminator",
]

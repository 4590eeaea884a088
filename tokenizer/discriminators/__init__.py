"""The registry of discriminators: one import and one line in the list for each. Contract tests run over the list."""

from __future__ import annotations

from torch import nn

from codegrid.errors import require
from codegrid.tokenizer.discriminators.base import DiscriminatorConfig
from codegrid.tokenizer.discriminators.dino import DinoConfig, DinoDiscriminator
from codegrid.tokenizer.discriminators.patchgan import PatchGAN, PatchGANConfig
from codegrid.tokenizer.discriminators.stylegan import StyleGANConfig, StyleGANDiscriminator
from codegrid.tokenizer.fields import register


def register_discriminator(config: type[DiscriminatorConfig]) -> type[DiscriminatorConfig]:
    """Register a discriminator by the `type` of its config, here and on the command line.

    Args:
        config: a frozen dataclass derived from `DiscriminatorConfig`, with a default for every field and a `build`.

    Returns:
        `config` itself.

    Raises:
        CodegridError: it is not such a class, or another discriminator has its `type`.
    """
    return register(config, DiscriminatorConfig)


for _config in (PatchGANConfig, StyleGANConfig, DinoConfig):
    register_discriminator(_config)

# All discriminators by their `type`, including those that are registered later.
DISCRIMINATORS: dict[str, type[DiscriminatorConfig]] = DiscriminatorConfig.registered


def make_discriminator(config: DiscriminatorConfig, in_channels: int, num_classes: int = 0) -> nn.Module:
    """A discriminator of images [B, in_channels, H, W] in [-1, 1]; it gives logits [B, 1, H', W'].

    It keeps its `config`. Its `judges_alone` says whether an image's logits are independent of the other images in the
    batch. If `config.conditional` is set, it takes labels int64 [B] in [0, num_classes) besides the images.

    Raises:
        MissingFileError, WeightsError: a frozen net's weights are not available; the message names the option.
        CodegridError: `config.conditional` is set and there are no classes.
    """
    require(
        not config.conditional or num_classes >= 1,
        "objective.discriminator.conditional is set, and the data has no classes.",
        "Use data with labels, or set it off.",
    )
    return config.build(in_channels, num_classes)


__all__ = [
    "DISCRIMINATORS",
    "DinoConfig",
    "DinoDiscriminator",
    "DiscriminatorConfig",
    "PatchGAN",
    "PatchGANConfig",
    "StyleGANConfig",
    "StyleGANDiscriminator",
    "make_discriminator",
    "register_discriminator",
]

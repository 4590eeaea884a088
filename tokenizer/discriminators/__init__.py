"""The registry of discriminators: one import line each. The contract tests run over it."""

from __future__ import annotations

from typing import Union

from torch import nn

from tokenizer.discriminators.patchgan import PatchGAN, PatchGANConfig
from tokenizer.discriminators.stylegan import StyleGANConfig, StyleGANDiscriminator

DISCRIMINATORS: dict[str, tuple[type, type[nn.Module]]] = {
    "patchgan": (PatchGANConfig, PatchGAN),
    "stylegan": (StyleGANConfig, StyleGANDiscriminator),
}
# Any of their configs: the type of a config's field, told apart by `type`.
AnyDiscriminatorConfig = Union[tuple(config for config, _ in DISCRIMINATORS.values())]  # noqa: UP007


def make_discriminator(config: AnyDiscriminatorConfig, in_channels: int) -> nn.Module:
    """A discriminator of images [B, in_channels, H, W] in [-1, 1]; it gives logits [B, 1, H', W'].

    Its `judges_alone` says whether an image's logits are free of the other images in the batch.
    """
    return DISCRIMINATORS[config.type][1](config, in_channels)


__all__ = [
    "DISCRIMINATORS",
    "AnyDiscriminatorConfig",
    "PatchGAN",
    "PatchGANConfig",
    "StyleGANConfig",
    "StyleGANDiscriminator",
    "make_discriminator",
]

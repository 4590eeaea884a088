"""Nets that are too deep for the pictures are refused before anything is computed or claimed."""

from __future__ import annotations

from dataclasses import replace

import torch

from codegrid.errors import CodegridError, require
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.tokenizer.discriminators import DinoConfig

_LEAST = 32  # pixels a side, of the nets that halve the side five times
_DEPTHS = {"patchgan": "n_layers", "stylegan": "num_blocks"}


def check_nets(config: TokenizerTrainingConfig) -> None:
    """Try the objective's nets on the pictures' channels and size; the discriminator on tensors without storage.

    Raises:
        CodegridError: one is too deep; the message says which, the sizes, and what to change.
    """
    objective, size = config.objective, config.preprocessing.size_text
    _check_channels(config)
    for name, what in (("perceptual_weight", "LPIPS"), ("feature_distance_weight", "The feature distance")):
        require(
            getattr(objective, name) == 0 or min(config.preprocessing.size) >= _LEAST,
            f"{what} needs images of at least {_LEAST} pixels a side, and preprocessing.image_size is {size}.",
            f"Set objective.{name} to 0, or a larger image_size.",
        )
    if objective.adversarial_weight > 0 and not isinstance(objective.discriminator, DinoConfig):  # it resizes, or pads
        _check_discriminator(config, size)


def _check_channels(config: TokenizerTrainingConfig) -> None:
    channels, objective = config.backbone.in_channels, config.objective
    for name, what in (("perceptual_weight", "LPIPS"), ("feature_distance_weight", "The feature distance")):
        require(
            channels in (1, 3) or getattr(objective, name) == 0,
            f"{what} compares grey or colour pictures, and backbone.in_channels is {channels}.",
            f"Set objective.{name} to 0.",
        )
    require(
        channels in (1, 3) or objective.adversarial_weight == 0 or not isinstance(objective.discriminator, DinoConfig),
        f"The discriminator dino judges grey or colour pictures, and backbone.in_channels is {channels}.",
        "Take objective.discriminator.type patchgan or stylegan.",
    )


def _check_discriminator(config: TokenizerTrainingConfig, size: str) -> None:
    chosen = config.objective.discriminator
    # The classes' projection needs no larger pictures than the rest.
    plain = replace(chosen, conditional=False) if chosen.conditional else chosen
    batch = max(1, config.batch_size // config.gradient_accumulation_steps)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        try:
            net = plain.build(config.backbone.in_channels)
        except Exception:  # one of another package that cannot be built without storage; its own errors come later
            return
        try:
            net(torch.empty(batch, config.backbone.in_channels, *config.preprocessing.size))
        except (RuntimeError, ValueError) as error:
            depth = _DEPTHS.get(chosen.type)
            lower = f"Lower objective.discriminator.{depth} ({getattr(chosen, depth)})" if depth else "Make it smaller"
            reason = str(error).splitlines()[0].rstrip(".")
            raise CodegridError(
                f"The discriminator {chosen.type} is too deep for images of {size} pixels ({reason}).",
                f"{lower}, set a larger preprocessing.image_size, or objective.adversarial_weight to 0.",
            ) from error

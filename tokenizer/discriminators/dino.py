"""Light heads on the features of a frozen net (projected GANs, Sauer 2021, https://arxiv.org/abs/2111.01007). The
default net is a DINO vision transformer, as in StyleGAN-T (Sauer 2023, https://arxiv.org/abs/2301.09515)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.discriminators.base import DiscriminatorConfig
from codegrid.tokenizer.discriminators.projection import Projection, check_labels
from codegrid.tokenizer.feature_nets import FeatureNet
from codegrid.tokenizer.layers import not_hidden


@dataclass(frozen=True)
class DinoConfig(DiscriminatorConfig):
    """Config of `DinoDiscriminator`.

    Args:
        net: folder or Hub repository of a transformers image model (DINO, DINOv2, ...), or the name of a torchvision
            classifier.
        weights: local file with the weights of a torchvision net.
        revision: branch, tag or commit of a Hub repository.
        layers: numbers of the transformer's blocks, or names of a torchvision net's modules; none takes four evenly
            spaced blocks.
        image_size: side in pixels to which images are resized; 0 does not resize them.
        channels: channels of the heads.
        conditional: the logits of each place also depend on the image's class (see `Projection`).
    """

    type: Literal["dino"] = "dino"
    net: str = "facebook/dinov2-small"
    weights: str | None = None
    revision: str | None = None
    layers: tuple[str, ...] = ()
    image_size: int = 224
    channels: int = 64
    conditional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(map(str, self.layers)))
        require(bool(self.net), "discriminator.net is empty.", "Name a folder or Hub repository of transformers.")
        require(self.image_size >= 0, f"discriminator.image_size is {self.image_size}.", "Give 0 or more.")
        require(self.channels >= 1, f"discriminator.channels is {self.channels}.", "Give at least 1.")

    def build(self, in_channels: int, num_classes: int = 0) -> nn.Module:
        return DinoDiscriminator(self, in_channels, num_classes)


class DinoDiscriminator(nn.Module):
    """Images [B, 1 or 3, H, W] in [-1, 1] -> logits [B, 1, 1, N] of every head and place; a large logit means real.

    The net is not trained and not in the state dict, which holds a sha256 of the net's weights and refuses other ones.
    If class-conditional, it takes labels int64 [B] besides the images.

    Raises:
        MissingFileError, WeightsError: the net's weights are not available; the message names the option.
        CodegridError: there is no such net or layer; or the images are neither grey nor colour.
    """

    def __init__(self, config: DinoConfig, in_channels: int, num_classes: int = 0) -> None:
        super().__init__()
        require(
            in_channels in (1, 3),
            f"The dino discriminator judges grey or colour, and the images have {in_channels} channels.",
            "Choose the discriminator patchgan.",
        )
        self.config, self.judges_alone = config, True
        turn_off = "another objective.discriminator.type"
        option = "objective.discriminator"
        net = FeatureNet(
            config.net, config.weights, config.layers, revision=config.revision, option=option, turn_off=turn_off
        )
        object.__setattr__(self, "frozen", net)  # not a submodule, so no optimizer, checkpoint or wrapper sees it
        self.identity = net.identity()
        with torch.no_grad():
            widths = [features.shape[1] for features in net(torch.zeros(1, 3, 64, 64))]
        self.heads = nn.ModuleList(
            _Head(width, config.channels, num_classes if config.conditional else 0) for width in widths
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(self.config.conditional, labels, len(images))
        size = self.config.image_size
        if size and images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        logits = [head(features, labels) for head, features in zip(self.heads, self.frozen(images), strict=True)]
        return torch.cat([each.flatten(2) for each in logits], dim=2)[:, :, None]  # [B, 1, 1, N]

    def get_extra_state(self) -> Tensor:
        return self.identity

    def set_extra_state(self, state: Tensor) -> None:
        require(
            torch.equal(state.cpu(), self.identity),
            f"The checkpoint's discriminator was trained on another frozen net than {self.config.net} "
            "(objective.discriminator.net).",
            "Give the weights that the run began with.",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.frozen._apply(fn)  # moves with the heads
        return super()._apply(fn, recurse)


class _Head(nn.Module):
    """Features [B, D, h, w] -> logits [B, 1, h, w]."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)  # blocks differ in scale
        self.enter = nn.Conv2d(width, channels, 1)
        self.residual = nn.Conv2d(channels, channels, 3, padding=1)
        self.verdict = not_hidden(nn.Conv2d(channels, 1, 1))
        for layer in (self.enter, self.residual, self.verdict):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)
        if num_classes:
            self.projection = Projection(num_classes, channels)

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        features = F.leaky_relu(self.enter(self.norm(features)), 0.2)
        features = (features + F.leaky_relu(self.residual(features), 0.2)) / math.sqrt(2)  # keeps the variance
        logits = self.verdict(features)
        return logits if labels is None else logits + self.projection(features, labels)

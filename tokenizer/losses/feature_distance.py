"""Distance of two images in the features of a frozen net (Johnson et al. 2016, https://arxiv.org/abs/1603.08155)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codegrid.errors import CodegridError, require
from codegrid.tokenizer.feature_nets import FeatureNet, InputConvention

_OPTION = "objective.feature_distance"


@dataclass(frozen=True)
class FeatureDistanceConfig:
    """The net of the features, and how they are compared.

    Args:
        net: the name of a torchvision classifier (vgg16, squeezenet1_1, resnet50, ...), efficientnet_lite0, or a folder
            or Hub repository of a transformers image model.
        weights: local file with the weights of a torchvision net or efficientnet_lite0 (.safetensors or .pth); none
            downloads torchvision's. The names of SqueezeNet 1.1's Caffe model are read too.
        revision: branch, tag or commit of a Hub repository.
        input: the net's input convention: "imagenet" (RGB, mean and deviation of ImageNet), "caffe" (BGR, 0 to 255
            minus the mean) or "lite" ((RGB - 127) / 128). "auto" derives it from the weights.
        layers: names of a torchvision net's modules, or numbers of a transformers model's blocks; none takes the usual
            layers of the known nets.
        layer_weights: one weight for each layer; none gives all layers equal weights with a sum of 1.
        normalize: scale the features at each place to length 1, as LPIPS does.
    """

    net: str = "vgg16"
    weights: str | None = None
    revision: str | None = None
    input: InputConvention = "auto"
    layers: tuple[str, ...] = ()
    layer_weights: tuple[float, ...] = ()
    normalize: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(map(str, self.layers)))
        object.__setattr__(self, "layer_weights", tuple(self.layer_weights))
        require(bool(self.net), f"{_OPTION}.net is empty.", "Name a net of torchvision or a folder.")
        require(
            all(weight >= 0 for weight in self.layer_weights),
            f"{_OPTION}.layer_weights is {self.layer_weights}.",
            "Give 0 or more for each.",
        )
        if self.layers and self.layer_weights:
            self.check_layer_weights(len(self.layers))

    def check_layer_weights(self, layers: int) -> None:
        require(
            not self.layer_weights or len(self.layer_weights) == layers,
            f"{_OPTION}.layer_weights has {len(self.layer_weights)} weights for {layers} layers.",
            "Give one for each.",
        )


class FeatureDistance(nn.Module):
    """Distance of two batches of images [B, 1 or 3, H, W] in [-1, 1] -> [B] float32, at least 0. Frozen.

    It is the sum over layers l of w_l * mean over places of |f_l(x) - f_l(y)|^2, with features of length 1. Without
    normalisation it takes the mean over places and channels (the feature reconstruction loss of
    https://arxiv.org/abs/1603.08155).

    Raises:
        MissingFileError, WeightsError: the net's weights are not available; the message names the option.
        CodegridError: there is no such net or layer, or the file does not hold the net's weights.
    """

    def __init__(self, config: FeatureDistanceConfig) -> None:
        super().__init__()
        self.net = FeatureNet(
            config.net,
            config.weights,
            config.layers,
            config.input,
            config.revision,
            option=_OPTION,
            turn_off=f"{_OPTION}_weight 0",
        )
        number = len(self.net.layers)
        config.check_layer_weights(number)
        self.layer_weights = config.layer_weights or (1 / number,) * number
        self.normalize = config.normalize

    def forward(self, images: Tensor, other: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 32:
            raise CodegridError(
                "The feature distance needs images of at least 32 pixels a side, not "
                f"{images.shape[-2]}x{images.shape[-1]}.",
                f"Set {_OPTION}_weight to 0.",
            )
        with torch.autocast(images.device.type, enabled=False):
            ones, others = self.net(images.float()), self.net(other.float())
        distances = [self._layer(one, two) for one, two in zip(ones, others, strict=True)]  # each [B]
        return sum(weight * distance for weight, distance in zip(self.layer_weights, distances, strict=True))

    def _layer(self, one: Tensor, other: Tensor) -> Tensor:
        """Features [B, D, h, w] -> [B]."""
        if self.normalize:
            return (_unit(one) - _unit(other)).square().sum(1).mean((1, 2))
        return (one - other).square().mean((1, 2, 3))


def _unit(features: Tensor) -> Tensor:
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()  # all features of a place may be zero

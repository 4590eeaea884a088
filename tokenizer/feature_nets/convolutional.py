"""Feature maps of torchvision's classifiers, and of EfficientNet-Lite0."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from codegrid.errors import CodegridError, MissingFileError
from codegrid.tokenizer.feature_nets.efficientnet_lite import EfficientNetLite0
from codegrid.tokenizer.feature_nets.weights import Weights, download_weights, load_renamed, read_weights

LITE0 = "efficientnet_lite0"
# Default layers of the features: the last layer before each halving of the side. The layers of vgg16, alexnet and
# squeezenet1_1 are those of LPIPS.
DEFAULT_LAYERS: dict[str, tuple[str, ...]] = {
    "alexnet": ("features.1", "features.4", "features.7", "features.9", "features.11"),
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
    "vgg19": ("features.3", "features.8", "features.17", "features.26", "features.35"),
    "squeezenet1_1": tuple(f"features.{number}" for number in (1, 4, 7, 9, 10, 11, 12)),
    LITE0: tuple(f"blocks.{number}" for number in (0, 2, 4, 10, 15)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), ("relu", "layer1", "layer2", "layer3", "layer4")),
    "convnext_tiny": ("features.1", "features.3", "features.5", "features.7"),
}

# Names of SqueezeNet 1.1's Caffe model -> names of torchvision's, which has the same geometry.
_CAFFE_SQUEEZENET = {
    "conv1": "features.0",
    **{f"fire{2 + index}": f"features.{place}" for index, place in enumerate((3, 4, 6, 7, 9, 10, 11, 12))},
    "conv10": "classifier.1",
}


def is_known(net: str) -> bool:
    return net == LITE0 or net in torchvision.models.list_models(module=torchvision.models)


def convolutional_features(
    net: str, weights: str | None, layers: tuple[str, ...], option: str, turn_off: str
) -> tuple[nn.Module, tuple[str, ...], str]:
    """A module of normalised images -> {layer: features}; its layers; and the input convention of its weights.

    Nothing after the last of these layers is computed.

    Args:
        net: the name of a torchvision classifier, or "efficientnet_lite0".
        weights: local file; None downloads torchvision's.
        layers: names of submodules; none takes the net's entry in `DEFAULT_LAYERS`.
        option: the path of the config in error messages.

    Raises:
        MissingFileError, WeightsError: the weights are not available.
        CodegridError: the net has no such layer, or the file does not hold its weights.
    """
    with torch.device("meta"):  # no storage for initial weights that would be overwritten
        model = EfficientNetLite0() if net == LITE0 else torchvision.models.get_model(net, weights=None)
    layers = layers or DEFAULT_LAYERS.get(net, ())
    names = [name for name, _ in model.named_modules() if name]
    unknown = [layer for layer in layers if layer not in names]
    if unknown or not layers:
        shown = ", ".join(names[:12])
        what = f"has no layer {unknown[0]!r}" if unknown else "has no default layers"
        raise CodegridError(
            f"{net} {what}.", f"Set {option}.layers to some of its {len(names)} modules, such as {shown}."
        )
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # an in-place layer would change the features of the layer before it
    extractor = create_feature_extractor(model.eval(), {layer: layer for layer in layers})
    if weights is None and net == LITE0:
        raise MissingFileError(f"torchvision has no weights of {LITE0}.", f"Pass a local file as {option}.weights.")
    if weights is None:
        tensors = download_weights(net, f"{option}.weights", turn_off)
    else:
        tensors = read_weights(Path(weights), f"{option}.weights")
    tensors, convention = _in_torchvisions_names(net, tensors)
    load_renamed(extractor, tensors, lambda key: key, net, weights or "the downloaded file")
    return extractor, layers, convention


def _in_torchvisions_names(net: str, tensors: Weights) -> tuple[Weights, str]:
    """The tensors under torchvision's names, and the input convention that the file's layout implies."""
    if net == "squeezenet1_1" and "fire2.squeeze1x1.weight" in tensors:
        renamed = {}
        for key, tensor in tensors.items():
            first, _, rest = key.partition(".")
            renamed[f"{_CAFFE_SQUEEZENET.get(first, first)}.{rest.replace('squeeze1x1', 'squeeze')}"] = tensor
        return renamed, "caffe"
    if net == LITE0:
        return {re.sub(r"(^|\.)_", r"\1", key): tensor for key, tensor in tensors.items()}, "lite"
    return tensors, "imagenet"

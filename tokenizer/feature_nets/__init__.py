"""Frozen nets that give features to losses and discriminators: images [B, C, H, W] in [-1, 1] -> maps [B, D, h, w]."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from codegrid.errors import CodegridError
from codegrid.tokenizer.feature_nets.convolutional import DEFAULT_LAYERS, LITE0, convolutional_features, is_known
from codegrid.tokenizer.feature_nets.efficientnet_lite import EfficientNetLite0
from codegrid.tokenizer.feature_nets.hidden_states import HiddenStates, model_folder

InputConvention = Literal["auto", "imagenet", "caffe", "lite"]
# Order of the channels; then mean and standard deviation of values in 0 to 255, in that order.
INPUTS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": ("bgr", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "lite": ("rgb", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


class FeatureNet(nn.Module):
    """Images [B, 1 or 3, H, W] in [-1, 1] -> a list of maps [B, D, h, w], one per layer. Frozen, always in evaluation.

    Grey images are repeated to three channels.

    Args:
        net: the name of a torchvision classifier, "efficientnet_lite0", or a folder or Hub repository of transformers.
        weights: local file with the weights of a torchvision net or efficientnet_lite0; None downloads torchvision's.
        layers: module names for torchvision, block numbers for transformers. None takes the net's usual layers.
        convention: the net's input convention, one of `INPUTS`. "auto" derives it from the layout of the weights' names
            or a folder's preprocessor_config.json, and else takes "imagenet".
        revision: revision of a Hub repository.
        option: the path of this config in error messages; `turn_off` is the setting that makes the net unnecessary.

    Raises:
        MissingFileError, WeightsError: the weights are not available; the message names the option.
        CodegridError: there is no such net or layer, or the file does not hold the net's weights.
    """

    def __init__(
        self,
        net: str,
        weights: str | None = None,
        layers: tuple[str, ...] = (),
        convention: InputConvention = "auto",
        revision: str | None = None,
        option: str = "net",
        turn_off: str = "its weight 0",
    ) -> None:
        super().__init__()
        if is_known(net) and not Path(net).is_dir():
            self.extractor, self.layers, wanted = convolutional_features(net, weights, layers, option, turn_off)
            values = INPUTS[wanted if convention == "auto" else convention]
        else:
            if not Path(net).is_dir() and net.count("/") != 1:
                raise CodegridError(
                    f"{option}.net is {net!r}.",
                    f"Give a classifier of torchvision {torchvision.__version__}, {LITE0!r}, or a folder or Hub "
                    "repository of a model of transformers.",
                )
            folder = model_folder(net, revision, f"{option}.net")
            self.extractor = HiddenStates(folder, _numbers(layers, option), f"{option}.net")
            self.layers = tuple(map(str, self.extractor.blocks))
            values = _of_processor(self.extractor) if convention == "auto" else INPUTS[convention]
        order, mean, std = values
        self.is_bgr = order == "bgr"
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureNet:
        """Stays in evaluation mode: dropout or batch statistics between the features would make the loss noisy."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        images = self.normalized(images)
        found = self.extractor(images)
        return [found[layer] for layer in self.layers] if isinstance(found, dict) else found

    def identity(self) -> Tensor:
        """sha256 of the used weights, uint8 [32]."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.extractor.state_dict().items()):
            if "pooler" not in name:  # it gives no features, and is random if a folder lacks it
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)

    def normalized(self, images: Tensor) -> Tensor:
        """Images with the channel order, mean and deviation of the net's training: [B, 3, H, W]."""
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        images = images.flip(1) if self.is_bgr else images
        return ((images + 1) * 127.5 - self.mean) / self.std


def _numbers(layers: tuple[str, ...], option: str) -> tuple[int, ...] | None:
    if not all(layer.isdigit() for layer in layers):
        raise CodegridError(
            f"{option}.layers is {layers}, and of a model of transformers they are numbers of blocks.", "Give numbers."
        )
    return tuple(map(int, layers)) or None


def _of_processor(states: HiddenStates) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    if states.mean is None or states.std is None:
        return INPUTS["imagenet"]
    return "rgb", tuple(255 * value for value in states.mean), tuple(255 * value for value in states.std)


__all__ = ["DEFAULT_LAYERS", "INPUTS", "EfficientNetLite0", "FeatureNet", "HiddenStates", "InputConvention"]

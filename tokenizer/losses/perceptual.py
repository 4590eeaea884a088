"""LPIPS as a training loss and a metric (Zhang et al. 2018, https://arxiv.org/abs/1801.03924), from torchmetrics.

torchmetrics ships the small linear heads. The trunk, a torchvision classifier, is read from a local file or downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from codegrid.errors import CodegridError
from codegrid.tokenizer.feature_nets.weights import download_weights, load_renamed, read_weights

PerceptualNet = Literal["vgg", "alex", "squeeze"]
_TRUNKS = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
_OPTION = "objective.perceptual_weights"
# torchmetrics cuts the trunk into slices: `slice1.0.weight` (squeeze: `slices.0.0.weight`) is `features.0.weight`.
_NAME_IN_TRUNK = re.compile(r"^(slice\d+|slices\.\d+)\.")


class LPIPS(nn.Module):
    """Distance of two batches of images [B, C, H, W] in [-1, 1] -> [B] float32, at least 0. Frozen.

    One channel is repeated to three. Images under 32 pixels are too small for the trunks' pooling.

    Args:
        net: the trunk.
        weights: local file of the trunk's torchvision weights (`.pth` or `.safetensors`); None takes them from the
            torch hub's cache or downloads them.

    Raises:
        FileNotFoundError: `weights` does not exist.
        WeightsError: the weights are not available; the message says how to get them.
        CodegridError: the file does not hold that trunk's weights.
    """

    def __init__(self, net: PerceptualNet = "vgg", weights: str | Path | None = None) -> None:
        super().__init__()
        # use_dropout has no effect in evaluation mode, and the mode never changes: see `train`.
        from torchmetrics.functional.image.lpips import _LPIPS  # seconds, which a weight of 0 does not need

        self.lpips = _LPIPS(net=net, pnet_rand=True)
        if weights:
            trunk = read_weights(Path(weights), _OPTION)
        else:
            trunk = download_weights(_TRUNKS[net], _OPTION, "objective.perceptual_weight 0")
        where = str(weights or "the downloaded file")
        load_renamed(self.lpips.net, trunk, lambda key: "features." + _NAME_IN_TRUNK.sub("", key), net, where)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode: dropout between features would make the loss noisy (a defect of other projects)."""
        return super().train(False)

    def forward(self, images: Tensor, other: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 32:
            raise CodegridError(
                f"LPIPS needs images of at least 32 pixels a side, not {images.shape[-2]}x{images.shape[-1]}.",
                "Set objective.perceptual_weight to 0.",
            )
        if images.shape[1] == 1:
            images, other = images.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)
        with torch.autocast(images.device.type, enabled=False):
            return self.lpips(images.float(), other.float()).flatten()

"""LPIPS as a training loss and a metric (Zhang et al. 2018, https://arxiv.org/abs/1801.03924), by torchmetrics.

torchmetrics ships the small linear heads. The trunk, a torchvision classifier, is read from a local file or downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

PerceptualNet = Literal["vgg", "alex", "squeeze"]
_WEIGHTS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
# torchmetrics keeps the trunk in slices: `slice1.0.weight`, or `slices.0.0.weight` for squeeze, is `features.0.weight`.
_NAME_IN_TRUNK = re.compile(r"^(slice\d+|slices\.\d+)\.")


class LPIPS(nn.Module):
    """Distance of two batches of images [B, C, H, W] in [-1, 1] -> [B] float32, at least 0. Frozen.

    One channel is repeated to three. Images under 32 pixels are too small for the trunks' pooling.

    Args:
        net: the trunk.
        weights: local file of the trunk's torchvision weights (`.pth` or `.safetensors`); None takes them from the
            torch hub's cache, or downloads them.

    Raises:
        FileNotFoundError: `weights` does not exist.
        RuntimeError: the weights cannot be had; the message says how to get them.
        ValueError: the file does not hold that trunk's weights.
    """

    def __init__(self, net: PerceptualNet = "vgg", weights: str | Path | None = None) -> None:
        super().__init__()
        # use_dropout changes nothing in eval mode, and the mode never changes: see `train`.
        self.lpips = _LPIPS(net=net, pnet_rand=True)
        trunk = _read(Path(weights)) if weights else _download(net)
        _load_trunk(self.lpips.net, trunk, net, str(weights or "the downloaded file"))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation: dropout between the features would make the loss noise (a defect of the peers)."""
        return super().train(False)

    def forward(self, images: Tensor, other: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 32:
            raise ValueError(
                f"LPIPS needs images of at least 32 pixels a side, not {images.shape[-2]}x{images.shape[-1]}: "
                "set the perceptual weight to 0."
            )
        if images.shape[1] == 1:
            images, other = images.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)
        with torch.autocast(images.device.type, enabled=False):
            return self.lpips(images.float(), other.float()).flatten()


def _download(net: str) -> dict[str, Tensor]:
    weights = getattr(torchvision.models, _WEIGHTS[net]).DEFAULT
    name = Path(weights.url).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise RuntimeError(
            f"The weights of the perceptual net {net!r} could not be downloaded ({type(error).__name__}: {error}). "
            f"Get {name} from {weights.url} on a machine with internet, then put it at {cached}, or pass its path as "
            "objective.perceptual_weights. Without it, turn the term off: objective.perceptual_weight 0."
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"The perceptual net's weights {path} do not exist (objective.perceptual_weights).")
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


def _load_trunk(trunk: nn.Module, weights: dict[str, Tensor], net: str, where: str) -> None:
    """torchmetrics keeps torchvision's `features.N...` in slices named `slice1.N...`: put each where it goes."""
    wanted = trunk.state_dict()
    names = {key: "features." + _NAME_IN_TRUNK.sub("", key) for key in wanted}
    found = {key: weights.get(name) for key, name in names.items()}
    wrong = [key for key, tensor in found.items() if tensor is None or tensor.shape != wanted[key].shape]
    if wrong:
        raise ValueError(
            f"{where} does not hold torchvision's weights of {net!r}: {len(wrong)} tensors are missing or of another "
            f"shape, the first is {names[wrong[0]]}."
        )
    trunk.load_state_dict(found)

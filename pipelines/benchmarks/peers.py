"""The peers' own code, imported from folders that the user names; no line of it is here.

What they import beside torch and einops is replaced by the least that their modules need: Lightning's module class, and
the download of LPIPS's weights, whose trunk is random here for all alike.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from codegrid.errors import CodegridError, require

_TAMING_URL = "https://github.com/CompVis/taming-transformers"
_LLAMAGEN_URL = "https://github.com/FoundationVision/LlamaGen"


def taming_model(folder: str, ch: int, side: int, codes: int, width: int, trunk: dict[str, Tensor] | None) -> nn.Module:
    """taming-transformers' VQModel at f16 with a loss of its own, from its first step on with the discriminator.

    Args:
        folder: a clone of it.
        trunk: torchvision's state dict of VGG16 for LPIPS; None leaves the losses out.
    """
    levels = {"ch": ch, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [side // 16]}
    sizes = {"double_z": False, "z_channels": 256, "resolution": side, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
    with _importing(folder, "taming/models/vqgan.py", _TAMING_URL), _random_trunk(trunk):
        module = importlib.import_module("taming.models.vqgan")
        losses = importlib.import_module("taming.modules.losses.vqperceptual")
        losses.LPIPS.load_from_pretrained = lambda self: None
        kind = losses.VQLPIPSWithDiscriminator if trunk else losses.DummyLoss
        sys.modules["main"].instantiate_from_config = lambda config: kind(**config)
        module.instantiate_from_config = sys.modules["main"].instantiate_from_config
        options = {"disc_start": 0, "disc_weight": 0.5} if trunk else {}
        return module.VQModel({**levels, **sizes}, options, codes, width)


def llamagen_model(folder: str, ch: int, codes: int) -> nn.Module:
    """LlamaGen's VQ-16 with `ch` channels at its first level, and its codes of width 8 on the sphere."""
    with _importing(folder, "tokenizer/tokenizer_image/vq_model.py", _LLAMAGEN_URL):
        module = importlib.import_module("tokenizer.tokenizer_image.vq_model")
        model = module.VQ_16(codebook_size=codes, codebook_embed_dim=8)
        levels = {"ch": ch, "ch_mult": model.config.encoder_ch_mult, "z_channels": model.config.z_channels}
        # A buffer that is a parameter: on a GPU the move there makes it a plain one, and only so it can be trained.
        model.quantize.codebook_used = model.quantize.codebook_used.detach()
        model.encoder, model.decoder = module.Encoder(**levels), module.Decoder(**levels)
        return model


def llamagen_loss(folder: str, side: int, trunk: dict[str, Tensor]) -> nn.Module:
    """LlamaGen's VQLoss with L1 and the adaptive weight, from its first step on with the discriminator."""
    with _importing(folder, "tokenizer/tokenizer_image/vq_loss.py", _LLAMAGEN_URL), _random_trunk(trunk):
        importlib.import_module("tokenizer.tokenizer_image.lpips").LPIPS.load_from_pretrained = lambda self: None
        module = importlib.import_module("tokenizer.tokenizer_image.vq_loss")
        options = {"disc_weight": 0.5, "disc_adaptive_weight": True, "reconstruction_loss": "l1", "image_size": side}
        return module.VQLoss(disc_start=0, **options)


def taming_prior(folder: str, layers: int, width: int, heads: int, vocabulary: int, length: int) -> nn.Module:
    """taming-transformers' minGPT, without dropout."""
    with _importing(folder, "taming/modules/transformer/mingpt.py", _TAMING_URL):
        # It imports a function that is gone, for a sampler that nobody calls here. transformers may have put another
        # module in its own place since this file was loaded: what counts is the one that the peer finds.
        transformers = importlib.import_module("transformers")
        missing = not hasattr(transformers, "top_k_top_p_filtering")
        if missing:
            transformers.top_k_top_p_filtering = None
        module = importlib.import_module("taming.modules.transformer.mingpt")
        if missing:
            del transformers.top_k_top_p_filtering
        return module.GPT(vocabulary, length, n_layer=layers, n_head=heads, n_embd=width).train()


def llamagen_prior(
    folder: str, layers: int, width: int, heads: int, codes: int, length: int, classes: int
) -> nn.Module:
    """LlamaGen's class-conditional Llama, without dropout but that of the class."""
    with _importing(folder, "autoregressive/models/gpt.py", _LLAMAGEN_URL):
        module = importlib.import_module("autoregressive.models.gpt")
        sizes = {"dim": width, "n_layer": layers, "n_head": heads, "vocab_size": codes, "block_size": length}
        none = {"token_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0, "ffn_dropout_p": 0.0}
        return module.Transformer(module.ModelArgs(**sizes, **none, num_classes=classes)).train()


def first_version(folder: str, module: str) -> types.ModuleType:
    """A module of a checkout of be0a219, whose packages are not below `codegrid`: `tokenizer`, `prior`, for example."""
    file = Path(folder).resolve() / module.partition(".")[0] / "__init__.py"
    require(
        file.is_file() and not (Path(folder) / "pipelines" / "codegrid").exists(),
        f"{folder} is no checkout of be0a219.",
        "Make one: git worktree add FOLDER be0a219.",
    )
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and it stays there: functions import, too
    with packages_of(folder):
        found = importlib.import_module(module)
    package = sys.modules[module.partition(".")[0]]
    require(
        package.__file__ is not None and Path(package.__file__).resolve() == file,
        f"{package.__name__} was imported from {package.__file__}, not from {folder}.",
        "Begin anew without the clones of others.",
    )
    return found


class _LightningModule(nn.Module):
    """What taming's model uses of Lightning outside its trainer."""

    global_step = 1

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Takes what a trainer would write down."""

    log_dict = log


@contextmanager
def _importing(folder: str, file: str, url: str) -> Iterator[None]:
    """Within, the modules of `folder` can be imported as themselves."""
    require((Path(folder) / file).is_file(), f"{folder} holds no {file}.", f"Clone {url} and name that folder.")
    shims = {"pytorch_lightning": types.ModuleType("pytorch_lightning"), "main": types.ModuleType("main")}
    shims["pytorch_lightning"].LightningModule = _LightningModule
    shims["main"].instantiate_from_config = None
    # LlamaGen's own package of this name has no __init__: any other on the path would win over it.
    shims["tokenizer"] = types.ModuleType("tokenizer")
    shims["tokenizer"].__path__ = [str(Path(folder) / "tokenizer")]
    kept = {name: sys.modules.get(name) for name in shims}
    sys.modules.update(shims)
    sys.path.insert(0, folder)
    try:
        with packages_of(folder):
            yield
    finally:
        sys.path.remove(folder)
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def packages_of(folder: str | Path) -> Iterator[None]:
    """Within, a package that a peer's code imports and that is not installed is named by a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        raise CodegridError(
            f"The code in {folder} imports the package {name}, which is not installed.",
            f"Install it (pip install {name}), or leave that peer out.",
        ) from error


@contextmanager
def _random_trunk(trunk: dict[str, Tensor] | None) -> Iterator[None]:
    """Within, torchvision's pretrained VGG16 is one with these weights."""
    original = torchvision.models.vgg16

    def vgg16(**_: Any) -> types.SimpleNamespace:
        features = _vgg_features()
        features.load_state_dict({name.removeprefix("features."): tensor for name, tensor in (trunk or {}).items()})
        return types.SimpleNamespace(features=features)

    torchvision.models.vgg16 = vgg16
    try:
        yield
    finally:
        torchvision.models.vgg16 = original


def random_trunk() -> dict[str, Tensor]:
    """VGG16's convolutions with random weights, by torchvision's names."""
    torch.manual_seed(0)
    return {f"features.{name}": tensor for name, tensor in _vgg_features().state_dict().items()}


def _vgg_features() -> nn.Sequential:
    """VGG16 without its classifier, which no perceptual loss uses."""
    return torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])

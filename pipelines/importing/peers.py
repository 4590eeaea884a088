"""Builds small networks from other projects' clones to compare with. Only `codegrid dev import-parity` runs this.

Each function loads only the project's files that define a network, and joins encoder, decoder and quantizer under
the names in its checkpoints.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Peer:
    """A network of another project.

    Attributes:
        family: what it is imported as.
        module: has the state dict that a checkpoint would hold.
        encode: images in `pixel_range` -> codes [B, h, w]; decode: codes -> images in `pixel_range`.
        settings: what its config file would say.
    """

    family: str
    module: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    image_size: int = 32


def load_source(path: Path) -> ModuleType:
    """The module in one file, under a name that hides nothing of this project's."""
    spec = importlib.util.spec_from_file_location(f"codegrid_peer_{path.stem}", path)
    assert spec is not None  # it is a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def _grid(codes: Tensor, images: Tensor, factor: int) -> Tensor:
    return codes.reshape(len(images), images.shape[2] // factor, images.shape[3] // factor)


def _ddconfig(**changes: Any) -> dict[str, Any]:
    small = {"double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    small |= {"ch_mult": [1, 1, 2], "num_res_blocks": 2, "attn_resolutions": [8], "dropout": 0.0}
    return {**small, **changes}


def _of_taming(family: str, folder: Path, quantizer: nn.Module, embed_dim: int, ddconfig: dict[str, Any]) -> Peer:
    """A network with the names of taming's VQModel, around a quantizer with its interface."""
    layers = load_source(folder / "diffusionmodules" / "model.py")
    module = nn.Module()
    module.encoder, module.decoder = layers.Encoder(**ddconfig), layers.Decoder(**ddconfig)
    module.quantize = quantizer
    module.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
    module.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
    factor = 2 ** (len(ddconfig["ch_mult"]) - 1)

    def decode(codes: Tensor) -> Tensor:
        features = quantizer.get_codebook_entry(codes.flatten(), (*codes.shape, embed_dim))
        return module.decoder(module.post_quant_conv(features))

    return Peer(
        family,
        module,
        lambda images: _grid(quantizer(module.quant_conv(module.encoder(images)))[2][2], images, factor),
        decode,
        {"model": {"params": {"ddconfig": ddconfig, "n_embed": quantizer.embedding.num_embeddings}}},
    )


def taming_vq(repository: Path) -> Peer:
    quantize = load_source(repository / "taming/modules/vqvae/quantize.py")
    quantizer = quantize.VectorQuantizer2(64, 12, beta=0.25)
    return _of_taming("taming", repository / "taming/modules", quantizer, 12, _ddconfig())


def latent_diffusion_f8(repository: Path) -> Peer:
    """Four levels, attention at the last, four channels: vq-f8's shape."""
    quantize = load_source(repository / "taming/modules/vqvae/quantize.py")
    quantizer = quantize.VectorQuantizer2(64, 4, beta=0.25)
    ddconfig = _ddconfig(z_channels=4, ch_mult=[1, 2, 2, 4], attn_resolutions=[4])
    return _of_taming("taming", repository / "taming/modules", quantizer, 4, ddconfig)


def taming_remapped(repository: Path) -> Peer:
    """All 64 codes are renumbered, so that taming never draws an unknown one at random."""
    quantize = load_source(repository / "taming/modules/vqvae/quantize.py")
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, np.random.RandomState(0).permutation(64))
        file.flush()
        quantizer = quantize.VectorQuantizer2(64, 12, beta=0.25, remap=file.name)
    peer = _of_taming("taming", repository / "taming/modules", quantizer, 12, _ddconfig())
    module = peer.module

    def decode(codes: Tensor) -> Tensor:
        features = quantizer.get_codebook_entry(codes.flatten(), (*codes.shape, 12))
        return module.decoder(module.post_quant_conv(features))

    return Peer("taming", module, peer.encode, decode, peer.settings)


def taming_gumbel(repository: Path) -> Peer:
    quantize = load_source(repository / "taming/modules/vqvae/quantize.py")
    quantizer = quantize.GumbelQuantize(16, 16, 64)
    quantizer.embedding = quantizer.embed  # for `num_embeddings` below
    peer = _of_taming("taming", repository / "taming/modules", quantizer, 16, _ddconfig())
    del quantizer.embedding
    module = peer.module

    def encode(images: Tensor) -> Tensor:
        # Its own forward adds noise even in evaluation, so take the maximum of the logits without noise.
        return quantizer.proj(module.quant_conv(module.encoder(images))).argmax(1)

    return Peer("taming", module, encode, peer.decode, peer.settings)


def llamagen_vq(repository: Path) -> Peer:
    source = load_source(repository / "tokenizer/tokenizer_image/vq_model.py")
    module = source.VQModel(source.ModelArgs(codebook_size=64, codebook_embed_dim=8, z_channels=16))
    # Its encoder and decoder have 128 channels by default.
    module.encoder = source.Encoder(ch=32, ch_mult=(1, 1, 2), z_channels=16)
    module.decoder = source.Decoder(ch=32, ch_mult=(1, 1, 2), z_channels=16)
    return Peer(
        "llamagen",
        module,
        lambda images: _grid(module.encode(images)[2][2], images, 4),
        lambda codes: module.decode_code(codes.flatten(), (len(codes), 8, *codes.shape[1:])),
    )


def diffusers_vq(repository: Path) -> Peer:
    """The installed diffusers package, whatever `repository` is."""
    from diffusers import VQModel as TheirVQModel

    module = TheirVQModel(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=2,
        latent_channels=16,
        sample_size=32,
        num_vq_embeddings=64,
        norm_num_groups=16,
        vq_embed_dim=12,
    )

    def decode(codes: Tensor) -> Tensor:
        features = module.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, 12))
        return module.decoder(module.post_quant_conv(features))

    return Peer(
        "diffusers",
        module,
        lambda images: _grid(module.quantize(module.encode(images).latents)[2][2], images, 4),
        decode,
        {key: value for key, value in module.config.items() if not key.startswith("_")},
    )


def maskgit_vqgan(repository: Path) -> Peer:
    source = load_source(repository / "modeling/modules/maskgit_vqgan.py")
    config = SimpleNamespace(channel_mult=(1, 1, 2), num_resolutions=3, dropout=0.0, hidden_channels=32, num_channels=3)
    config = SimpleNamespace(**vars(config), num_res_blocks=2, resolution=32, z_channels=16)
    module = nn.Module()
    module.encoder, module.decoder = source.Encoder(config), source.Decoder(config)
    module.quantize = source.VectorQuantizer(64, 16, 0.25)
    return Peer(
        "maskgit",
        module,
        lambda images: _grid(module.quantize.get_code(module.encoder(images)), images, 4),
        lambda codes: module.decoder(module.quantize.get_codebook_entry(codes)),
        {"resolution": 32},
        pixel_range=(0.0, 1.0),
    )


def ibq(repository: Path) -> Peer:
    quantize = load_source(repository / "src/IBQ/modules/vqvae/quantize.py")
    quantizer = quantize.IndexPropagationQuantize(64, 16)
    ddconfig = _ddconfig(num_res_blocks=3)
    peer = _of_taming("ibq", repository / "src/IBQ/modules", quantizer, 16, ddconfig)
    peer.module.model_ema = load_source(repository / "src/IBQ/modules/ema.py").LitEma(peer.module)
    settings = {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": peer.settings["model"]["params"]}}
    return Peer("ibq", peer.module, peer.encode, peer.decode, settings)


def open_magvit2(repository: Path) -> Peer:
    folder = repository / "src/Open_MAGVIT2/modules"
    layers = load_source(folder / "diffusionmodules/improved_model.py")
    ddconfig = _ddconfig(z_channels=10, num_res_blocks=3)
    for name in ("attn_resolutions", "dropout"):
        del ddconfig[name]
    module = nn.Module()
    module.encoder, module.decoder = layers.Encoder(**ddconfig), layers.Decoder(**ddconfig)
    module.quantize = load_source(folder / "vqvae/lookup_free_quantize.py").LFQ(dim=10, codebook_size=1024)
    module.model_ema = load_source(folder / "ema.py").LitEma(module)

    def decode(codes: Tensor) -> Tensor:
        batch, height, width = codes.shape
        shape = (batch, height, width, 10)
        return module.decoder(module.quantize.get_codebook_entry(codes.flatten(1), shape, ""))

    return Peer(
        "open-magvit2",
        module,
        lambda images: _grid(module.quantize(module.encoder(images))[2], images, 4),
        decode,
        {"model": {"init_args": {"ddconfig": ddconfig, "n_embed": 1024, "embed_dim": 10}}},
    )


@dataclass(frozen=True)
class PriorPeer:
    """A prior of another project, on 4x4 codes of 64.

    Attributes:
        family: what it is imported as.
        module: has the state dict that a checkpoint would hold.
        logits: labels [B] and codes [B, 16] -> of each code, given those before it [B, 16, 64].
        num_labels: number of classes, including the null class (the last) if there is one; 0 if unconditional.
        settings: what its config file would say.
    """

    family: str
    module: nn.Module
    logits: Callable[[Tensor, Tensor], Tensor]
    num_labels: int
    settings: dict[str, Any] | None = None


def llamagen_gpt(repository: Path) -> PriorPeer:
    """The class-conditional transformer: 2 layers, 4 heads of 16, 5 classes."""
    sys.path.insert(0, str(repository))  # it imports its own `utils.drop_path`
    try:
        source = load_source(repository / "autoregressive/models/gpt.py")
    finally:
        sys.path.remove(str(repository))
    shape = {"dim": 64, "n_layer": 2, "n_head": 4, "vocab_size": 64, "block_size": 16, "num_classes": 5}
    module = source.Transformer(source.ModelArgs(**shape, cls_token_num=1)).eval()
    # In evaluation, its forward takes the positions and the mask that its sampling would pass.
    positions, mask = torch.arange(17), torch.ones(17, 17, dtype=torch.bool).tril()
    return PriorPeer(
        "llamagen-gpt",
        module,
        lambda labels, codes: module(codes, labels, input_pos=positions, mask=mask)[0][:, :16],
        num_labels=6,
    )


def taming_gpt(repository: Path, classes: int = 5) -> PriorPeer:
    """minGPT: 2 layers, 4 heads of 16. `classes` 0: unconditional, from token 3."""
    # It imports a sampling function that transformers has removed; the forward pass does not need it.
    transformers.top_k_top_p_filtering = None
    try:
        source = load_source(repository / "taming/modules/transformer/mingpt.py")
    finally:
        del transformers.top_k_top_p_filtering
    shape = {"vocab_size": 64, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 64}
    module = nn.Module()
    module.transformer = source.GPT(**shape)
    params: dict[str, Any] = {"transformer_config": {"params": shape}, "cond_stage_key": "class_label"}
    if classes:
        params["cond_stage_config"] = {"target": "taming.modules.util.Labelator", "params": {"n_classes": classes}}
    else:
        params |= {"cond_stage_config": "__is_unconditional__", "sos_token": 3}

    def logits(labels: Tensor, codes: Tensor) -> Tensor:
        first = labels if classes else torch.full_like(labels, 3)
        return module.transformer(torch.cat([first[:, None], codes[:, :-1]], dim=1))[0]

    return PriorPeer("taming-gpt", module.eval(), logits, classes, {"model": {"params": params}})


def taming_gpt_unconditional(repository: Path) -> PriorPeer:
    return taming_gpt(repository, classes=0)


# Name of a comparison -> function that builds the network from a clone; the network's `family` names the project.
PEERS: dict[str, Callable[[Path], Peer]] = {
    "taming": taming_vq,
    "taming-f8": latent_diffusion_f8,
    "taming-remap": taming_remapped,
    "taming-gumbel": taming_gumbel,
    "llamagen": llamagen_vq,
    "diffusers": diffusers_vq,
    "maskgit": maskgit_vqgan,
    "ibq": ibq,
    "open-magvit2": open_magvit2,
}
PRIOR_PEERS: dict[str, Callable[[Path], PriorPeer]] = {
    "llamagen-gpt": llamagen_gpt,
    "taming-gpt": taming_gpt,
    "taming-gpt-unconditional": taming_gpt_unconditional,
}

"""The modules of vector-quantize-pytorch that are trained beside ours, in the same network.

The package is needed for this comparison only. Its quantizers are known as `vector-quantize-pytorch` from
`register_twins` on, so that they are trained, scored, saved and loaded as ours are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codegrid.errors import CodegridError
from codegrid.pipelines.comparison.variants import VARIANTS
from codegrid.tokenizer.quantizers import QUANTIZERS, Quantized, Quantizer, QuantizerConfig, register_quantizer

# Behind the name of one of ours: theirs, and ours without what its paper has not.
THEIRS, PLAIN = "-theirs", "-plain"


@dataclass(frozen=True)
class TwinConfig(QuantizerConfig):
    """Config of a `Twin`.

    Args:
        module: name of the class in vector_quantize_pytorch.
        arguments: its arguments by name, as JSON.
        codebook_size: number of codes, of one level if there are several.
        code_dim: channels of the quantized features.
        depth: codes at each position.
    """

    type: Literal["vector-quantize-pytorch"] = "vector-quantize-pytorch"
    module: str = "VectorQuantize"
    arguments: str = '{"dim": 8, "codebook_size": 1024}'
    codebook_size: int = 1024
    code_dim: int = 8
    depth: int = 1

    def build(self) -> Quantizer:
        return Twin(self)

    def make(self) -> nn.Module:
        """The module itself, with initial weights."""
        with torch.device("cpu"):  # some look at values while they are made, which a model without storage has not
            return getattr(_package(), self.module)(**json.loads(self.arguments))


class Twin(Quantizer):
    """One of their modules, on rows [B, N, D]. Running means move in its forward pass in training."""

    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.config, self.module = config, config.make()
        # All its parameters are tables or act as such: AdamW without decay, as for ours.
        for part in self.module.modules():
            part.no_decay = True

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            found, indices, *losses = self.module(features.float().flatten(2).mT)  # [B, N, D]
        # [B, N], or [B, N, depth], or [groups, B, N, 1]; the loss has a term for each level.
        indices = indices[..., 0].movedim(0, -1) if indices.dim() == 4 else indices
        terms = {"theirs": losses[0].sum()} if losses and self.training else {}
        grid = features.shape[2:]
        return Quantized(found.mT.unflatten(2, grid), indices.long().unflatten(1, grid), terms)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        was = self.module.training
        self.module.eval()  # in training their tables move
        codes = self(features).codes
        self.module.train(was)
        return codes

    def codes_to_features(self, codes: Tensor) -> Tensor:
        indices = codes.flatten(1, 2)  # [B, N] or [B, N, depth]
        if hasattr(self.module, "rvqs"):
            indices = indices.movedim(-1, 0)[..., None]  # [groups, B, N, 1]
        back = getattr(self.module, "get_output_from_indices", None) or self.module.indices_to_codes
        return back(indices).mT.unflatten(2, codes.shape[1:3])

    @torch.no_grad()
    def init_weights(self) -> None:
        self.module.load_state_dict(self.config.make().state_dict())

    @torch.no_grad()
    def fill_constants(self) -> None:
        saved, fresh = self.module.state_dict(), dict(self.config.make().named_buffers())
        for name, buffer in self.module.named_buffers():
            if name not in saved:
                buffer.copy_(fresh[name])


def twin(module: str, codebook_size: int, code_dim: int, depth: int = 1, /, **arguments: Any) -> TwinConfig:
    """The config of their class `module` with these arguments of it."""
    kind = "vector-quantize-pytorch"
    return TwinConfig(kind, module, json.dumps(arguments, sort_keys=True), codebook_size, code_dim, depth)


def _vq(dim: int, **arguments: Any) -> TwinConfig:
    """By default running means with decay 0.8, commitment weight 1 and the rotation of gradients."""
    return twin("VectorQuantize", 1024, dim, dim=dim, codebook_size=1024, **arguments)


# SoundStream's (arXiv:2107.03312) start and restart, which their README recommends.
_STARTED = {"kmeans_init": True, "threshold_ema_dead_code": 2}
# The settings of each method's paper where the package has them, else those of its README.
TWINS: dict[str, TwinConfig] = {
    # arXiv:1711.00937: a codebook by gradients. Their one term has the same weight for codes and features.
    "vq": _vq(4, ema_update=False, learnable_codebook=True, rotation_trick=False),
    "vq-sphere": _vq(8, use_cosine_sim=True, rotation_trick=False),
    # arXiv:1906.00446: decay 0.99, commitment 0.25.
    "vq-ema": _vq(4, decay=0.99, commitment_weight=0.25, rotation_trick=False),
    "vq-rotation": _vq(4),  # their defaults; the authors of arXiv:2410.06424 recommend this module
    # A mean code has one feature a step here: their threshold of 2 would restart nearly all; ours is 0.05 too.
    "vq-kmeans": _vq(4, kmeans_init=True, threshold_ema_dead_code=0.05, rotation_trick=False),
    "simvq": twin("SimVQ", 1024, 32, dim=32, codebook_size=1024),  # the README's, with rotation
    "fsq": twin("FSQ", 1000, 4, levels=[8, 5, 5, 5]),
    # arXiv:2310.05737: entropy 0.1, commitment 0.25; the inverse temperature is 100.
    "lfq": twin("LFQ", 1024, 10, dim=10, entropy_loss_weight=0.1, commitment_loss_weight=0.25),
    "bsq": twin("LFQ", 1024, 10, dim=10, spherical=True, entropy_loss_weight=0.1),  # the README's
    "residual-vq": twin("ResidualVQ", 32, 4, 2, dim=4, codebook_size=32, num_quantizers=2, **_STARTED),
    "residual-fsq": twin("ResidualFSQ", 32, 2, 2, dim=2, levels=[8, 4], num_quantizers=2),
    "grouped": twin(
        *("GroupedResidualVQ", 32, 8, 2),
        **{"dim": 8, "groups": 2, "num_quantizers": 1, "codebook_size": 32, "use_cosine_sim": True, **_STARTED},
    ),
}


def plain(config: QuantizerConfig) -> QuantizerConfig:
    """The config without the isotropy term, which is ours: it makes codes easier to predict and costs pixels."""
    if getattr(config, "isotropy_weight", 0.0):
        return replace(config, isotropy_weight=0.0)
    return replace(config, inner=plain(config.inner)) if hasattr(config, "inner") else config


def compared() -> dict[str, QuantizerConfig]:
    """All rows that there can be, in the order of the table: each of ours, and behind it what is trained beside it.

    That is its twin, if it has one, and before it ours without the isotropy term, if it has that.
    """
    rows: dict[str, QuantizerConfig] = {}
    for name, config in VARIANTS.items():
        rows[name] = config
        if name in TWINS and plain(config) != config:
            rows[name + PLAIN] = plain(config)
        if name in TWINS:
            rows[name + THEIRS] = TWINS[name]
    return rows


def register_twins() -> None:
    """Make the twins known as quantizers.

    Raises:
        CodegridError: the package is not installed.
    """
    _package()
    if TwinConfig.type not in QUANTIZERS:
        register_quantizer(TwinConfig)


def _package() -> Any:
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise CodegridError(
            "Their quantizers need the package vector-quantize-pytorch, which is not installed.",
            "`pip install vector-quantize-pytorch`, or compare without --beside.",
        ) from error
    return vector_quantize_pytorch

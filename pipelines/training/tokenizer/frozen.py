"""Parts of a tokenizer that training leaves as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from codegrid.errors import require
from codegrid.tokenizer import VQModel

_MODULES = {
    "encoder": ("encoder", "quant_conv"),
    "quantizer": ("quantize",),
    "decoder": ("post_quant_conv", "decoder", "class_embedding"),
}


def freeze(model: VQModel, parts: Collection[str]) -> None:
    """Take the parts' weights out of the gradient, so that the optimizer is made without them.

    Raises:
        CodegridError: nothing is left to train.
    """
    for module in _modules(model, parts):
        module.requires_grad_(False)
    require(
        any(parameter.requires_grad for parameter in model.parameters()),
        f"freeze is {list(parts)}, and {type(model.quantize).__name__} has no weights: nothing is left to train.",
        "Leave encoder or decoder out of --freeze.",
    )


def training_mode(model: VQModel, parts: Collection[str]) -> None:
    """Training mode, but evaluation mode where frozen parts would draw at random or count.

    The quantizer stays in training mode if the encoder is trained: there it passes the gradient straight through.
    """
    model.train()
    for module in _modules(model, parts):
        module.train(mode=module is model.quantize and "encoder" not in parts)


def _modules(model: VQModel, parts: Collection[str]) -> list[nn.Module]:
    names = [name for part in parts for name in _MODULES[part]]
    return [getattr(model, name) for name in names if hasattr(model, name)]

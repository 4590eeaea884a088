"""The registry of quantizers: one import and one line in the list for each. The contract tests run over the list."""

from __future__ import annotations

from typing import Any

from codegrid.tokenizer.fields import from_dict, register
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig
from codegrid.tokenizer.quantizers.binary_spherical import BinarySphericalQuantizerConfig
from codegrid.tokenizer.quantizers.finite_scalar import FiniteScalarQuantizerConfig
from codegrid.tokenizer.quantizers.grouped import GroupedQuantizerConfig
from codegrid.tokenizer.quantizers.gumbel import GumbelConfig
from codegrid.tokenizer.quantizers.hierarchical import HierarchicalQuantizerConfig
from codegrid.tokenizer.quantizers.index_backpropagation import IBQConfig
from codegrid.tokenizer.quantizers.lookup_free import LookupFreeQuantizerConfig
from codegrid.tokenizer.quantizers.residual import ResidualQuantizerConfig
from codegrid.tokenizer.quantizers.simvq import SimVQConfig
from codegrid.tokenizer.quantizers.vector import VectorQuantizerConfig


def register_quantizer(config: type[QuantizerConfig]) -> type[QuantizerConfig]:
    """Register a quantizer by the `type` of its config, here and on the command line. Works as a decorator too.

    A quantizer of another package then has a name like those of this one: in `VQModelConfig`, in a training config, as
    `--quantizer.type NAME`, and as the inner quantizer of a composed one. Its module must be imported before a
    tokenizer that was saved with it is loaded.

    Args:
        config: a frozen dataclass derived from `QuantizerConfig`, with a default for every field and a `build`.

    Returns:
        `config` itself.

    Raises:
        CodegridError: it is not such a class, or another quantizer has its `type`.
    """
    return register(config, QuantizerConfig)


for _config in (
    VectorQuantizerConfig,
    SimVQConfig,
    IBQConfig,
    GumbelConfig,
    FiniteScalarQuantizerConfig,
    LookupFreeQuantizerConfig,
    BinarySphericalQuantizerConfig,
    ResidualQuantizerConfig,
    GroupedQuantizerConfig,
    HierarchicalQuantizerConfig,
):
    register_quantizer(_config)

# All quantizers by their `type`, including those that are registered later.
QUANTIZERS: dict[str, type[QuantizerConfig]] = QuantizerConfig.registered


def quantizer_config_from_dict(values: dict[str, Any]) -> QuantizerConfig:
    """The config dataclass of the quantizer that `values["type"]` names.

    Raises:
        CodegridError: the type is missing or unknown, or a field is wrong.
    """
    return from_dict(QuantizerConfig, {} if values is None else values, where="quantizer")


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    return config.build()


__all__ = [
    "QUANTIZERS",
    "BinarySphericalQuantizerConfig",
    "FiniteScalarQuantizerConfig",
    "GroupedQuantizerConfig",
    "GumbelConfig",
    "HierarchicalQuantizerConfig",
    "IBQConfig",
    "LookupFreeQuantizerConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualQuantizerConfig",
    "SimVQConfig",
    "VectorQuantizerConfig",
    "make_quantizer",
    "quantizer_config_from_dict",
    "register_quantizer",
]

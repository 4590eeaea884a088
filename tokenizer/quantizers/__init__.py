"""The registry of quantizers; those of one code a position stand in levels.py. The contract tests run over it."""

from __future__ import annotations

from typing import Any, Union

from codegrid.errors import CodegridError
from codegrid.tokenizer.fields import from_dict
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig
from codegrid.tokenizer.quantizers.binary_spherical import BinarySphericalQuantizerConfig
from codegrid.tokenizer.quantizers.finite_scalar import FiniteScalarQuantizerConfig
from codegrid.tokenizer.quantizers.grouped import GroupedQuantizer, GroupedQuantizerConfig
from codegrid.tokenizer.quantizers.hierarchical import HierarchicalQuantizer, HierarchicalQuantizerConfig
from codegrid.tokenizer.quantizers.levels import SINGLE
from codegrid.tokenizer.quantizers.lookup_free import LookupFreeQuantizerConfig
from codegrid.tokenizer.quantizers.residual import ResidualQuantizer, ResidualQuantizerConfig
from codegrid.tokenizer.quantizers.vector import VectorQuantizerConfig

QUANTIZERS: dict[str, tuple[type[QuantizerConfig], type[Quantizer]]] = {
    **SINGLE,
    "residual": (ResidualQuantizerConfig, ResidualQuantizer),
    "grouped": (GroupedQuantizerConfig, GroupedQuantizer),
    "hierarchical": (HierarchicalQuantizerConfig, HierarchicalQuantizer),
}
# Any of their configs: the type of a config's field, told apart by `type`.
AnyQuantizerConfig = Union[tuple(config for config, _ in QUANTIZERS.values())]  # noqa: UP007


def quantizer_config_from_dict(values: dict[str, Any]) -> QuantizerConfig:
    """The config dataclass of the quantizer that `values["type"]` names.

    Raises:
        CodegridError: the type is missing or unknown, or a field is wrong.
    """
    name = values.get("type") if isinstance(values, dict) else None
    if name not in QUANTIZERS:
        raise CodegridError(f"quantizer.type is {name!r}: it must be one of {', '.join(map(repr, QUANTIZERS))}.")
    return from_dict(QUANTIZERS[name][0], values, where="quantizer")


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    return QUANTIZERS[config.type][1](config)


__all__ = [
    "QUANTIZERS",
    "AnyQuantizerConfig",
    "BinarySphericalQuantizerConfig",
    "FiniteScalarQuantizerConfig",
    "GroupedQuantizerConfig",
    "HierarchicalQuantizerConfig",
    "LookupFreeQuantizerConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualQuantizerConfig",
    "VectorQuantizerConfig",
    "make_quantizer",
    "quantizer_config_from_dict",
]

"""The quantizers to compare and their settings: about 1024 codes at each of 8x8 positions, 640 bits.

A quantizer with several codes per position has smaller codebooks, so that the bits stay the same: 2 x 32, or the
hierarchical one's 80 codes of 256. docs/quantizers.md has a row for each; a test compares its options with these.
"""

from __future__ import annotations

from dataclasses import replace

from codegrid.tokenizer.quantizers import (
    BinarySphericalQuantizerConfig,
    FiniteScalarQuantizerConfig,
    GroupedQuantizerConfig,
    HierarchicalQuantizerConfig,
    LookupFreeQuantizerConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
)
from codegrid.tokenizer.quantizers.gumbel import GumbelConfig
from codegrid.tokenizer.quantizers.index_backpropagation import IBQConfig
from codegrid.tokenizer.quantizers.simvq import SimVQConfig

# The quantizer of the presets small64 and quickstart: few channels, plain distances, features kept near N(0, I).
_PLAIN = VectorQuantizerConfig(
    codebook_size=1024, code_dim=4, l2_normalize=False, commitment_weight=1.0, isotropy_weight=0.003
)

VARIANTS: dict[str, QuantizerConfig] = {
    "vq": _PLAIN,
    "vq-sphere": VectorQuantizerConfig(codebook_size=1024, code_dim=8),  # LlamaGen's
    "vq-ema": replace(_PLAIN, codebook_update="ema"),
    "vq-rotation": replace(_PLAIN, gradient="rotation"),
    "vq-kmeans": replace(_PLAIN, codebook_init="kmeans"),
    "simvq": SimVQConfig(codebook_size=1024, code_dim=32),
    # The authors' 256 channels exceed the number of features of the small presets.
    "ibq": IBQConfig(codebook_size=1024, code_dim=32),
    "gumbel": GumbelConfig(codebook_size=1024, code_dim=64),
    "fsq": FiniteScalarQuantizerConfig(levels=(8, 5, 5, 5)),  # the paper's levels for 2^10; 1000 codes
    "lfq": LookupFreeQuantizerConfig(num_bits=10),
    "bsq": BinarySphericalQuantizerConfig(num_bits=10),
    "residual-vq": ResidualQuantizerConfig(depth=2, inner=replace(_PLAIN, codebook_size=32)),
    "residual-fsq": ResidualQuantizerConfig(depth=2, inner=FiniteScalarQuantizerConfig(levels=(8, 4))),
    "grouped": GroupedQuantizerConfig(
        groups=2, inner=VectorQuantizerConfig(codebook_size=32, code_dim=4, commitment_weight=2.0)
    ),  # GSQ
    "hierarchical": HierarchicalQuantizerConfig(channels=64, inner=replace(_PLAIN, codebook_size=256)),
}

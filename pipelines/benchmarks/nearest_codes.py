"""The nearest code of each feature, beside all distances at once, as the published tokenizers compute it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pipelines.benchmarks.memory import peak_extra_bytes
from pipelines.benchmarks.report import Row, Settings, in_turn, print_row
from tokenizer.quantizers import nearest

# Rows, codes, width: LlamaGen's, taming's, and a codebook of 2^18.
_SHAPES = ((4096, 16_384, 8), (4096, 16_384, 256), (1024, 262_144, 8))
_WIDTHS = {"rows": 6, "codes": 7, "width": 6, "search": 16, "ms": 8, "ratio": 6, "same codes": 10, "extra MB": 8}


def measure(settings: Settings) -> list[Row]:
    """Gives a row for each shape and search."""
    print_row({}, _WIDTHS, header=True)
    rows = []
    for shape in _SHAPES:
        found = _measured(*shape, settings)
        for row in found:
            print_row(row, _WIDTHS)
        rows += found
    return rows


def _measured(number: int, size: int, width: int, settings: Settings) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(count, width, generator=generator) for count in (number, size))
    runs = {
        "all at once": partial(all_at_once, z, codebook),
        "ours": partial(nearest.nearest_codes, z, codebook),
    }
    expected = runs["all at once"]()
    return [
        {
            "rows": number,
            "codes": size,
            "width": width,
            "search": name,
            "ms": timing.seconds * 1e3,
            "ratio": timing.ratio,
            "same codes": float((runs[name]() == expected).double().mean()),
            "extra MB": (peak_extra_bytes(runs[name]) or 0) / 1e6,
        }
        for name, timing in in_turn(runs, settings.repeats).items()
    ]


def all_at_once(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin |z|^2 + |e|^2 - 2 z.e over the whole matrix of distances: [N, D], [K, D] -> [N]."""
    distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.t()
    return distances.argmin(1)

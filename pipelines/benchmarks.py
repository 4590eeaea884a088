"""What is measured against another way of doing it, in one run, as a ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from tokenizer.quantizers.nearest import nearest_codes

# Of the nearest-code search: rows, codes, width. LlamaGen's, taming's, and a codebook of 2^18.
_SHAPES = ((4096, 16_384, 8), (4096, 16_384, 256), (1024, 262_144, 8))


def benchmark(what: Literal["nearest-codes"], threads: int = 0, repeats: int = 9) -> None:
    """Time a part of the project beside another way of computing the same, and print a table.

    Args:
        what: "nearest-codes": the nearest code of each feature, beside all distances at once, as the published
            tokenizers compute it.
        threads: of the CPU; 0 leaves torch's own choice.
        repeats: pairs of runs; the ratio is the median of the pairs' ratios.
    """
    if threads:
        torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {repeats} pairs of runs")
    {"nearest-codes": _nearest_codes}[what](repeats)


def _nearest_codes(repeats: int) -> None:
    print(f"{'rows':>6} {'codes':>7} {'width':>6} {'all at once':>12} {'ours':>9} {'ratio':>6}  same codes")
    for rows, codes, width in _SHAPES:
        generator = torch.Generator().manual_seed(0)
        z, codebook = (torch.randn(number, width, generator=generator) for number in (rows, codes))
        one, other = partial(_all_at_once, z, codebook), partial(nearest_codes, z, codebook)
        same = float((one() == other()).double().mean())
        slow, fast, ratio = _paired(one, other, repeats)
        print(f"{rows:6} {codes:7} {width:6} {slow * 1e3:9.1f} ms {fast * 1e3:6.1f} ms {ratio:6.1f}  {same:.2%}")


def _all_at_once(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin |z|^2 + |e|^2 - 2 z.e over the whole matrix of distances: [N, D], [K, D] -> [N]."""
    distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.t()
    return distances.argmin(1)


def _paired(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of one / other over pairs of neighbouring runs."""
    pairs = [(_seconds(one), _seconds(other)) for _ in range(repeats)]
    ones, others = zip(*pairs, strict=True)
    return statistics.median(ones), statistics.median(others), statistics.median(a / b for a, b in pairs)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began

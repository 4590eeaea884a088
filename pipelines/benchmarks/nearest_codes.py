"""The nearest code of each feature, beside all distances at once, as the published tokenizers compute it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.pipelines.benchmarks.memory import peak_extra_megabytes
from codegrid.pipelines.benchmarks.options import OnDevice
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.tokenizer.quantizers import VectorQuantizerConfig, nearest
from codegrid.tokenizer.quantizers.vector import VectorQuantizer

# Rows, codes, width: LlamaGen's, taming's, and a codebook of 2^18.
_SHAPES = ((4096, 16_384, 8), (4096, 16_384, 256), (1024, 262_144, 8))
# Of forward and backward together.
_TRAINED_SHAPES = ((4096, 16_384, 8),)
_WIDTHS = {
    "rows": 6,
    "codes": 7,
    "width": 6,
    "search": 24,
    "ms": 8,
    "spread": 6,
    "ratio": 6,
    "same codes": 10,
    "extra MB": 8,
}


@dataclass(frozen=True, kw_only=True)
class NearestCodes(OnDevice):
    """The nearest code of each feature, beside the whole matrix of distances.

    A row for each shape and search; of training, "same codes" is the share of equal gradients.
    """

    name = "nearest-codes"
    parts = (tuple(f"{codes}x{width}" for _, codes, width in _SHAPES),)

    def measure(self) -> list[Row]:
        device = self.accelerator().device
        print_row({}, _WIDTHS, header=True)
        rows = []
        for shape in filter(self._wanted, _TRAINED_SHAPES):
            rows += _measured_training(*shape, device, self.repeats)
        for shape in filter(self._wanted, _SHAPES):
            found = _measured(*shape, device, self.repeats)
            for row in found:
                print_row(row, _WIDTHS)
            rows += found
        return rows

    def _wanted(self, shape: tuple[int, int, int]) -> bool:
        return self.wants(f"{shape[1]}x{shape[2]}")


def _drawn(number: int, size: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features [N, D] and a codebook [K, D], the same on every device."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(count, width, generator=generator) for count in (number, size))
    return z.to(device), codebook.to(device)


def _measured(number: int, size: int, width: int, device: torch.device, repeats: int) -> list[Row]:
    z, codebook = _drawn(number, size, width, device)
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
            **timing.columns(),
            "same codes": float((runs[name]() == expected).float().mean()),
            "extra MB": peak_extra_megabytes(runs[name], device),
        }
        for name, timing in in_turn(runs, repeats).items()
    ]


def _measured_training(number: int, size: int, width: int, device: torch.device, repeats: int) -> list[Row]:
    """Forward and backward of a plain quantizer: codebook and commitment terms, and the decoder's gradient."""
    z, codebook = _drawn(number, size, width, device)
    quantizer = VectorQuantizer(VectorQuantizerConfig(codebook_size=size, code_dim=width, l2_normalize=False))
    quantizer.train().to(device)
    quantizer.embedding.weight.data.copy_(codebook)
    weight = codebook.clone().requires_grad_()

    def ours() -> tuple[Tensor, Tensor]:
        features = z.t().reshape(1, width, number, 1).requires_grad_()  # [1, D, N, 1]
        output = quantizer(features)
        loss = output.features.sum() + sum(output.losses.values())
        at_features, at_codes = torch.autograd.grad(loss, (features, quantizer.embedding.weight))
        return at_features[0, :, :, 0].t(), at_codes

    def whole() -> tuple[Tensor, Tensor]:
        rows = z.clone().requires_grad_()
        found = F.embedding(_all_distances(rows, weight).argmin(1), weight)
        loss = (found - rows.detach()).square().mean() + 0.25 * (found.detach() - rows).square().mean()
        loss = loss + (rows + (found - rows).detach()).sum()
        return torch.autograd.grad(loss, (rows, weight))

    runs = {"all at once, trained": whole, "ours, trained": ours}
    expected, rows = whole(), []
    for name, timing in in_turn(runs, repeats).items():
        pairs = zip(runs[name](), expected, strict=True)
        equal = [torch.isclose(one, other, rtol=1e-4, atol=1e-7).float().mean() for one, other in pairs]
        shape = {"rows": number, "codes": size, "width": width, "search": name}
        measured = {**timing.columns(), "same codes": float(min(equal))}
        rows.append({**shape, **measured, "extra MB": peak_extra_megabytes(runs[name], device)})
        print_row(rows[-1], _WIDTHS)
    return rows


def all_at_once(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin |z|^2 + |e|^2 - 2 z.e over the whole matrix of distances: [N, D], [K, D] -> [N]."""
    return _all_distances(z, codebook).argmin(1)


def _all_distances(z: Tensor, codebook: Tensor) -> Tensor:
    return z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.t()

"""Linear maps laid out for a few rows at a time: what decoding spends its time on.

A few rows are bound by reading the weights. "exact" computes with the model's own; "float16" and "int8" read a half and
a quarter of float32's bytes, and give other logits.
"""

from __future__ import annotations

import functools
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import CodegridError

WeightFormat = Literal["exact", "float16", "int8"]


class Linear(Protocol):
    """[R, in] -> [R, out]. On a CPU, among numbers of rows that are multiples of `row_multiple`, a row's result has the
    same bits whatever the others are and however many.
    """

    row_multiple: int

    def __call__(self, rows: Tensor) -> Tensor: ...


# F.linear picks its kernel by the number of rows. Those for multiples of 8 sum in one order, which
# tests/prior/test_decoding.py holds for the machine it runs on.
ROW_MULTIPLE = 8
_TRIAL_ROWS = 64
_BLOCK = 32  # what torch._weight_int8pack_mm takes of the inputs, and of the outputs, at once


class PackedLinear:
    """A linear map by oneDNN, from a copy of the weight in oneDNN's own layout.

    At a few rows it is 2 to 5 times as fast as F.linear. The calls are those that inductor compiles a linear layer to
    (torch/_inductor/fx_passes/mkldnn_fusion.py).
    """

    row_multiple = 1

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        # Packed for one row, the layout would suit only that (and a single row would be summed in another order).
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 8)
        self.bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


class PlainLinear:
    """F.linear, where no packed map is to be had."""

    row_multiple = ROW_MULTIPLE

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)


class Float16Linear:
    """float16 weights, float32 rows and sums, by FBGEMM."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.abs().max() > torch.finfo(torch.float16).max:
            raise CodegridError("A weight is too large for float16: take weights exact or int8.")
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), None)
        self.bias, self.dtype, self.row_multiple = bias, weight.dtype, 1

    def __call__(self, rows: Tensor) -> Tensor:
        product = torch.ops.quantized.linear_dynamic_fp16(rows.float(), self.weight).to(self.dtype)
        return product if self.bias is None else product + self.bias


class Int8Linear:
    """int8 weights with a scale for each output, rows in bfloat16, sums in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.outputs, inputs = weight.shape
        dtype = weight.dtype
        if inputs % _BLOCK:  # the kernel would read beyond the weights
            raise CodegridError(f"int8 weights need widths in multiples of {_BLOCK}, and one is {inputs}.")
        weight = F.pad(weight.float(), (0, 0, 0, -self.outputs % _BLOCK))
        # The scale is rounded before the weights are divided by it, so that its rounding is no error of its own.
        self.scales = (weight.abs().amax(1) / 127).clamp(min=1e-20).bfloat16()  # [out]
        self.weight = (weight / self.scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.bias, self.dtype, self.row_multiple = bias, dtype, 1

    def __call__(self, rows: Tensor) -> Tensor:
        product = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scales)[:, : self.outputs].to(self.dtype)
        return product if self.bias is None else product + self.bias


def linear_map(weight: Tensor, bias: Tensor | None, pack: bool | None, weights: WeightFormat) -> Linear:
    """weight [out, in], bias [out] -> the map. `pack` is for exact weights: None packs wherever that can be done.

    Raises:
        CodegridError: there is no such format here; the message says why.
    """
    if weights == "exact":
        packed = None if pack is False else pack_linear(weight, bias)
        return packed or PlainLinear(weight, bias)
    if weight.device.type != "cpu":
        raise CodegridError(
            f"weights is {weights!r}, which is for CPUs, and the prior is on {weight.device.type}: take 'exact' there, "
            "with a prior loaded in bfloat16."
        )
    kind = {"float16": Float16Linear, "int8": Int8Linear}[weights]
    try:
        linear = kind(weight, bias)
        linear.row_multiple = _steady_multiple(kind, *weight.shape)
    except (AttributeError, RuntimeError) as error:  # not every build has these products
        raise CodegridError(f"weights is {weights!r}, which this torch cannot compute with here: {error}") from error
    return linear


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> PackedLinear | None:
    """weight [out, in] on a CPU -> its packed map, or None where there is none that computes the same.

    The same also means a row's bits among any number of rows, so that an image does not depend on its batch.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
        packed = PackedLinear(weight, bias)
        trial = torch.linspace(-1, 1, 2 * weight.shape[1], dtype=weight.dtype).view(2, -1)
        expected, actual = F.linear(trial, weight, bias), packed(trial)
        tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
        if (expected - actual).abs().max() > tolerance * expected.abs().max().clamp(min=1e-20):
            return None
        return packed if _packing_is_steady(*weight.shape, weight.dtype, bias is not None) else None
    except (AttributeError, RuntimeError):  # private operators: another torch may lack them or call them otherwise
        return None


@functools.cache
def _packing_is_steady(outputs: int, inputs: int, dtype: torch.dtype, biased: bool) -> bool:
    """Whether a row has the same bits among any number of rows. It hangs on the shape alone, and takes its time."""
    generator = torch.Generator().manual_seed(0)
    # oneDNN of torch 2.11 gives 8 rows other bits than 40: the largest trial is one that no kernel takes for small.
    trial = torch.randn(5 * ROW_MULTIPLE, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    packed = PackedLinear(weight, torch.randn(outputs, generator=generator).to(dtype) if biased else None)
    whole = packed(trial)
    return all(torch.equal(packed(trial[:rows]), whole[:rows]) for rows in (1, 2, 3, 5, 8, 16, 32))


@functools.cache
def _steady_multiple(kind: type[Float16Linear] | type[Int8Linear], outputs: int, inputs: int) -> int:
    """The least number of whose multiples all give a row the same bits. FBGEMM's kernels, for one, sum one or two rows
    in another order than three to six (and 32 rows are five times six and two).
    """
    generator = torch.Generator().manual_seed(0)
    # A few outputs do: a kernel's order of summation hangs on the rows and the inputs.
    trial = kind(torch.randn(min(outputs, 64), inputs, generator=generator))
    rows = torch.randn(_TRIAL_ROWS, inputs, generator=generator)
    for multiple in (1, 2, 3, 4, 6, 8, 12, 16):
        counts = range(multiple, _TRIAL_ROWS + 1, multiple)
        results = [trial(rows[:count]) for count in counts]
        if all(torch.equal(result, results[-1][: len(result)]) for result in results):
            return multiple
    raise RuntimeError("an image would depend on its batch.")

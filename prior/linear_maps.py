"""Linear maps laid out for a few rows at a time: what decoding spends its time on.

A few rows are bound by reading the weights. "exact" computes with the model's own; "float16" and "int8" read a half and
a quarter of float32's bytes, and give other logits.
"""

from __future__ import annotations

import functools
import sys
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import CodegridError

WeightFormat = Literal["exact", "float16", "int8"]


class Linear(Protocol):
    """[R, in] -> [R, out]. On a CPU, among numbers of rows that are multiples of `row_multiple`, a row's result has the
    same bits whatever the others are and however many.

    A kernel is picked by the number of rows, and each sums in an order of its own. The multiple is therefore found by
    trial on the machine (`_steady_multiple`), and more rows than the trial had are multiplied in parts.
    """

    row_multiple: int

    def __call__(self, rows: Tensor) -> Tensor: ...


_MOST_ROWS = 48  # in one product on a CPU: divisible by every multiple that is tried
_TRIED_ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 24, 32, 40, 48)
_MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16)
_POWERS = (1, 2, 4, 8, 16)  # where layers differ, the least common multiple of these is the largest of them
_PACKED_MULTIPLES = (1, 2, 4)
_FIXED_ROWS = 16  # of every product, where no multiple gives a row the same bits
_BLOCK = 32  # what torch._weight_int8pack_mm takes of the inputs, and of the outputs, at once


class _OnCPU:
    """A map of few rows that also takes many: in parts of `most_rows`, the rows of the largest trial."""

    row_multiple = 1
    most_rows = _MOST_ROWS

    def product(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, rows: Tensor) -> Tensor:
        if len(rows) <= self.most_rows:
            return self.product(rows)
        return torch.cat([self.product(part) for part in rows.split(self.most_rows)])


class PackedLinear(_OnCPU):
    """A linear map by oneDNN, from a copy of the weight in oneDNN's own layout.

    At a few rows it is 2 to 5 times as fast as F.linear. The calls are those that inductor compiles a linear layer to
    (torch/_inductor/fx_passes/mkldnn_fusion.py).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        # Packed for one row, the layout would suit only that (and a single row would be summed in another order).
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 8)
        self.bias = bias

    def product(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


class PlainLinear(_OnCPU):
    """F.linear, where no packed map is to be had."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        if weight.device.type != "cpu":
            self.most_rows = sys.maxsize

    def product(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)


class Float16Linear(_OnCPU):
    """float16 weights, float32 rows and sums, by FBGEMM."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.abs().max() > torch.finfo(torch.float16).max:
            raise CodegridError("A weight is too large for float16: take weights exact or int8.")
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), None)
        self.bias, self.dtype = bias, weight.dtype

    def product(self, rows: Tensor) -> Tensor:
        product = torch.ops.quantized.linear_dynamic_fp16(rows.float(), self.weight).to(self.dtype)
        return product if self.bias is None else product + self.bias


class Int8Linear(_OnCPU):
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
        self.bias, self.dtype = bias, dtype

    def product(self, rows: Tensor) -> Tensor:
        product = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scales)[:, : self.outputs].to(self.dtype)
        return product if self.bias is None else product + self.bias


def linear_map(weight: Tensor, bias: Tensor | None, pack: bool | None, weights: WeightFormat) -> Linear:
    """weight [out, in], bias [out] -> the map. `pack` is for exact weights: None packs wherever that can be done.

    Raises:
        CodegridError: there is no such format here; the message says why.
    """
    if weights == "exact":
        packed = None if pack is False else pack_linear(weight, bias)
        return packed or _plain_linear(weight, bias)
    if weight.device.type != "cpu":
        raise CodegridError(
            f"weights is {weights!r}, which is for CPUs, and the prior is on {weight.device.type}: take 'exact' there, "
            "with a prior loaded in bfloat16."
        )
    kind = {"float16": Float16Linear, "int8": Int8Linear}[weights]
    try:
        linear = kind(weight, bias)
        # A few outputs do: the order in which these kernels sum hangs on the rows and the inputs.
        shape = (min(len(weight), 64), weight.shape[1])
        multiple = _steady_multiple(kind, shape, weight.dtype, False, _MULTIPLES, torch.get_num_threads())
        if multiple is None:
            raise RuntimeError("an image would depend on its batch.")
        linear.row_multiple = multiple
    except (AttributeError, RuntimeError) as error:  # not every build has these products
        raise CodegridError(f"weights is {weights!r}, which this torch cannot compute with here: {error}") from error
    return linear


def _plain_linear(weight: Tensor, bias: Tensor | None) -> PlainLinear:
    plain = PlainLinear(weight, bias)
    if weight.device.type != "cpu":
        return plain
    trial = (PlainLinear, tuple(weight.shape), weight.dtype, bias is not None)
    multiple = _steady_multiple(*trial, _POWERS, torch.get_num_threads())
    if multiple is None:
        # Several threads share out the rows of a large product by their number (MKL at 1,024 inputs and outputs and two
        # threads, for one). Products of one size are shared out alike.
        plain.row_multiple = plain.most_rows = _FIXED_ROWS
    else:
        plain.row_multiple = multiple
    return plain


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
        trial = (PackedLinear, tuple(weight.shape), weight.dtype, bias is not None)
        multiple = _steady_multiple(*trial, _PACKED_MULTIPLES, torch.get_num_threads())
        if multiple is None:
            return None
        packed.row_multiple = multiple
        return packed
    except (AttributeError, RuntimeError):  # private operators: another torch may lack them or call them otherwise
        return None


@functools.cache
def _steady_multiple(
    kind: type[_OnCPU],
    shape: tuple[int, int],
    dtype: torch.dtype,
    biased: bool,
    multiples: tuple[int, ...],
    threads: int,  # so that another number of them is tried anew
) -> int | None:
    """The least number of whose multiples all give a row the same bits at any place; None if it is none of `multiples`.

    It hangs on the weight's shape [out, in] and not on its values. FBGEMM sums one or two rows in another order than
    three to six, MKL with AVX-512 fewer than 16 rows in another than more, and oneDNN of torch 2.11 8 rows than 40.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_MOST_ROWS, shape[1], generator=generator).to(dtype)
    weight = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype) if biased else None
    linear = kind(weight, bias)
    whole = linear.product(rows)

    @functools.cache
    def same(count: int) -> bool:
        first, last = linear.product(rows[:count]), linear.product(rows[-count:])
        return torch.equal(first, whole[:count]) and torch.equal(last, whole[-count:])

    steady = (all(same(count) for count in _TRIED_ROWS if count % multiple == 0) for multiple in multiples)
    return next((multiple for multiple, holds in zip(multiples, steady, strict=True) if holds), None)

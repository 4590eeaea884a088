"""Linear maps laid out for a few rows at a time. Decoding spends its time in them.

With few rows, reading the weights limits the speed. "exact" computes with the model's own weights; "float16" and "int8"
read a half and a quarter of float32's bytes, and give other logits.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import CodegridError

WeightFormat = Literal["exact", "float16", "int8"]


class Linear(Protocol):
    """[R, in] -> [R, out]. On a CPU, if R is a multiple of `row_multiple`, a row's result has the same bits whatever
    the other rows are and however many there are.

    Libraries choose a kernel by the number of rows, and each kernel sums in its own order. A trial on the machine
    therefore finds the multiple (`_steady_multiple`). More rows than the trial had are multiplied in parts.
    """

    row_multiple: int

    def __call__(self, rows: Tensor) -> Tensor: ...


_MOST_ROWS = 48  # in one product on a CPU: divisible by every multiple of the trial
# Or more, where a trial of exactly so many gives a row the same bits: steps of many codes have hundreds of rows, and a
# product of a small weight takes long beside its few rows. Where the trial itself would take long, 48 are enough.
_MANY_ROWS, _LONGEST_TRIAL = 768, 2**28
_TRIED_ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 24, 32, 40, 48)
_MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16)
_POWERS = (1, 2, 4, 8, 16)  # powers of two: if layers differ, the largest is their least common multiple
_PACKED_MULTIPLES = (1, 2, 4)
_FIXED_ROWS = 16  # in every product, if no multiple gives a row the same bits
_BLOCK = 32  # block of inputs, and of outputs, of torch._weight_int8pack_mm


class _OnCPU:
    """A map for few rows that takes many in parts: of as many as `many_rows` allows, else of at most `most_rows`."""

    row_multiple = 1
    most_rows = _MOST_ROWS
    many_rows: Callable[[int], int] | None = None  # rows that are left -> those of the next product, 0 for `most_rows`

    def product(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, rows: Tensor) -> Tensor:
        left = rows.shape[0]
        if left <= self.most_rows:
            return self.product(rows)
        sizes = []
        while left:
            many = self.many_rows(left) if self.many_rows is not None and left > self.most_rows else 0
            sizes.append(many or min(left, self.most_rows))
            left -= sizes[-1]
        if len(sizes) == 1:
            return self.product(rows)
        return torch.cat([self.product(part) for part in rows.split(sizes)])


class PackedLinear(_OnCPU):
    """A linear map by oneDNN, from a copy of the weight in oneDNN's own layout.

    At a few rows it is 2 to 5 times as fast as F.linear. Inductor compiles a linear layer to the same calls
    (torch/_inductor/fx_passes/mkldnn_fusion.py).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        # A layout packed for one row would suit only one row (and would sum a single row in another order).
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 8)
        self.bias = bias
        self.operator = torch.ops.mkldnn._linear_pointwise.default

    def product(self, rows: Tensor) -> Tensor:
        return self.operator(rows, self.weight, self.bias, "none", [], "")


class PlainLinear(_OnCPU):
    """F.linear, used if no packed map is available."""

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
            raise CodegridError("A weight is too large for float16.", "Take weights exact or int8.")
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
            raise CodegridError(
                f"int8 weights need widths in multiples of {_BLOCK}, and one is {inputs}.",
                "Take weights exact or float16.",
            )
        weight = F.pad(weight.float(), (0, 0, 0, -self.outputs % _BLOCK))
        # Round the scale before the weights are divided by it, so that its rounding adds no error.
        self.scales = (weight.abs().amax(1) / 127).clamp(min=1e-20).bfloat16()  # [out]
        self.weight = (weight / self.scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.bias, self.dtype = bias, dtype

    def product(self, rows: Tensor) -> Tensor:
        product = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scales)[:, : self.outputs].to(self.dtype)
        return product if self.bias is None else product + self.bias


class SideBySide:
    """Maps of one input, whose weights stay where they are: a product for each, and their results in a row."""

    def __init__(self, maps: Sequence[Linear]) -> None:
        self.maps = maps
        self.row_multiple = math.lcm(*(each.row_multiple for each in maps))

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.cat([each(rows) for each in self.maps], dim=-1)


def linear_map(weight: Tensor, bias: Tensor | None, pack: bool | None, weights: WeightFormat) -> Linear:
    """weight [out, in], bias [out] -> the map. `pack` is for exact weights; None packs wherever that is possible.

    Raises:
        CodegridError: this machine does not have the format; the message says why.
    """
    if weights == "exact":
        packed = None if pack is False else pack_linear(weight, bias)
        return packed or _plain_linear(weight, bias)
    if weight.device.type != "cpu":
        raise CodegridError(
            f"weights is {weights!r}, which is for CPUs, and the prior is on {weight.device.type}.",
            "Take 'exact' there, with a prior loaded in bfloat16.",
        )
    kind = {"float16": Float16Linear, "int8": Int8Linear}[weights]
    try:
        linear = kind(weight, bias)
        # A few outputs are enough: the order of these kernels' sums depends on the rows and the inputs.
        shape = (min(len(weight), 64), weight.shape[1])
        multiple = _steady_multiple(kind, shape, weight.dtype, False, _MULTIPLES, torch.get_num_threads())
        if multiple is None:
            raise RuntimeError("an image would depend on its batch.")
        linear.row_multiple = multiple
    except (AttributeError, RuntimeError) as error:  # not every build has these products
        raise CodegridError(
            f"weights is {weights!r}, which this torch cannot compute with here ({error}).", "Take weights exact."
        ) from error
    return linear


def _plain_linear(weight: Tensor, bias: Tensor | None) -> PlainLinear:
    plain = PlainLinear(weight, bias)
    if weight.device.type != "cpu":
        return plain
    trial = (PlainLinear, tuple(weight.shape), weight.dtype, bias is not None)
    multiple = _steady_multiple(*trial, _POWERS, torch.get_num_threads())
    if multiple is None:
        # Several threads split a large product by its number of rows (MKL does at 1,024 inputs and outputs and two
        # threads, for example). Products of one size are split in the same way.
        plain.row_multiple = plain.most_rows = _FIXED_ROWS
    else:
        plain.row_multiple = multiple
    return plain


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> PackedLinear | None:
    """weight [out, in] on a CPU -> its packed map, or None if there is none that computes the same.

    "The same" includes a row's bits among any number of rows, so that an image does not depend on its batch.
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
        packed.row_multiple, packed.many_rows = multiple, functools.partial(_many_rows, *trial)
        return packed
    except (AttributeError, RuntimeError):  # private operators: another torch may lack or rename them
        return None


def _many_rows(
    kind: Callable[[Tensor, Tensor | None], _OnCPU],
    shape: tuple[int, int],
    dtype: torch.dtype,
    biased: bool,
    left: int,
) -> int:
    """Rows of a product that gives every row the bits that it has among `_MOST_ROWS`; 0 if so many do not."""
    rows = min(left, _MANY_ROWS, _LONGEST_TRIAL // (shape[0] * shape[1]))
    return rows if rows > _MOST_ROWS and _same_bits(kind, shape, dtype, biased, rows, torch.get_num_threads()) else 0


@functools.cache
def _same_bits(
    kind: Callable[[Tensor, Tensor | None], _OnCPU],
    shape: tuple[int, int],
    dtype: torch.dtype,
    biased: bool,
    number: int,
    threads: int,
) -> bool:
    rows, weight, bias = _trial(number, shape, dtype, biased)
    linear = kind(weight, bias)
    return torch.equal(linear.product(rows), torch.cat([linear.product(part) for part in rows.split(_MOST_ROWS)]))


def _trial(rows: int, shape: tuple[int, int], dtype: torch.dtype, biased: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random rows, a weight and a bias."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, shape[1], generator=generator).to(dtype)
    weight = torch.randn(shape, generator=generator).to(dtype)
    return drawn, weight, torch.randn(shape[0], generator=generator).to(dtype) if biased else None


@functools.cache
def _steady_multiple(
    kind: Callable[[Tensor, Tensor | None], _OnCPU],
    shape: tuple[int, int],
    dtype: torch.dtype,
    biased: bool,
    multiples: tuple[int, ...],
    threads: int,  # part of the cache's key: another number of threads needs a new trial
) -> int | None:
    """The smallest of `multiples` whose multiples all give a row the same bits at any place; None if there is none.

    It depends on the weight's shape [out, in], not on its values. The order of the sums differs between one or two rows
    and three to six in FBGEMM, below 16 rows and above in MKL with AVX-512, and 8 rows and 40 in torch 2.11's oneDNN.
    """
    rows, weight, bias = _trial(_MOST_ROWS, shape, dtype, biased)
    linear = kind(weight, bias)
    whole = linear.product(rows)

    @functools.cache
    def same(count: int) -> bool:
        first, last = linear.product(rows[:count]), linear.product(rows[-count:])
        return torch.equal(first, whole[:count]) and torch.equal(last, whole[-count:])

    steady = (all(same(count) for count in _TRIED_ROWS if count % multiple == 0) for multiple in multiples)
    return next((multiple for multiple, holds in zip(multiples, steady, strict=True) if holds), None)

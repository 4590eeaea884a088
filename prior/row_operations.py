"""The operations of a transformer block on each row, except matrix products, in few passes over memory.

On a CPU, autograd's composition of small operations reads and writes the activations several times as often, forward
and backward. On a GPU, torch has the norm in one kernel. The compiler fuses the composition, so compiled code uses it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_SHORT = 512  # positions


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (https://arxiv.org/abs/1910.07467)."""
    if x.is_cuda or x.dtype == torch.bfloat16 or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary positions (https://arxiv.org/abs/2104.09864) in Llama's layout: pairs are half a head apart.

    Args:
        x: [B, T, H, hd].
        cos, signed_sin: [T, 1, hd]; of the sines the first half is negated.
    """
    if torch.compiler.is_compiling():
        return _turned(x, cos, signed_sin)
    return _Rotation.apply(x, cos, signed_sin)


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 * I], the gate first -> [..., I] (https://arxiv.org/abs/2002.05202)."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _GatedSiLU.apply(gate_up)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of each position to itself and those before it, of [B, H, T, hd] (key and value may have fewer heads).

    torch's kernel for CPUs goes over short sequences in bf16 in two to four times the time of the plain products
    (docs/recipes/book.md), which keep [B, H, T, T] probabilities. Elsewhere it is torch's.
    """
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= _SHORT
    if plain and query.shape == key.shape and not dropout and not torch.compiler.is_compiling():
        return _Attention.apply(query, key, value)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, enable_gqa=grouped)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale, length = query.shape[-1] ** -0.5, query.shape[2]
        after = torch.full((length, length), -torch.inf).triu(1)
        shares = torch.add(after, (query @ key.mT).float(), alpha=scale).softmax(-1).to(query.dtype)  # [B, H, T, T]
        ctx.save_for_backward(query, key, value, shares)
        return shares @ value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, shares = ctx.saved_tensors
        scores = torch.ops.aten._softmax_backward_data(grad @ value.mT, shares, -1, shares.dtype)
        scores.mul_(query.shape[-1] ** -0.5)
        return scores @ key, scores.mT @ query, shares.mT @ grad


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        products = grad * normed
        grad_weight = products.flatten(0, -2).sum(0)
        along = (products @ weight).unsqueeze(-1) / x.shape[-1]  # the part of the gradient that changes only the length
        return torch.addcmul(grad * weight, normed, along, value=-1).mul_(scale), grad_weight, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _turned(x, cos, signed_sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        return _turned(grad, cos, -signed_sin), None, None  # rotate back by the same angles


def _turned(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


class _GatedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        grad_gate, grad_up = both.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return both

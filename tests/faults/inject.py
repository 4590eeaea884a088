"""Faults that are planted into a command's process before it starts."""

from __future__ import annotations

import torch


def plant(fault: str) -> None:
    """`loss:nan:3:1`: the losses of 1 backward pass from the third on are NaN. Or `gradient:inf:...`."""
    where, value, first, count = fault.split(":")
    backward, calls = torch.Tensor.backward, iter(range(1, 10**9))

    def planted(tensor: torch.Tensor, *args, **kwargs) -> None:
        hit = int(first) <= next(calls) < int(first) + int(count)
        if hit and where == "loss":
            tensor = tensor * float(value)
        backward(tensor, *args, **kwargs)
        if hit and where == "gradient":
            leaf = next(node for node in _leaves(tensor.grad_fn) if node.grad is not None)
            leaf.grad.view(-1)[0] = float(value)

    torch.Tensor.backward = planted


def _leaves(node):
    seen, stack = set(), [node]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [parent for parent, _ in node.next_functions]

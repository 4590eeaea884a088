"""A prior whose weights, gradients, moments and average are divided among the ranks: FSDP2, torch's `fully_shard`.

Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054 (stage 3). Every block is a unit: its weights are gathered
where it computes, and given up again. Files hold whole weights: what is saved does not know of the ranks.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from codegrid.pipelines.training.checkpoint import Tensors
from codegrid.pipelines.training.divided import gathered
from codegrid.pipelines.training.memory_estimate import MemoryEstimate
from codegrid.prior import PriorObjective
from codegrid.prior.architectures.llama_training import llama_block


def shard(objective: PriorObjective, accelerator: Accelerator) -> None:
    """Divide the weights of a prior among the ranks, in place, and move them to the device."""
    device = accelerator.device
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    for unit in (*_blocks(objective.model), objective):
        # Given up after each forward pass, also by the outermost unit (embeddings and head), which would keep them
        # until a backward pass: an evaluation has none, and the average's weights would stay in the next step.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        assert isinstance(unit, FSDPModule)
        if device.type == "cpu":
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no mean
        if unit is not objective:
            # The fast forward pass reads a block's weights without calling it.
            unit.fast_forward = partial(llama_block, unit)
            register_fsdp_forward_method(unit, "fast_forward")
    objective.to(device)  # buffers


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    return [block for blocks in model.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]


def of_each_rank(estimate: MemoryEstimate, model: PreTrainedModel, ranks: int) -> MemoryEstimate:
    """The memory of one of `ranks` that divide a prior: its parts, and what is gathered at once.

    That is two blocks, the second on its way, and all that is in no block, each with its gradients.
    """
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in _blocks(model)]
    gathered_at_once = 2 * (estimate.weights - sum(blocks) + 2 * max(blocks, default=0))
    gradients = estimate.weights - estimate.weights // ranks  # of the others, which the whole step counts
    return replace(
        estimate,
        weights=estimate.weights // ranks,
        kept=estimate.kept // ranks,
        step=max(0, estimate.step - gradients) + gathered_at_once,
    )


def whole(model: PreTrainedModel, keep: bool) -> PreTrainedModel | None:
    """A prior of whole weights on the CPU, of one that is divided; None without `keep`. All ranks call it together."""
    weights: Tensors = gathered(model.state_dict(), keep)
    if not keep:
        return None
    with torch.device("meta"):
        made = type(model)(model.config)
    made.load_state_dict(weights, assign=True)
    made.tie_weights()
    made.generation_config = model.generation_config
    return made

"""How nets run: memory layout, gradient checkpointing, compiling. No name in a checkpoint depends on it."""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer.step import TokenizerLearners
from codegrid.prior import PriorObjective
from codegrid.tokenizer.layers import lay_out


def prepare_learners(learners: TokenizerLearners, config: TokenizerTrainingConfig) -> None:
    """Set the layout and the gradient checkpointing of all nets. Call it before weights are loaded."""
    nets = [learner.module for learner in (learners.model, learners.discriminator) if learner is not None]
    for module in (*nets, *learners.distances.values()):
        lay_out(module, config.channels_last)
    if config.gradient_checkpointing:
        checkpoint_blocks(learners.model.module)


def checkpoint_blocks(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def compile_learners(learners: TokenizerLearners) -> None:
    """Compile the slow parts in place: no module is wrapped, so no name changes.

    The quantizer is not compiled: its search is a loop over chunks. Nor is the decoder's last layer: the adaptive
    weight needs gradients there, and a compiled decoder would run its whole backward pass for them. Nor is the
    discriminator: its gradient penalties need a double backward pass, which compiled code does not support.

    Raises:
        TrainingError: there is no C++ compiler, which torch.compile needs on a CPU.
    """
    model = learners.model.module
    check_compiler(model.device)
    last = model.decoder.conv_out
    last.forward = torch.compiler.disable(last.forward)
    for module in (model.encoder, model.decoder, *learners.distances.values()):
        module.compile()


def compile_prior(objective: PriorObjective) -> None:
    """Compile the prior's blocks in place. The loss stays a loop over chunks of the logits.

    Raises:
        TrainingError: there is no C++ compiler, which torch.compile needs on a CPU.
    """
    check_compiler(objective.model.device)
    objective.compile()


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile has what it needs on the device.

    Raises:
        TrainingError: there is no C++ compiler.
    """
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise TrainingError(
            "compile is on and there is no C++ compiler (g++, or what CXX names), which torch.compile needs on a CPU.",
            "Install one, or set compile off.",
        )


def not_compiled() -> contextlib.AbstractContextManager:
    """Context in which compiled modules run uncompiled: evaluation's batches are not worth compiling for."""
    return torch.compiler.set_stance("force_eager")

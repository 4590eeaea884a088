"""The rate in a tokenizer's training: what its codes cost a small prior that learns beside it.

RDVQ, https://arxiv.org/abs/2604.10546. The prior is part of the training's state, and of no published tokenizer.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor, nn

from codegrid.pipelines.training.learner import Learner
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.likelihood import code_logits
from codegrid.prior.sequence import to_tokens
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.losses import soft_assignments, soft_rate
from codegrid.tokenizer.modeling import VQModelOutput

_SIZE = PriorConfig(
    hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, positions="rotary_2d"
)
_OPTIMIZER = OptimizerConfig(learning_rate=2e-3, warmup_steps=50, min_learning_rate=1e-4, weight_decay=0.01)


class CodePredictor(nn.Module):
    """A small prior without classes, as a module that can be wrapped (DDP)."""

    def __init__(self, codebook_size: int, grid_shape: tuple[int, int]) -> None:
        super().__init__()
        self.sequence = SequenceConfig(codebook_size, grid_shape)
        self.prior = make_prior(_SIZE, self.sequence)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w] -> log q of every code given those before it, float32 [B h w, codebook_size]."""
        tokens = to_tokens(codes, None, None, self.sequence, validate=False)
        return code_logits(self.prior, tokens, self.sequence).float().log_softmax(-1).flatten(0, 1)


def make_predictor(model: VQModel, accelerator: Accelerator) -> Learner:
    config = model.config
    return Learner.make(
        CodePredictor(config.quantizer_config.codebook_size, config.grid_shape), _OPTIMIZER, accelerator
    )


def rate_terms(
    predictor: Learner, model: VQModel, output: VQModelOutput, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """The rate of a micro-batch in nats a code, a scalar each: for the tokenizer, and for the predictor.

    They have one value. The first one's gradient reaches encoder and codebook through the distances, the second one's
    the predictor, which so learns alike whatever the weight of the term.
    """
    with accelerator.autocast():
        log_probabilities = predictor.wrapped(output.codes)
    assignments = soft_assignments(model.quantize.distances(output.features))  # [N, K]
    return soft_rate(assignments, log_probabilities.detach()), soft_rate(assignments.detach(), log_probabilities)

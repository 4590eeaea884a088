"""A training step of stage two, beside transformers' own forward pass, and taming-transformers' and LlamaGen's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.pipelines.benchmarks.options import BesidePeers
from codegrid.pipelines.benchmarks.peers import llamagen_prior, taming_prior
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.pipelines.training.announcement import flops_a_token
from codegrid.pipelines.training.learner import Learner, update_together
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.switches import compile_prior
from codegrid.prior import PriorConfig, PriorObjective, SequenceConfig, code_cross_entropy, make_prior

_LAYERS, _WIDTH, _HEADS, _CODES, _GRID, _BATCH, _CLASSES = 12, 512, 8, 16_384, 16, 4, 10
_OPTIMIZER = OptimizerConfig(weight_decay=0.05)
_WIDTHS = {"model": 18, "precision": 9, "ms": 9, "spread": 6, "tokens/s": 8, "TFLOP/s": 8, "ratio": 6}

# Of tokens [B, 1 + L], the prefix before the codes: the mean cross-entropy.
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class PriorStep(BesidePeers):
    """A step of stage two: 12 layers x 512, 4 x 256 codes.

    A row for each model and precision; a ratio is to the first model's time in the same precision. Operations are
    counted for our model, and by its formula for all. On a GPU all compute as in training, with TF32.
    """

    name = "prior-step"
    parts = (("no", "bf16"),)

    def measure(self) -> list[Row]:
        print_row({}, _WIDTHS, header=True)
        rows = []
        for precision in filter(self.wants, self.precisions()):
            steps, operations = _steps(self, precision)
            for name, timing in in_turn(steps, self.repeats).items():
                rate = _BATCH * _GRID**2 / timing.seconds
                row = {"model": name, "precision": precision, "tokens/s": rate}
                rows.append({**row, "TFLOP/s": rate * operations / 1e12, **timing.columns()})
                print_row(rows[-1], _WIDTHS)
        return rows


def _steps(asked: PriorStep, precision: str) -> tuple[dict[str, Callable[[], object]], int]:
    """What is timed, and the operations of a token."""
    sequence = SequenceConfig(_CODES, (_GRID, _GRID), class_names=tuple(map(str, range(_CLASSES))))
    shape = PriorConfig(hidden_size=_WIDTH, num_hidden_layers=_LAYERS, num_attention_heads=_HEADS)
    accelerator = asked.accelerator(precision, training=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, _CODES, (_BATCH, 1 + sequence.length), generator=generator)
    tokens[:, 0] = _CODES + torch.arange(_BATCH) % _CLASSES
    tokens = tokens.to(accelerator.device)

    def step(module: nn.Module, loss: Loss) -> Callable[[], object]:
        learner = Learner.make(module, _OPTIMIZER, accelerator)

        def run() -> None:
            with accelerator.autocast():
                value = loss(tokens)
            value.backward()
            update_together([learner], 0, 1)

        return run

    steps = {}
    if asked.taming:
        model = taming_prior(asked.taming, _LAYERS, _WIDTH, _HEADS, sequence.vocab_size, sequence.length)
        steps["taming"] = step(model, lambda tokens, model=model: _taming_loss(model, tokens))
    if asked.llamagen:
        model = llamagen_prior(asked.llamagen, _LAYERS, _WIDTH, _HEADS, _CODES, sequence.length, _CLASSES)
        steps["LlamaGen"] = step(model, lambda tokens, model=model: _llamagen_loss(model, tokens))
    model = make_prior(shape, sequence)
    steps["transformers"] = step(model, lambda tokens, model=model: stock_loss(model, tokens, _CODES))
    for compiled in (False, True) if asked.compile else (False,):
        objective = PriorObjective(make_prior(shape, sequence), _CODES)
        if compiled:
            compile_prior(objective)
        steps["ours, compiled" if compiled else "ours"] = step(objective.model, objective)
    return steps, flops_a_token(objective, sequence)


def stock_loss(model: nn.Module, tokens: Tensor, num_codes: int) -> Tensor:
    """By transformers' forward pass, with all logits at once."""
    return code_cross_entropy(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:], num_codes)


def _taming_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """As its Net2NetTransformer.shared_step has it: the class is the first token."""
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


def _llamagen_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """As its train_c2i.py has it."""
    codes = tokens[:, 1:].contiguous()
    return model(cond_idx=tokens[:, 0] - _CODES, idx=codes[:, :-1], targets=codes)[-1]

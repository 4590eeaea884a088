"""The likelihood of given codes under a prior: log p(codes | class), the sum of its codes' log-probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.sequence import SequenceConfig, to_tokens
from codegrid.prior.teacher_forcing import hidden_states

# Logits at once, in numbers: 256 MB of float64.
_AT_ONCE = 2**25


@torch.no_grad()
def log_likelihood(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    codes: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    batch_size: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """log p of the codes of each image, in nats.

    The sum over its codes of the log-probabilities that sampling at temperature 1 without guidance draws from. Divided
    by -L it is the held-out loss of training.

    Args:
        model: the bare prior, any device. It computes in evaluation mode and its mode does not change.
        codes: integers [N, L], [N, h, w] or [N, h, w, depth], as in `to_tokens`.
        labels: [N] classes, or the values of another condition [N, *value_shape]. None with a conditional prior takes
            the null class: log p(codes) as the prior learned it without a class.
        batch_size: images at once; None: as many as 256 MB of logits hold.
        on_progress: called with the number of images that are done.

    Returns:
        float64 [N] on the CPU.

    Raises:
        CodegridError: codes or labels do not fit the prior; no labels are given and it has no null class; or the logits
            are not finite.
    """
    require(batch_size is None or batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    tokens = _tokens(codes, labels, sequence)
    size = batch_size or max(1, _AT_ONCE // (sequence.length * sequence.codebook_size))
    sums = torch.zeros(len(tokens), dtype=torch.float64)
    with _in_evaluation(model), torch.autocast(model.device.type, enabled=False):
        for first in range(0, len(tokens), size):
            part = tokens[first : first + size]
            logits = code_logits(model, part, sequence).cpu().double()  # [b, L, K]
            chosen = logits.gather(-1, part[:, sequence.prefix_length :, None].cpu())[..., 0]
            sums[first : first + size] = (chosen - logits.logsumexp(-1)).sum(1)
            if on_progress is not None:
                on_progress(first + len(part))
    require(
        bool(torch.isfinite(sums).all()),
        "The prior's logits are not finite: its weights hold NaN or infinity, or its dtype overflows.",
        "Load it in float32, or train it again.",
    )
    return sums


def code_logits(model: PreTrainedModel, tokens: Tensor, sequence: SequenceConfig) -> Tensor:
    """Logits of every code given those before it, in one pass: [B, n + L] int64 -> [B, L, K] in the model's dtype.

    `tokens` are `to_tokens`'. The last code predicts nothing, and the last token of the prefix predicts the first code.
    """
    hidden = hidden_states(model, tokens[:, :-1].to(model.device))[:, sequence.prefix_length - 1 :]  # [B, L, D]
    head = model.get_output_embeddings()
    assert head is not None  # of a language model
    return head(hidden)[..., : sequence.codebook_size]


def _tokens(codes: Tensor, labels: Tensor | Sequence[int] | None, sequence: SequenceConfig) -> Tensor:
    if labels is not None:
        values = torch.as_tensor(labels)
        return to_tokens(codes.cpu(), values.cpu(), None, sequence)
    if sequence.conditioning.vocab_size == 0:
        return to_tokens(codes.cpu(), None, None, sequence)
    require(
        sequence.null_class,
        "No labels are given, and this prior has no null class: it was trained with a class for every image.",
        "Give labels.",
    )
    unconditional = replace(sequence, class_names=None, condition=None, null_class=True)
    plain = to_tokens(codes.cpu(), None, None, unconditional)[:, unconditional.prefix_length :]
    return torch.cat([sequence.null_prefix.expand(len(plain), -1), plain], dim=1)


@contextlib.contextmanager
def _in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)

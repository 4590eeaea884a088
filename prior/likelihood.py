"""The likelihood of given codes under a prior: log p(codes | class), the sum of its codes' log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.architectures import architecture_of
from codegrid.prior.orders import given_orders, place_pairs
from codegrid.prior.sequence import SequenceConfig, to_tokens
from codegrid.prior.steps import in_evaluation
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
    orders: Tensor | None = None,
    drop: Tensor | None = None,
    given: int = 0,
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
        orders: of a prior of any order, [L] or [M, L] int64 permutations of the tokens (`codegrid.prior.orders`): the
            mean of the log p in each of them. None is raster order.
        drop: the parts of the condition that an image has not, as in `to_tokens`.
        given: the first codes of each, in the order in which they are read, that are known: log p of the others given
            them.

    Returns:
        float64 [N] on the CPU.

    Raises:
        CodegridError: codes or labels do not fit the prior; no labels are given and it has no null class; orders are
            given for a prior of raster order; it is a masked prior; or the logits are not finite.
    """
    walks = _checked_orders(model, sequence, orders)
    require(0 <= given < sequence.length, f"given is {given}.", f"Give at least 0 and below {sequence.length} codes.")
    require(batch_size is None or batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    tokens = _tokens(codes, labels, drop, sequence)
    size = batch_size or max(1, _AT_ONCE // (sequence.length * sequence.codebook_size))
    sums = torch.zeros(len(tokens), dtype=torch.float64)
    with in_evaluation(model), torch.autocast(model.device.type, enabled=False):
        for first in range(0, len(tokens), size):
            part = tokens[first : first + size]
            for order in walks:
                logits = code_logits(model, part, sequence, order).cpu().double()  # [b, L, K]
                target = part[:, sequence.prefix_length :, None].cpu()
                chosen = logits.gather(-1, target if order is None else target[:, order])[..., 0]
                sums[first : first + size] += (chosen - logits.logsumexp(-1))[:, given:].sum(1) / len(walks)
            if on_progress is not None:
                on_progress(first + len(part))
    require(
        bool(torch.isfinite(sums).all()),
        "The prior's logits are not finite: its weights hold NaN or infinity, or its dtype overflows.",
        "Load it in float32, or train it again.",
    )
    return sums


def code_logits(
    model: PreTrainedModel, tokens: Tensor, sequence: SequenceConfig, order: Tensor | None = None
) -> Tensor:
    """Logits of every code given those before it, in one pass: [B, n + L] int64 -> [B, L, K] in the model's dtype.

    `tokens` are `to_tokens`'. The last code predicts nothing, and the last token of the prefix predicts the first code.
    With an `order` of the tokens, [L] or one for each image [B, L], "before" goes by it, and so do the logits.
    """
    places = None
    if order is not None:
        prefix, order = sequence.prefix_length, order.expand(len(tokens), -1)
        codes = tokens[:, prefix:].gather(1, order.to(tokens.device))
        tokens = torch.cat([tokens[:, :prefix], codes], 1)
        places = place_pairs(order.to(model.device), prefix)
    fed = tokens[:, :-1].to(model.device)
    hidden = hidden_states(model, fed, places=places)[:, sequence.prefix_length - 1 :]  # [B, L, D]
    head = model.get_output_embeddings()
    assert head is not None  # of a language model
    return head(hidden)[..., : sequence.codebook_size]


def _checked_orders(model: PreTrainedModel, sequence: SequenceConfig, orders: Tensor | None) -> list[Tensor | None]:
    record = architecture_of(model)
    reads = "before" if record is None else record.reads
    require(
        reads != "around",
        "A masked prior gives no likelihood in one pass: it predicts its unknown codes independently of each other.",
        "Compare masked priors by their held-out loss, which training logs.",
    )
    if orders is None:
        return [None]
    require(
        reads == "any order",
        "orders are given, and this prior knows raster order only.",
        "Leave them out, or train one with `codegrid train-prior ... --order annealed`.",
    )
    orders = orders if orders.dim() == 2 else orders[None]
    require(len(orders) > 0, "orders is empty.", "Give at least one, or None.")
    return list(given_orders(orders, len(orders), sequence))


def _tokens(
    codes: Tensor, labels: Tensor | Sequence[int] | None, drop: Tensor | None, sequence: SequenceConfig
) -> Tensor:
    if labels is not None:
        values = torch.as_tensor(labels)
        return to_tokens(codes.cpu(), values.cpu(), None if drop is None else drop.cpu(), sequence)
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

"""What the prior is trained to lower: the cross-entropy of the next code."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prior.sequence import SequenceConfig, to_tokens


def code_cross_entropy(logits: Tensor, codes: Tensor, num_codes: int, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats a code, over the codes alone.

    The softmax runs over the first `num_codes` columns only: the other tokens never follow the prefix and sampling
    never considers them, so the loss is that of the distribution that is sampled from.

    Args:
        logits: [B, L, V] with V >= num_codes, any float dtype; the softmax is computed in float32.
        codes: [B, L] int64, the code that each position should predict, in [0, num_codes).
        label_smoothing: in [0, 1).

    Returns:
        A scalar, float32.
    """
    # Both `flatten`s are views. `float` copies nothing in float32, and under bf16 only the columns that are used.
    code_logits = logits[..., :num_codes].flatten(0, -2).float()  # [B * L, num_codes]
    return F.cross_entropy(code_logits, codes.flatten(), label_smoothing=label_smoothing)


def bits_per_code(nats: Tensor | float) -> Tensor | float:
    """Cross-entropy in nats -> bits; log2(codebook_size) is what guessing gives."""
    return nats / math.log(2)


def prior_loss(
    model: Any,
    codes: Tensor,
    labels: Tensor | None,
    drop: Tensor | None,
    sequence: SequenceConfig,
    *,
    label_smoothing: float = 0.0,
    validate: bool = True,
) -> Tensor:
    """Teacher-forced loss of a batch, a scalar in nats a code.

    Args:
        model: a LlamaForCausalLM, bare or wrapped (DDP, FSDP, torch.compile): it is called once, through its forward.
        codes: [B, L] or [B, h, w(, depth)] integers.
        labels: [B] integers; None exactly if the prior is unconditional.
        drop: [B] bool, True where the class is replaced by null; None drops none.
        label_smoothing, validate: as in `code_cross_entropy` and `to_tokens`.
    """
    tokens = to_tokens(codes, labels, drop, sequence, validate=validate)  # [B, 1 + L]
    # The last code predicts nothing, so it is not fed: every row of logits that is computed counts in the loss.
    # A cache would keep every layer's keys and values alive for nothing.
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # [B, L, V]
    return code_cross_entropy(logits, tokens[:, 1:], sequence.codebook_size, label_smoothing)

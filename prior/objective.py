"""The training loss of the prior: the cross-entropy of the next code."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from codegrid.errors import require
from codegrid.prior.architectures import architecture_of
from codegrid.prior.orders import place_pairs
from codegrid.prior.sequence import to_tokens
from codegrid.prior.sequence_config import SequenceConfig
from codegrid.prior.teacher_forcing import check_checkpointing, hidden_states

# Approximate number of logits that exist at once (32 MB, on a GPU 256 MB: each part is many launches and adds to the
# whole gradient of the head); rows are processed in parts of this size.
_LOGITS_AT_ONCE, _LOGITS_AT_ONCE_ELSEWHERE = 2**23, 2**26


def code_cross_entropy(logits: Tensor, codes: Tensor, num_codes: int, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats per code, over the codes only.

    The softmax runs over the first `num_codes` columns only. Other tokens never follow the prefix and sampling never
    considers them, so this is the loss of the distribution that sampling uses.

    Args:
        logits: [B, L, V] with V >= num_codes, any float dtype; the softmax is computed in float32.
        codes: [B, L] int64, the target code of each position, in [0, num_codes).
        label_smoothing: in [0, 1).

    Returns:
        A scalar, float32.
    """
    # Both `flatten`s are views. `float` copies nothing in float32, and only the used columns in bf16.
    code_logits = logits[..., :num_codes].flatten(0, -2).float()  # [B * L, num_codes]
    return F.cross_entropy(code_logits, codes.flatten(), label_smoothing=label_smoothing)


def bits_per_code(nats: Tensor | float) -> Tensor | float:
    """Cross-entropy in nats -> bits; guessing gives log2(codebook_size)."""
    return nats / math.log(2)


class PriorObjective(nn.Module):
    """The loss as a module, so that it can be wrapped (DDP) or compiled as a whole. Its weights are the prior's.

    Args:
        checkpointing: gradient checkpointing of the blocks, see `hidden_states`; part of the fast forward pass.
        fast: use the forward pass of `teacher_forcing.py`; False runs that of transformers. They agree up to rounding.

    Raises:
        CodegridError: checkpointing is set, but the model or the slow forward pass has none.
    """

    def __init__(self, model: PreTrainedModel, num_codes: int, checkpointing: bool = False, fast: bool = True) -> None:
        super().__init__()
        if checkpointing:
            require(
                fast,
                "Checkpointing is part of the fast forward pass, which is off.",
                "Turn fast on, or checkpointing off.",
            )
            check_checkpointing(model)
        self.model, self.num_codes, self.checkpointing, self.fast = model, num_codes, checkpointing, fast
        record = architecture_of(model)
        self.around = record is not None and record.reads == "around"

    def forward(
        self,
        tokens: Tensor,
        label_smoothing: float = 0.0,
        prefix_length: int = 1,
        order: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Tokens [B, n + L] -> mean cross-entropy in nats per code. The first n = `prefix_length` are not predicted.

        Args:
            order: orders of the codes [B, L], for a prior of any order; None is raster order.
            known: of a masked prior, bool [B, L], the codes that it sees; None shows it none.
        """
        if self.around:
            return self._around(tokens, label_smoothing, prefix_length, known)
        places = None
        if order is not None:
            places = place_pairs(order, prefix_length)
            tokens = torch.cat([tokens[:, :prefix_length], tokens[:, prefix_length:].gather(1, order)], 1)
        # The last code predicts nothing, so the model does not get it. The prefix's last token predicts the first code.
        # Every row of logits therefore counts in the loss.
        fed, codes, first = tokens[:, :-1], tokens[:, prefix_length:], prefix_length - 1
        if not self.fast and places is None:
            logits = self.model(input_ids=fed, use_cache=False).logits[:, first:]  # [B, L, V]
            return code_cross_entropy(logits, codes, self.num_codes, label_smoothing)
        hidden = hidden_states(self.model, fed, self.checkpointing, places)[:, first:]  # [B, L, D]
        head = self.model.get_output_embeddings()
        assert head is not None  # of a language model
        if type(head) is not nn.Linear or head.bias is not None:
            return code_cross_entropy(head(hidden), codes, self.num_codes, label_smoothing)
        return head_cross_entropy(hidden, head.weight, codes, self.num_codes, label_smoothing)

    def _around(self, tokens: Tensor, label_smoothing: float, prefix_length: int, known: Tensor | None) -> Tensor:
        """The mean over the images of the mean over their unknown codes.

        If the number of known codes is drawn evenly from 0 to L - 1, its expectation is the loss of one code after the
        other, averaged over all orders (https://arxiv.org/abs/2110.02037).
        """
        codes = tokens[:, prefix_length:]
        if known is None:
            known = torch.zeros_like(codes, dtype=torch.bool)
        shown = torch.cat([tokens[:, :prefix_length], codes.masked_fill(~known, self.model.config.vocab_size - 1)], 1)
        logits = self.model(input_ids=shown).logits[:, prefix_length:, : self.num_codes].float()  # [B, L, K]
        nats = F.cross_entropy(
            logits.flatten(0, 1), codes.flatten(), label_smoothing=label_smoothing, reduction="none"
        ).view_as(codes)
        unknown = (~known).to(nats.dtype)
        return ((nats * unknown).sum(1) / unknown.sum(1).clamp(min=1)).mean()


def prior_loss(
    model: nn.Module,
    codes: Tensor,
    labels: Tensor | None,
    drop: Tensor | None,
    sequence: SequenceConfig,
    *,
    label_smoothing: float = 0.0,
    validate: bool = True,
    order: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Teacher-forced loss of a batch, a scalar in nats per code.

    Args:
        model: a model of `make_prior` or `load_prior`, or a `PriorObjective`, bare or wrapped (DDP, torch.compile).
        codes: [B, L] or [B, h, w(, depth)] integers.
        labels: [B] integers, or the values of another condition [B, *value_shape]; None if and only if the prior is
            unconditional.
        drop: [B] bool; True replaces the class (the condition) by null, of a combined one also [B, parts]. None drops
            none.
        label_smoothing, validate: as in `code_cross_entropy` and `to_tokens`.
        order, known: see `PriorObjective.forward`.
    """
    tokens = to_tokens(codes, labels, drop, sequence, validate=validate)  # [B, n + L]
    if isinstance(model, PreTrainedModel):
        model = PriorObjective(model, sequence.codebook_size)
    if order is None and known is None:
        return model(tokens, label_smoothing, sequence.prefix_length)
    return model(tokens, label_smoothing, sequence.prefix_length, order, known)


@torch.compiler.disable
def head_cross_entropy(
    hidden: Tensor, weight: Tensor, codes: Tensor, num_codes: int, label_smoothing: float = 0.0
) -> Tensor:
    """`code_cross_entropy` of the logits hidden @ weight.T, which never exist all at once.

    The gradients are computed together with the loss, a part of the rows at a time, so that nothing is computed twice
    (https://arxiv.org/abs/2410.10989).

    Args:
        hidden: [B, L, D].
        weight: [V, D] with V >= num_codes; the rows of other tokens are not used and get no gradient.
        codes, num_codes, label_smoothing: as in `code_cross_entropy`.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    flat, smoothing = hidden.flatten(0, -2), label_smoothing
    with torch.autocast(kind, enabled=False):
        # Read here: inside the autograd function gradients are always off.
        wanted = torch.is_grad_enabled()
        return _HeadCrossEntropy.apply(flat, weight, codes.flatten(), num_codes, smoothing, dtype, wanted)


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, codes, num_codes, smoothing, dtype, wanted):
        used = weight[:num_codes].to(dtype)  # [K, D]
        wanted = wanted and (hidden.requires_grad or weight.requires_grad)
        grad_hidden = torch.empty_like(hidden) if wanted else None
        grad_weight = torch.zeros_like(weight) if wanted else None
        total = hidden.new_zeros((), dtype=torch.float32)
        at_once = _LOGITS_AT_ONCE if hidden.device.type == "cpu" else _LOGITS_AT_ONCE_ELSEWHERE
        at_once = max(1, at_once // num_codes)
        for first in range(0, len(hidden), at_once):
            mine = slice(first, first + at_once)
            states, target = hidden[mine].to(dtype), codes[mine, None]
            scores = (states @ used.t()).float().log_softmax(-1)  # [n, K]
            total -= (1 - smoothing) * scores.gather(1, target).sum() + smoothing * scores.mean(-1).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = scores.exp_()
                grad.scatter_add_(1, target, grad.new_full((), smoothing - 1).expand_as(target))
                if smoothing:
                    grad -= smoothing / num_codes
                grad = grad.to(dtype)
                grad_hidden[mine] = grad @ used
                grad_weight[:num_codes] += grad.t() @ states
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden.div_(len(hidden)), grad_weight.div_(len(hidden)))
        return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None, None, None, None

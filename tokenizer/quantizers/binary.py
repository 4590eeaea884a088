"""What the quantizers of one bit a channel share: the bits of a code, and the entropy over codes that nobody lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import require
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class BinaryQuantizerConfig(QuantizerConfig):
    """Config of a `BinaryQuantizer`: 2^num_bits codes of num_bits channels.

    Args:
        num_bits: channels, each a bit of the code; from 1 to 31.
        commitment_weight: of the term that holds the features at their codes, |z - sg[e]|^2.
        entropy_weight: of the entropy term, which makes each feature sure of its code and the batch use all of them. 0
            leaves it out.
        diversity_weight: of the second part, the batch's entropy, against the first, the features' own.
        inv_temperature: tau of the soft assignment that the entropies are of, softmax(-tau |z - e|^2) over the codes.
    """

    num_bits: int = 10
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    inv_temperature: float = 100.0

    def __post_init__(self) -> None:
        require(1 <= self.num_bits <= 31, f"quantizer.num_bits is {self.num_bits}: it must be from 1 to 31.")
        for name in ("commitment_weight", "entropy_weight", "diversity_weight"):
            require(getattr(self, name) >= 0, f"quantizer.{name} is {getattr(self, name)}: it must not be negative.")
        require(self.inv_temperature > 0, f"quantizer.inv_temperature is {self.inv_temperature}: it must be positive.")

    @property
    def codebook_size(self) -> int:
        return 2**self.num_bits

    @property
    def code_dim(self) -> int:
        return self.num_bits


class BinaryQuantizer(Quantizer):
    """The sign of each channel, times `scale`; no parameters; straight-through gradient. A zero goes to the bit 0."""

    scale: float = 1.0

    def __init__(self, config: BinaryQuantizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Quantized:
        config = self.config
        # In float32 also under autocast, which lowers none of these operations.
        z = self._place(features.float())  # [B, D, h, w]
        codes = bits_to_codes(z > 0)  # [B, h, w]
        e = self.codes_to_features(codes)  # [B, D, h, w]
        losses = {"commitment": config.commitment_weight * F.mse_loss(z, e)}
        if config.entropy_weight and self.training:
            # Between the two values of a channel, -tau |z - e|^2 differs by 4 tau scale z.
            of_each, of_batch = factorised_entropies(4 * config.inv_temperature * self.scale * z)
            losses["entropy"] = config.entropy_weight * (of_each - config.diversity_weight * of_batch)
        straight_through = z + (e - z).detach() if self.training else e
        return Quantized(straight_through, codes, losses)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        return bits_to_codes(self._place(features.float()) > 0)

    def codes_to_features(self, codes: Tensor) -> Tensor:
        return (2 * codes_to_bits(codes, self.config.num_bits).float() - 1) * self.scale

    @torch.no_grad()
    def init_weights(self) -> None:
        pass

    def _place(self, features: Tensor) -> Tensor:
        """Where the features lie among the codes: [B, D, h, w] float32 twice."""
        return features


def bits_to_codes(bits: Tensor) -> Tensor:
    """[B, D, h, w] bool -> [B, h, w] int64: sum_i 2^(i - 1) [z_i > 0], as in arXiv:2310.05737."""
    weights = 2 ** torch.arange(bits.shape[1], device=bits.device)
    return (bits * weights.view(-1, 1, 1)).sum(1)


def codes_to_bits(codes: Tensor, num_bits: int) -> Tensor:
    """[B, h, w] int64 -> [B, num_bits, h, w] int64 of 0 and 1."""
    return codes[:, None] >> torch.arange(num_bits, device=codes.device).view(-1, 1, 1) & 1


def factorised_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies in nats of codes whose bits are drawn independently: logits [B, D, h, w] of the bits -> two scalars.

    Squared distances add up over the channels, so that the softmax over all 2^D codes is a product over the D bits, and
    its entropy a sum: 2^D numbers are never made.

    Returns:
        the mean over the features of each one's entropy, which is exact; and the entropy of the mean distribution over
        this rank's batch, for which the product of its marginals stands (arXiv:2406.07548): never below the true one.
    """
    # H = log(1 + exp(-|x|)) + |x| p(-|x|): no large numbers cancel.
    size = logits.abs()
    of_each = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()
    # A mean of exactly 0 or 1 would have an infinite gradient.
    tiny = torch.finfo(logits.dtype).eps
    mean = torch.sigmoid(logits).mean((0, 2, 3)).clamp(tiny, 1 - tiny)  # [D]
    of_batch = -(mean * mean.log() + (1 - mean) * torch.log1p(-mean)).sum()
    return of_each, of_batch

"""Shared by quantizers with one bit per channel: a code's bits, and the entropy over codes without a list of them."""

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
        num_bits: number of channels, each one bit of the code; from 1 to 31.
        commitment_weight: weight of the commitment term |z - sg[e]|^2, which holds the features at their codes.
        entropy_weight: weight of the entropy term, which makes each feature's assignment certain and the batch's use of
            the codes even. 0 leaves it out.
        diversity_weight: weight of the entropy term's second part, the batch's entropy, relative to the first part, the
            features' own entropies. The batch's entropy is that of the mean distribution over the codes of a group of
            bits (the quantizer's `joint_bits`), summed over groups.
        inv_temperature: tau of the soft assignment softmax(-tau |z - e|^2) over the codes, whose entropies are taken.
    """

    num_bits: int = 10
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    inv_temperature: float = 100.0

    def __post_init__(self) -> None:
        require(1 <= self.num_bits <= 31, f"quantizer.num_bits is {self.num_bits}.", "Give a number from 1 to 31.")
        for name in ("commitment_weight", "entropy_weight", "diversity_weight"):
            require(getattr(self, name) >= 0, f"quantizer.{name} is {getattr(self, name)}.", "Give 0 or more.")
        require(
            self.inv_temperature > 0, f"quantizer.inv_temperature is {self.inv_temperature}.", "Give a number above 0."
        )

    @property
    def codebook_size(self) -> int:
        return 2**self.num_bits

    @property
    def code_dim(self) -> int:
        return self.num_bits


class BinaryQuantizer(Quantizer):
    """The sign of each channel, times `scale`. No parameters; straight-through estimator. A zero gives the bit 0."""

    scale: float = 1.0
    # Most bits whose joint entropy is taken over the batch. Marginals alone do not show that two bits always agree.
    joint_bits: int = 10

    def __init__(self, config: BinaryQuantizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Quantized:
        config = self.config
        # float32 also under autocast, which lowers the precision of none of these operations.
        z = self._place(features.float())  # [B, D, h, w]
        codes = bits_to_codes(z > 0)  # [B, h, w]
        e = self.codes_to_features(codes)  # [B, D, h, w]
        losses = {"commitment": config.commitment_weight * F.mse_loss(z, e)}
        if config.entropy_weight and self.training:
            # -tau |z - e|^2 differs by 4 tau scale z between the two values of a channel.
            of_each, of_batch = entropies(4 * config.inv_temperature * self.scale * z, self.joint_bits)
            losses["entropy"] = config.entropy_weight * (of_each - config.diversity_weight * of_batch)
        straight_through = z + (e - z).detach() if self.training else e
        return Quantized(straight_through, codes, losses, e)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        return bits_to_codes(self._place(features.float()) > 0)

    def codes_to_features(self, codes: Tensor) -> Tensor:
        return (2 * codes_to_bits(codes, self.config.num_bits).float() - 1) * self.scale

    @torch.no_grad()
    def init_weights(self) -> None:
        pass

    def _place(self, features: Tensor) -> Tensor:
        """Features -> their place in the space of the codes: [B, D, h, w] float32 -> the same."""
        return features


def bits_to_codes(bits: Tensor) -> Tensor:
    """[B, D, h, w] bool -> [B, h, w] int64: sum_i 2^(i - 1) [z_i > 0], as in arXiv:2310.05737."""
    weights = 2 ** torch.arange(bits.shape[1], device=bits.device)
    return (bits * weights.view(-1, 1, 1)).sum(1)


def codes_to_bits(codes: Tensor, num_bits: int) -> Tensor:
    """[B, h, w] int64 -> [B, num_bits, h, w] int64 of 0 and 1."""
    places = torch.arange(num_bits, device=codes.device).view(-1, 1, 1)
    return codes[:, None].bitwise_right_shift(places) & 1  # `>>` has no form in ONNX


def entropies(logits: Tensor, joint_bits: int) -> tuple[Tensor, Tensor]:
    """Entropies in nats of codes whose bits are independent for each feature: logits [B, D, h, w] -> 2 scalars.

    Squared distances add up over the channels. So a feature's softmax over all 2^D codes is a product over the D bits,
    and its entropy is a sum: 2^D numbers never exist.

    Args:
        logits: logits of each bit.
        joint_bits: the channels are cut into groups of at most this size; each group needs 2^joint_bits numbers.

    Returns:
        the mean of the features' entropies, which is exact; and the entropy of the mean distribution over this rank's
        batch, which is exact for the codes of each group and summed over the groups, so never below the true one.
    """
    # H = log(1 + exp(-|x|)) + |x| p(-|x|), in which no large numbers cancel.
    size = logits.abs()
    of_each = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()
    shares = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)  # [B, D, h, w, 2], of a bit's 0 and 1
    shares = shares.movedim(1, 0).flatten(1, 3)  # [D, N, 2]
    groups = shares.tensor_split(-(-len(shares) // joint_bits))
    return of_each, torch.stack([_joint_entropy(group) for group in groups]).sum()


def _joint_entropy(shares: Tensor) -> Tensor:
    """Entropy of the mean over N distributions over 2^D codes, given by the probabilities `shares` [D, N, 2] of bits.

    The mean of the products is a product of two matrices, one for each half of the bits. So it needs 2 N sqrt(2^D)
    numbers, not N 2^D.
    """
    first, second = (_products(half) for half in shares.tensor_split(2))  # [N, 2^(D/2)] both
    mean = (first.t() @ second / shares.shape[1]).clamp_min(torch.finfo(shares.dtype).tiny)
    return -(mean * mean.log()).sum()


def _products(shares: Tensor) -> Tensor:
    """Distributions over the codes of D bits: [D, N, 2] -> [N, 2^D]."""
    found = shares.new_ones(shares.shape[1], 1)
    for bit in shares:
        found = (found[:, :, None] * bit[:, None]).flatten(1)
    return found

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
        diversity_weight: of the second part, the batch's entropy, against the first, the features' own. It is that of
            the mean distribution over the codes of a group of bits (`joint_bits` of the quantizer), summed over groups.
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
    # Bits at most of which the batch's entropy is a joint one. Marginals alone do not see that two bits always agree.
    joint_bits: int = 10

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
        """Where the features lie among the codes: [B, D, h, w] float32 twice."""
        return features


def bits_to_codes(bits: Tensor) -> Tensor:
    """[B, D, h, w] bool -> [B, h, w] int64: sum_i 2^(i - 1) [z_i > 0], as in arXiv:2310.05737."""
    weights = 2 ** torch.arange(bits.shape[1], device=bits.device)
    return (bits * weights.view(-1, 1, 1)).sum(1)


def codes_to_bits(codes: Tensor, num_bits: int) -> Tensor:
    """[B, h, w] int64 -> [B, num_bits, h, w] int64 of 0 and 1."""
    return codes[:, None] >> torch.arange(num_bits, device=codes.device).view(-1, 1, 1) & 1


def entropies(logits: Tensor, joint_bits: int) -> tuple[Tensor, Tensor]:
    """Entropies in nats of codes whose bits are drawn independently for each feature: logits [B, D, h, w] -> 2 scalars.

    Squared distances add up over the channels, so that a feature's softmax over all 2^D codes is a product over the D
    bits, and its entropy a sum: 2^D numbers are never made.

    Args:
        logits: of each bit.
        joint_bits: the channels are cut into groups of at most so many; 2^joint_bits numbers are made a group.

    Returns:
        the mean over the features of each one's entropy, which is exact; and the entropy of the mean distribution over
        this rank's batch, exact for the codes of each group, and summed over the groups: never below the true one.
    """
    # H = log(1 + exp(-|x|)) + |x| p(-|x|): no large numbers cancel.
    size = logits.abs()
    of_each = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()
    shares = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)  # [B, D, h, w, 2], of a bit's 0 and 1
    shares = shares.movedim(1, 0).flatten(1, 3)  # [D, N, 2]
    groups = shares.tensor_split(-(-len(shares) // joint_bits))
    return of_each, torch.stack([_joint_entropy(group) for group in groups]).sum()


def _joint_entropy(shares: Tensor) -> Tensor:
    """Entropy of the mean over N of the distributions over 2^D codes that `shares` [D, N, 2] of their bits make.

    The mean of the products is a product of matrices: of the first half of the bits and of the second. So 2 N sqrt(2^D)
    numbers are made, not N 2^D.
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

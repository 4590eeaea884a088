"""Vector quantization with a learned codebook.

van den Oord et al. 2017, https://arxiv.org/abs/1711.00937 (the codebook and the commitment term); Yu et al. 2022,
https://arxiv.org/abs/2110.04627 (low-dimensional codes on the sphere; LlamaGen's choice). The EMA codebook is in
appendix A.1 of the first, and in Razavi et al. 2019, https://arxiv.org/abs/1906.00446. k-means initialisation is from
SoundStream, Zeghidour et al. 2021, https://arxiv.org/abs/2107.03312.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import require
from codegrid.tokenizer.fields import younger
from codegrid.tokenizer.metrics import occurrences
from codegrid.tokenizer.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_rows
from codegrid.tokenizer.quantizers.entropy import entropy_loss
from codegrid.tokenizer.quantizers.gradients import rotation, straight_through
from codegrid.tokenizer.quantizers.kmeans import kmeans, sum_by_code
from codegrid.tokenizer.quantizers.nearest import nearest_codes, squared_distances

# k-means initialisation: the number of Lloyd's iterations, and of features per code and rank.
_KMEANS_ITERATIONS = 10
_KMEANS_FEATURES = 64
# Laplace smoothing of the EMA cluster sizes, as in the authors' code (Sonnet): the size of an unused code is not 0.
_SMOOTHING = 1e-5
_FLOOR = 1e-6  # of a variance, in `isotropy_loss`


@dataclass(frozen=True)
class VectorQuantizerConfig(QuantizerConfig):
    """Config of `VectorQuantizer`.

    Args:
        codebook_size: number of codes.
        code_dim: channels of the quantized features.
        l2_normalize: features and codes lie on the unit sphere, and the nearest code has the largest cosine. False
            compares plain Euclidean distances, as taming-transformers does.
        gradient: how the decoder's gradient reaches the features. "straight_through" copies it; "rotation" applies the
            rotation and scaling that map the feature to its code (https://arxiv.org/abs/2410.06424).
        codebook_update: how the codes are trained. "gradient" uses the codebook term and the optimizer; "ema" makes
            each code the EMA of its features after every step, and needs no codebook term.
        codebook_decay: decay of that EMA per step.
        codebook_weight: weight of the codebook term |sg[z] - e|^2, which moves the codes towards the features; only
            with "gradient".
        commitment_weight: weight beta of the commitment term |z - sg[e]|^2, which holds the features at their codes.
            (taming's "legacy" mode puts beta on the other term; that is not done here.)
        isotropy_weight: weight of `isotropy_loss`, which keeps the features of a plain codebook from using only one or
            two dimensions. Their codes are then easier to predict. 0 leaves it out.
        entropy_weight: weight of `entropy_loss` over softmax(-|z - e|^2 / temperature), as in MAGVIT-v2
            (https://arxiv.org/abs/2310.05737): assignments get certain, and the use of the codes gets even. 0 leaves it
            out; above 0 it holds the whole [N, codebook_size] matrix of a micro-batch.
        entropy_temperature: temperature of that softmax.
        codebook_init: how the first step places all codes, so that training starts from a codebook of the data. "data"
            takes features of the batch; "kmeans" takes their means after ten of Lloyd's iterations (on the sphere,
            spherical k-means), which fit the batch better.
        revive_below: dead-code restart: a code whose share of use falls below this fraction of the mean share moves
            onto a feature of the current batch. 0 turns it off, and with codebook_init "data" also the placement of the
            codes in the first step.
        revive_decay: decay of the EMA of use per step.
    """

    has_residual_levels: ClassVar[bool] = True
    has_distances: ClassVar[bool] = True

    type: Literal["vq"] = "vq"
    codebook_size: int = 1024
    code_dim: int = 8
    l2_normalize: bool = True
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    codebook_update: Literal["gradient", "ema"] = "gradient"
    codebook_decay: float = 0.99
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    isotropy_weight: float = 0.0
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01
    codebook_init: Literal["data", "kmeans"] = younger("data")
    revive_below: float = 0.05
    revive_decay: float = 0.95

    def __post_init__(self) -> None:
        for name in ("codebook_size", "code_dim"):
            require(getattr(self, name) >= 1, f"quantizer.{name} is {getattr(self, name)}.", "Give at least 1.")
        for name in ("codebook_weight", "commitment_weight", "isotropy_weight", "entropy_weight", "revive_below"):
            require(getattr(self, name) >= 0, f"quantizer.{name} is {getattr(self, name)}.", "Give 0 or more.")
        temperature = self.entropy_temperature
        require(temperature > 0, f"quantizer.entropy_temperature is {temperature}.", "Give a number above 0.")
        require(
            not (self.l2_normalize and self.isotropy_weight),
            "quantizer.isotropy_weight spreads the features in space, quantizer.l2_normalize puts them on a sphere.",
            "Turn one of them off (isotropy_weight 0, or l2_normalize False).",
        )
        for name in ("codebook_decay", "revive_decay"):
            require(
                0 <= getattr(self, name) < 1,
                f"quantizer.{name} is {getattr(self, name)}.",
                "Give a number from 0 to below 1.",
            )

    def build(self) -> Quantizer:
        return VectorQuantizer(self)

    def check_residual_levels(self, shared: bool) -> None:
        require(
            not self.l2_normalize,
            "quantizer.inner.l2_normalize is True, and what a level leaves over does not lie on the sphere.",
            "Turn it off.",
        )
        require(
            not (shared and self.isotropy_weight),
            f"quantizer.inner.isotropy_weight is {self.isotropy_weight}: it would spread what the levels leave over as "
            "far as the features.",
            "Set it to 0, or quantizer.shared to False.",
        )

    def residual_level(self, index: int) -> Quantizer:
        """Only the first level, which quantizes the features, has the isotropy term: residuals should be small."""
        return (replace(self, isotropy_weight=0.0) if index else self).build()


class VectorQuantizer(Quantizer):
    """Codebook `embedding.weight` [codebook_size, code_dim]; with codebook_update "ema" it is a buffer."""

    training_buffers = ("usage", "cluster_size", "cluster_sum")

    def __init__(self, config: VectorQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
        # EMA of each code's share of use, in units of the mean share; part of the checkpoint. All zeros mean that the
        # codebook has not been placed on the data yet.
        self.register_buffer("usage", torch.zeros(config.codebook_size))
        self.moving_means = config.codebook_update == "ema"
        if self.moving_means:
            # The codebook is then a buffer: a frozen parameter would not stay frozen after from_pretrained.
            del self.embedding.weight
            self.embedding.register_buffer("weight", torch.empty(config.codebook_size, config.code_dim))
            # EMA of the number of each code's features per step, and of their sum (N_i and m_i of the paper).
            self.register_buffer("cluster_size", torch.empty(config.codebook_size))
            self.register_buffer("cluster_sum", torch.empty(config.codebook_size, config.code_dim))
        self.init_weights()

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            z = self._place(features.float())  # [B, D, h, w]
            codebook = self._codebook()  # [K, D]
            codes = self._nearest(z, codebook)  # [B, h, w]
            e = F.embedding(codes, codebook).permute(0, 3, 1, 2)  # [B, D, h, w]
            losses = {}
            if not self.moving_means:
                losses["codebook"] = self.config.codebook_weight * F.mse_loss(e, z.detach())
            losses["commitment"] = self.config.commitment_weight * F.mse_loss(z, e.detach())
            if self.config.isotropy_weight and self.training:
                losses["isotropy"] = self.config.isotropy_weight * isotropy_loss(z)
            if self.config.entropy_weight and self.training:
                logits = -squared_distances(to_rows(z), codebook) / self.config.entropy_temperature  # [N, K]
                losses["entropy"] = self.config.entropy_weight * entropy_loss(logits)
            out = e
            if self.training:
                out = rotation(z, e) if self.config.gradient == "rotation" else straight_through(z, e)
        return Quantized(out, codes, losses, e)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self._nearest(self._place(features.float()), self._codebook())

    def codes_to_features(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            return F.embedding(codes, self._codebook()).permute(0, 3, 1, 2)

    def distances(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return squared_distances(to_rows(self._place(features.float())), self._codebook())

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.normal_(self.embedding.weight)
        nn.init.zeros_(self.usage)
        self._forget_clusters(torch.arange(self.config.codebook_size))

    @torch.no_grad()
    def statistics(self, codes: Tensor, features: Tensor) -> dict[str, Tensor]:
        """With "ema": `size` [K], the number of features of each code, and `sum` [K, D], their sum."""
        if not self.moving_means:
            return {}
        size = occurrences(codes, self.config.codebook_size).float()
        rows = to_rows(self._place(features.float()))
        return {"size": size, "sum": sum_by_code(codes.flatten(), rows, self.config.codebook_size)}

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        """e_i = m_i / N_i (arXiv:1711.00937, eq. 6 to 8), N_i smoothed: (N_i + eps) n / (n + K eps), n = sum N_i."""
        if not self.moving_means:
            return
        decay = self.config.codebook_decay
        self.cluster_size.mul_(decay).add_(statistics["size"], alpha=1 - decay)
        self.cluster_sum.mul_(decay).add_(statistics["sum"], alpha=1 - decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + _SMOOTHING) * total / (total + self.config.codebook_size * _SMOOTHING)
        self.embedding.weight.copy_(self.cluster_sum / smoothed[:, None])

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        if not self.config.revive_below:
            return
        size, decay = self.config.codebook_size, self.config.revive_decay
        share = occurrences(codes, size).float() * (size / codes.numel())
        counted = self.usage.mul(decay).add_(share, alpha=1 - decay)
        # All zeros say that the codes are still to be placed on the data, by `revive`.
        self.usage.copy_(torch.where(self.usage.any(), counted, self.usage))

    @torch.no_grad()
    def revive(self, codes: Tensor, features: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if not self.config.revive_below and not self._to_be_clustered():
            return {}
        if self.usage.any():
            self.count(codes)
            dead = (self.usage < self.config.revive_below).nonzero().flatten()  # [M]
        else:
            dead = torch.arange(self.config.codebook_size, device=self.usage.device)
        if len(dead) == 0:
            return {}
        if self._to_be_clustered():
            self.embedding.weight.copy_(self._clustered(features, generator))
        else:
            chosen = torch.randint(len(features), (len(dead),), generator=generator).to(features.device)
            self.embedding.weight[dead] = features[chosen].to(self.embedding.weight)
        self.usage[dead] = 1.0
        self._forget_clusters(dead)
        return {"embedding.weight": dead}

    @property
    def revival_candidates(self) -> int:
        wanted = super().revival_candidates
        return max(wanted, _KMEANS_FEATURES * self.config.codebook_size) if self._to_be_clustered() else wanted

    def _to_be_clustered(self) -> bool:
        """Whether the next `revive` initialises the codebook by k-means."""
        return self.config.codebook_init == "kmeans" and not self.usage.any()

    def _clustered(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Features [N, code_dim] -> their k-means [codebook_size, code_dim], starting from different drawn features."""
        rows, size = self._place(features.float()), self.config.codebook_size
        if len(rows) >= size:
            start = torch.randperm(len(rows), generator=generator)[:size]
        else:
            start = torch.randint(len(rows), (size,), generator=generator)
        return kmeans(rows, rows[start.to(rows.device)], _KMEANS_ITERATIONS, self.config.l2_normalize)

    def _forget_clusters(self, codes: Tensor) -> None:
        """Reset the EMA of codes [M] that were just placed: each is the mean of one feature, itself."""
        if self.moving_means:
            self.cluster_size[codes] = 1.0
            self.cluster_sum[codes] = self._codebook()[codes]

    def _place(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) if self.config.l2_normalize else features

    def _codebook(self) -> Tensor:
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=1) if self.config.l2_normalize else weight

    def _nearest(self, z: Tensor, codebook: Tensor) -> Tensor:
        codes = nearest_codes(to_rows(z.detach()), codebook.detach(), on_sphere=self.config.l2_normalize)
        return codes.view(z.shape[0], *z.shape[2:])


def isotropy_loss(features: Tensor) -> Tensor:
    """KL(N(mu, C) || N(0, I)) of the batch's mean mu [D] and covariance C [D, D]: [B, D, h, w] -> scalar.

    = (tr C - log det C - D + |mu|^2) / 2. If the codebook does not resolve a dimension of the features, the decoder
    does not get it, and the commitment term shrinks it to nothing. log det works against this. The aim is that of
    VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906); the divergence is that of a VAE, over the batch.
    """
    rows = to_rows(features)  # [N, D]
    dim = rows.shape[1]
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.t() @ centred / len(rows)
    # The floor keeps the logarithm finite if features are constant or have more dimensions than rows.
    if len(rows) > dim:
        floor = _FLOOR * torch.eye(dim, dtype=rows.dtype, device=rows.device)
        logdet = torch.linalg.slogdet(covariance + floor).logabsdet
    else:
        logdet = _log_determinant_of_few(centred)
    return 0.5 * (covariance.trace() - logdet - dim + mean.square().sum())


def _log_determinant_of_few(centred: Tensor) -> Tensor:
    """log det(X^T X / N + floor I) of centred rows X [N, D], N <= D.

    D - N + 1 eigenvalues of that matrix are the floor, and its inverse, the gradient, is noise in float32. X X^T / N
    has the other eigenvalues (Sylvester's identity). One of its own is 0, because the rows sum to 0; it becomes 1 here.
    """
    count, dim = centred.shape
    eye = torch.eye(count, dtype=centred.dtype, device=centred.device)
    gram = centred @ centred.t() / count + _FLOOR * eye + 1 / count  # [N, N]
    floors = (dim - count + 1) * math.log(_FLOOR) - math.log1p(_FLOOR)
    return torch.linalg.slogdet(gram).logabsdet + floors

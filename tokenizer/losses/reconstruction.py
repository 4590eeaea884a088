"""Terms that compare a reconstruction with its image: pure functions; `ObjectiveConfig` weights them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.tokenizer.losses.objective import ObjectiveConfig
from codegrid.tokenizer.losses.structure import dssim_loss

# Smallest scale of `log_laplace_loss`: half a step of 8 bits on [-1, 1]. Rounding loses smaller errors.
_SMALLEST_SCALE = 1 / 255


def log_laplace_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Negative log-likelihood of pixels under p(x) = exp(-|x - x_hat| / b) / 2b, with each image's most likely b.

    E[log 2b + |x - x_hat| / b] in nats per value, over images and reconstructions, both [B, C, H, W] in [-1, 1]. An
    image's b is its mean absolute error, which maximises the likelihood (the optimal scale of sigma-VAE,
    https://arxiv.org/abs/2006.13202, for Laplace's distribution). It is at least half a step of 8 bits; below that the
    term is L1 over a constant. So the term is bounded below, and may be negative.

    Its gradient is that of L1 over the image's error: images that are nearly right count as much as others. Each image
    has its own b, so that neither ranks nor gradient accumulation change the term. DALL-E's logit-Laplace distribution
    (https://arxiv.org/abs/2102.12092, appendix A.3) has a b for each value and its centre on the logits of [0, 1]. That
    needs a decoder with twice the channels and another range of pixels.
    """
    error = (reconstruction - images).abs().flatten(1).mean(1)  # [B]
    # Detached, because the gradient is 0 at the largest likelihood.
    scale = error.detach().clamp(min=_SMALLEST_SCALE)  # [B]
    return (math.log(2) + scale.log() + error / scale).mean()


def reconstruction_terms(
    config: ObjectiveConfig, distances: Mapping[str, nn.Module], images: Tensor, reconstruction: Tensor, step: int = 0
) -> dict[str, Tensor]:
    """Weighted terms that compare the reconstruction with the images, both [B, C, H, W] in [-1, 1], in float32.

    Args:
        distances: the nets by the names of their terms, from `make_distances`.
        step: terms that start later are left out, and their nets do not run.
    """
    images, reconstruction = images.float(), reconstruction.float()
    terms = {}
    if config.is_active("l1", step):
        terms["l1"] = config.l1_weight * F.l1_loss(reconstruction, images)
    if config.is_active("l2", step):
        terms["l2"] = config.l2_weight * F.mse_loss(reconstruction, images)
    if config.is_active("smooth_l1", step):  # eq. 3 of https://arxiv.org/abs/1504.08083, whose beta is 1
        error = F.smooth_l1_loss(reconstruction, images, beta=config.smooth_l1_beta)
        terms["smooth_l1"] = config.smooth_l1_weight * error
    if config.is_active("log_laplace", step):
        terms["log_laplace"] = config.log_laplace_weight * log_laplace_loss(images, reconstruction)
    if config.is_active("dssim", step):
        terms["dssim"] = config.dssim_weight * dssim_loss(images, reconstruction)
    for name, distance in distances.items():
        if not config.is_active(name, step):
            continue
        terms[name] = getattr(config, f"{name}_weight") * distance(images, reconstruction).mean()
    return terms

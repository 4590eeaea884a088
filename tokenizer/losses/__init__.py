"""Losses: pure terms, each weighted and named by `ObjectiveConfig`."""

from tokenizer.losses.adversarial import (
    adaptive_weight,
    clamped_ratio,
    hinge_discriminator_loss,
    hinge_generator_loss,
    warmup_factor,
)
from tokenizer.losses.objective import RECONSTRUCTION_WEIGHTS, ObjectiveConfig, make_perceptual
from tokenizer.losses.perceptual import LPIPS
from tokenizer.losses.reconstruction import log_laplace_loss, reconstruction_terms

__all__ = [
    "LPIPS",
    "RECONSTRUCTION_WEIGHTS",
    "ObjectiveConfig",
    "adaptive_weight",
    "clamped_ratio",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "log_laplace_loss",
    "make_perceptual",
    "reconstruction_terms",
    "warmup_factor",
]

"""Losses: pure terms, each weighted and named by `ObjectiveConfig`."""

from tokenizer.losses.adversarial import (
    adaptive_weight,
    clamped_ratio,
    hinge_discriminator_loss,
    hinge_generator_loss,
    warmup_factor,
)
from tokenizer.losses.objective import ObjectiveConfig, make_perceptual, reconstruction_terms
from tokenizer.losses.perceptual import LPIPS

__all__ = [
    "LPIPS",
    "ObjectiveConfig",
    "adaptive_weight",
    "clamped_ratio",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "make_perceptual",
    "reconstruction_terms",
    "warmup_factor",
]

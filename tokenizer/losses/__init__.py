"""Losses: pure terms, each weighted and named by `ObjectiveConfig`."""

from tokenizer.losses.adversarial import GAN_LOSSES, adaptive_weight, clamped_ratio, warmup_factor
from tokenizer.losses.feature_distance import FeatureDistance, FeatureDistanceConfig
from tokenizer.losses.objective import RECONSTRUCTION_WEIGHTS, TERMS, ObjectiveConfig, make_distances
from tokenizer.losses.perceptual import LPIPS
from tokenizer.losses.reconstruction import log_laplace_loss, reconstruction_terms
from tokenizer.losses.regularization import gradient_penalty, lecam_penalty, r1_penalty

__all__ = [
    "GAN_LOSSES",
    "LPIPS",
    "RECONSTRUCTION_WEIGHTS",
    "TERMS",
    "FeatureDistance",
    "FeatureDistanceConfig",
    "ObjectiveConfig",
    "adaptive_weight",
    "clamped_ratio",
    "gradient_penalty",
    "lecam_penalty",
    "log_laplace_loss",
    "make_distances",
    "r1_penalty",
    "reconstruction_terms",
    "warmup_factor",
]

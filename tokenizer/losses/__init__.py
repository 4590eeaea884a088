"""Losses: terms as pure functions; `ObjectiveConfig` weights and names them."""

from codegrid.tokenizer.losses.adversarial import GAN_LOSSES, adaptive_weight, clamped_ratio, warmup_factor
from codegrid.tokenizer.losses.feature_distance import FeatureDistance, FeatureDistanceConfig
from codegrid.tokenizer.losses.objective import RECONSTRUCTION_WEIGHTS, TERMS, ObjectiveConfig, make_distances
from codegrid.tokenizer.losses.perceptual import LPIPS
from codegrid.tokenizer.losses.rate import soft_assignments, soft_rate
from codegrid.tokenizer.losses.reconstruction import log_laplace_loss, reconstruction_terms
from codegrid.tokenizer.losses.regularization import gradient_penalty, lecam_penalty, r1_penalty
from codegrid.tokenizer.losses.structure import dssim_loss

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
    "dssim_loss",
    "gradient_penalty",
    "lecam_penalty",
    "log_laplace_loss",
    "make_distances",
    "r1_penalty",
    "reconstruction_terms",
    "soft_assignments",
    "soft_rate",
    "warmup_factor",
]

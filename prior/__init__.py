"""Stage two: a transformer over sequences of codes. It knows nothing about images."""

from codegrid.prior.architectures import ARCHITECTURES, Architecture, register_architecture
from codegrid.prior.conditioning import Condition, register_condition
from codegrid.prior.configuration import PriorConfig
from codegrid.prior.distribution import SamplingConfig
from codegrid.prior.likelihood import log_likelihood
from codegrid.prior.modeling import load_prior, make_prior, save_prior
from codegrid.prior.objective import PriorObjective, bits_per_code, code_cross_entropy, prior_loss
from codegrid.prior.sampling import image_generator, iterate_codes, sample_codes
from codegrid.prior.sequence import resolve_labels, to_codes, to_tokens
from codegrid.prior.sequence_config import SequenceConfig

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Condition",
    "PriorConfig",
    "PriorObjective",
    "SamplingConfig",
    "SequenceConfig",
    "bits_per_code",
    "code_cross_entropy",
    "image_generator",
    "iterate_codes",
    "load_prior",
    "log_likelihood",
    "make_prior",
    "prior_loss",
    "register_architecture",
    "register_condition",
    "resolve_labels",
    "sample_codes",
    "save_prior",
    "to_codes",
    "to_tokens",
]

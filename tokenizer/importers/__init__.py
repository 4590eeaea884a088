"""The registry of foreign tokenizers: one import line for each.

Pure functions: weights by their foreign names -> a config and weights of this project. No other project's code is
imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from codegrid.tokenizer.configuration import VQModelConfig
from codegrid.tokenizer.images import Preprocessing
from codegrid.tokenizer.importers import diffusers, ibq, llamagen, maskgit, open_magvit2, taming
from codegrid.tokenizer.importers.layout import TokenizerFamily, Weights, find_setting
from codegrid.tokenizer.importers.reading import ForeignCheckpointError, read_settings, read_weights

TOKENIZER_FAMILIES: dict[str, TokenizerFamily] = {
    "taming": taming.FAMILY,
    "llamagen": llamagen.FAMILY,
    "diffusers": diffusers.FAMILY,
    "maskgit": maskgit.FAMILY,
    "ibq": ibq.FAMILY,
    "open-magvit2": open_magvit2.FAMILY,
}


def convert_tokenizer(
    family: str,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    pixel_range: tuple[float, float] | None = None,
) -> tuple[VQModelConfig, Weights]:
    """Convert a foreign state dict into a config and weights of `VQModel`; the weights are float32.

    Args:
        family: one of `TOKENIZER_FAMILIES`.
        settings: the family's own config (yaml or json), if there is one; it must agree with the weights.
        pixel_range: the network's values of black and white; None takes those of the family.

    Raises:
        ForeignCheckpointError: the weights or the settings are not of this family, or do not make a tokenizer.
    """
    if family not in TOKENIZER_FAMILIES:
        raise ForeignCheckpointError(
            f"There is no family {family!r}.", f"Choose one of {', '.join(TOKENIZER_FAMILIES)}."
        )
    known = TOKENIZER_FAMILIES[family]
    settings = settings or {}
    _check_class(family, settings)
    if not known.fits(weights):
        raise ForeignCheckpointError(
            f"These are not the weights of {known.title}: the first of their {len(weights)} keys are "
            f"{', '.join(sorted(weights)[:6])}.",
            _hint(weights),
        )
    floats = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    converted = known.convert(floats, settings, pixel_range)
    config = VQModelConfig(
        backbone=asdict(converted.backbone),
        quantizer=asdict(converted.quantizer),
        preprocessing=asdict(Preprocessing(image_size=converted.backbone.resolution, smaller="upscale")),
        provenance={"family": family, **converted.notes},
    )
    return config, converted.weights


def fill(model: nn.Module, weights: Weights, family: str) -> None:
    """Load converted weights into the `VQModel` of their config.

    Raises:
        ForeignCheckpointError: a weight is missing, unknown or of another shape. The message lists them.
    """
    own = model.state_dict()
    # Buffers of training: all codes count as used, so that fine-tuning does not place the codebook again.
    weights = {name: torch.ones_like(own[name]) for name in own if name.endswith(".usage")} | weights
    wrong = {
        "missing": sorted(set(own) - set(weights)),
        "not known": sorted(set(weights) - set(own)),
        "of another shape": sorted(name for name in own if name in weights and weights[name].shape != own[name].shape),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {_first(names)}" for what, names in wrong.items() if names)
        raise ForeignCheckpointError(
            f"The checkpoint is no whole {family} tokenizer. {listed}.",
            "Download it again, whole, or choose the family that it is of.",
        )
    model.load_state_dict(weights)


def _first(names: list[str], limit: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def guess_tokenizer_family(keys: Mapping[str, Any]) -> str | None:
    """The family whose signs match the keys; None if there is none."""
    return next((name for name, family in TOKENIZER_FAMILIES.items() if family.fits(keys)), None)


def _hint(weights: Mapping[str, Tensor]) -> str:
    guess = guess_tokenizer_family(weights)
    if guess:
        return f"By their keys they are {TOKENIZER_FAMILIES[guess].title}: use the family {guess}."
    return f"Choose the family that they are of: one of {', '.join(TOKENIZER_FAMILIES)}."


def _check_class(family: str, settings: Mapping[str, Any]) -> None:
    """If the settings name the class that they configure, it must be one of the family's."""
    for key in ("target", "class_path", "_class_name"):
        name = find_setting(settings, key)
        words = TOKENIZER_FAMILIES[family].classes
        if not isinstance(name, str) or not words or any(word in name for word in words):
            continue
        others = [other for other, known in TOKENIZER_FAMILIES.items() if any(word in name for word in known.classes)]
        hint = (
            f"Use the family {others[0]}." if others else "Give the settings that lie beside these weights (--config)."
        )
        raise ForeignCheckpointError(
            f"The settings are those of {name}, not of {TOKENIZER_FAMILIES[family].title}.", hint
        )


__all__ = [
    "TOKENIZER_FAMILIES",
    "ForeignCheckpointError",
    "convert_tokenizer",
    "fill",
    "guess_tokenizer_family",
    "read_settings",
    "read_weights",
]

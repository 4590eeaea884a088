"""The registry of foreign tokenizers: one import line for each.

Pure functions: weights by their foreign names -> a config and weights of this project. No other project's code is
imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codegrid.tokenizer.configuration import VQModelConfig
from codegrid.tokenizer.images import Preprocessing
from codegrid.tokenizer.importers import diffusers, ibq, llamagen, maskgit, open_magvit2, taming
from codegrid.tokenizer.importers.containers import Kind, without_wrappers
from codegrid.tokenizer.importers.layout import TokenizerFamily, Weights, averaged, find_setting, of_submodule
from codegrid.tokenizer.importers.locating import locate
from codegrid.tokenizer.importers.reading import ForeignCheckpointError, read_settings

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
    kind: Kind = "family",
) -> tuple[VQModelConfig, Weights]:
    """Convert a foreign state dict into a config and weights of `VQModel`; the weights are float32.

    Args:
        family: one of `TOKENIZER_FAMILIES`.
        settings: the family's own config (yaml or json), if there is one; it must agree with the weights.
        pixel_range: the network's values of black and white; None takes those of the family.
        kind: which weights, where there are averages (`model_ema.`) beside the trained ones: the family's own choice,
            or one by name.

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
    weights, _ = without_wrappers(weights)
    if not known.fits(weights):
        raise ForeignCheckpointError(
            f"These are not the weights of {known.title}: the first of their {len(weights)} keys are "
            f"{', '.join(sorted(weights)[:6])}.",
            _hint(weights),
        )
    floats = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    floats, notes = _of_kind(floats, known, settings, kind)
    converted = known.convert(floats, settings, pixel_range)
    config = VQModelConfig(
        backbone=asdict(converted.backbone),
        quantizer=asdict(converted.quantizer),
        preprocessing=asdict(Preprocessing(image_size=converted.backbone.resolution, smaller="upscale")),
        provenance={"family": family, **notes, **converted.notes},
    )
    return config, converted.weights


def takes_averages(family: TokenizerFamily, settings: Mapping[str, Any] | None, kind: Kind) -> bool:
    """Whether averages are taken where a file has them beside trained weights."""
    if kind != "family":
        return kind == "averaged"
    return family.averages and find_setting(settings or {}, "use_ema") is not False


def _of_kind(
    weights: Weights, family: TokenizerFamily, settings: Mapping[str, Any], kind: Kind
) -> tuple[Weights, dict[str, str]]:
    """Averages among the weights (`model_ema.`) in the place of the trained ones, or gone; and a note on the choice."""
    inside = of_submodule(weights, "first_stage_model.")
    if not any(key.startswith("model_ema.") for key in inside):
        return weights, {}
    if takes_averages(family, settings, kind):
        return averaged(inside), {"weights": "ema"}
    return {key: value for key, value in inside.items() if not key.startswith("model_ema.")}, {"weights": "trained"}


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


def read_weights(path: str | Path) -> Weights:
    """The tensors of a checkpoint (a file, shards with an index, or a folder; `locate`), by their names in it.

    Raises:
        ForeignCheckpointError: it is missing, damaged or not a checkpoint, or has objects other than weights.
    """
    return locate(path).read().weights


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
    "locate",
    "read_settings",
    "read_weights",
    "takes_averages",
]

"""The registry of foreign priors: weights by their foreign names -> a prior of this project and its `SequenceConfig`.

Pure functions; no other project's code is imported. `NOT_IMPORTED` names priors that are neither Llamas nor GPT-2s,
with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import CodegridError
from codegrid.prior.importers import llamagen, taming_gpt
from codegrid.prior.importers.layout import PriorFamily
from codegrid.prior.sequence_config import SequenceConfig

PRIOR_FAMILIES: dict[str, PriorFamily] = {
    "llamagen-gpt": llamagen.FAMILY,
    "taming-gpt": taming_gpt.FAMILY,
}
NO_REMEDY = "It cannot be imported: take a prior of LlamaGen (class-conditional) or taming-transformers."
# Families that are recognised but not imported: their signs, and the reason.
NOT_IMPORTED: tuple[tuple[str, str], ...] = (
    (
        r"cls_embedding\.cap_proj\.",
        "This is LlamaGen's text-conditional GPT: it reads 120 features of flan-t5-xl, and this project's priors know "
        "classes.",
    ),
    (
        r"transformer\.(pre_emb|post_emb|factorized_blocks)",
        "This is Open-MAGVIT2's prior: it predicts each code in two parts with a second transformer, and its norms are "
        "modulated by the class. It is no Llama.",
    ),
    (
        r"transformer\.(class_emb|head_nm|blocks\.0\.ada_lin)",
        "This is IBQ's prior: every block is modulated by the class (adaptive norms). It is no Llama.",
    ),
)


def convert_prior(
    family: str,
    weights: Mapping[str, Tensor],
    grid_size: int,
    class_names: tuple[str, ...] | None = None,
    heads: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, SequenceConfig]:
    """Convert a foreign state dict into a prior in evaluation mode and float32, and the meaning of its tokens.

    Args:
        family: one of `PRIOR_FAMILIES`.
        grid_size: rows and columns of the square code grid; weights do not tell it.
        class_names: in the order of the labels; None names the classes by their numbers.
        heads: number of attention heads, if neither a published size nor the settings tell it.
        settings: the family's own config (yaml), if it has one.

    Raises:
        CodegridError: the weights are not of this family, or some are missing. The message lists the keys.
    """
    for sign, reason in NOT_IMPORTED:
        if any(re.search(sign, key) for key in weights):
            raise CodegridError(reason, NO_REMEDY)
    known = PRIOR_FAMILIES[family]
    if not known.fits(weights):
        guess = guess_prior_family(weights)
        hint = f"By their keys, use the family {guess}." if guess else f"Choose one of {', '.join(PRIOR_FAMILIES)}."
        raise CodegridError(
            f"These are not the weights of {known.title}: the first of their {len(weights)} keys are "
            f"{', '.join(sorted(weights)[:6])}.",
            hint,
        )
    return known.convert(weights, grid_size, class_names, heads, settings)


def guess_prior_family(keys: Iterable[str]) -> str | None:
    """The family whose signs match the keys; None if there is none."""
    keys = list(keys)
    return next((name for name, family in PRIOR_FAMILIES.items() if family.fits(keys)), None)

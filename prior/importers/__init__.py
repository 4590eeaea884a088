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
NO_REMEDY = (
    "It cannot be imported: take a prior of LlamaGen (class-conditional) or taming-transformers, or train one on codes "
    "(`codegrid train-prior`)."
)
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
    (
        r"(^|\.)(target_aware_pos_embed$|adaln_before_head\.)",
        "This is RAR's generator (codes in any order): every block is modulated by the class and the step (adaptive "
        "norms). It is no Llama, and not this project's prior of any order.",
    ),
    (
        r"(^|\.)(embeddings\.word_embeddings\.weight$|mlm_layer\.)",
        "This is a masked transformer, as the generators of MaskGIT, MUSE and aMUSEd are: its tokens, its classes and "
        "its guidance are not those of this project's masked prior.",
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
    if reason := why_not_imported(weights):
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


def why_not_imported(keys: Iterable[str]) -> str | None:
    """What kind of prior the keys are of and why it is not imported; None if they are of no kind of `NOT_IMPORTED`."""
    keys = list(keys)
    return next((reason for sign, reason in NOT_IMPORTED if any(re.search(sign, key) for key in keys)), None)


def guess_prior_family(keys: Iterable[str]) -> str | None:
    """The family whose signs match the keys; None if there is none."""
    keys = list(keys)
    return next((name for name, family in PRIOR_FAMILIES.items() if family.fits(keys)), None)

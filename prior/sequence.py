"""Codes as a sequence of tokens: the vocabulary, the order and the prefix that all parts of the prior use.

There is one flat vocabulary, `[codes | the condition's tokens | null]`. A sequence is a prefix (one token for a class
or null; `conditioning.py` has others) and then the codes of the grid in raster order. If a position has several codes
(`depth` > 1), they follow each other, coarse to fine. If they are a top code and its block of a finer grid, the whole
top grid can come before the whole finer one.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable

import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.prior.conditions import parts_of
from codegrid.prior.sequence_config import SequenceConfig


def to_tokens(
    codes: Tensor, labels: Tensor | None, drop: Tensor | None, config: SequenceConfig, *, validate: bool = True
) -> Tensor:
    """Codes of images -> the token sequences on which a prior is trained.

    Args:
        codes: [B, L] (position by position, as in the code data set) or [B, h, w] or [B, h, w, depth], any integer
            dtype, in [0, codebook_size).
        labels: [B] integers in [0, num_classes), or the values of another condition, [B, *value_shape]; None if and
            only if the prior is unconditional.
        drop: [B] bool; True replaces the class (the condition) by null, for guidance; of a combined condition also
            [B, parts]. None drops none.
        validate: check the ranges of `codes` and `labels`. On an accelerator this is a sync point: pass False there if
            the codes were checked when they were read.

    Returns:
        [B, prefix_length + L] int64, on the device of `codes`: the prefix and the codes in the order of the config.

    Raises:
        CodegridError: wrong shape, a code beyond the codebook, a label beyond the classes, missing or unexpected
            labels, or drop for a prior without a null class.
    """
    codes = flat_codes(codes, config)
    if validate:
        check_codes(codes, config)
    prefix = prefix_tokens(labels, len(codes), config, device=codes.device, validate=validate)  # [B, n]
    if drop is not None:
        prefix = dropped(prefix, drop, config)
    if config.order != "positions":
        codes = codes[:, config.code_of_token.to(codes.device, non_blocking=True)]
    return torch.cat([prefix, codes], dim=1)  # [B, n + L]


def prefix_tokens(
    labels: Tensor | None,
    batch: int,
    config: SequenceConfig,
    *,
    device: torch.device | str = "cpu",
    validate: bool = True,
) -> Tensor:
    """Labels or values [B, *value_shape] (None if the prior is unconditional) -> [B, prefix_length] int64."""
    kind = config.conditioning
    if labels is None:
        require(
            kind.vocab_size == 0,
            f"This prior has {kind.describe()}, and no {kind.noun} are given.",
            f"Give {kind.noun}; drop replaces them by null.",
        )
        return config.null_prefix.to(device, non_blocking=True).expand(batch, -1)
    require(kind.vocab_size > 0, "This prior is unconditional: it takes no labels.", "Leave the labels out.")
    shape = (batch, *kind.value_shape)
    require(
        labels.shape == shape and _is_integer(labels),
        f"{kind.noun} are {labels.dtype} {list(labels.shape)}.",
        f"Give integers of shape {list(shape)}.",
    )
    return kind.prefix(labels.to(device=device, dtype=torch.int64), validate) + config.codebook_size


def dropped(prefix: Tensor, drop: Tensor, config: SequenceConfig) -> Tensor:
    """Prefixes [B, n] with null in place of what `drop`, bool [B] or [B, parts], says.

    Raises:
        CodegridError: the prior has no null class, or `drop` has another shape or type.
    """
    require(config.null_class, "This prior has no null class, and drop is given.", "Leave drop out.")
    parts = len(parts_of(config.conditioning))
    require(
        drop.dtype == torch.bool and drop.shape in {(len(prefix),), (len(prefix), parts)},
        f"drop is {drop.dtype} {list(drop.shape)}.",
        f"Give bool of shape [{len(prefix)}]" + (f" or [{len(prefix)}, {parts}]." if parts > 1 else "."),
    )
    return config.without(prefix, drop)


def to_codes(tokens: Tensor, config: SequenceConfig, *, validate: bool = True) -> Tensor:
    """Code tokens without their prefix, [B, L] -> grids of codes [B, h, w] int64, or [B, h, w, depth] if depth > 1.

    `validate` as in `to_tokens`.

    Raises:
        CodegridError: wrong shape, or a token that is not a code.
    """
    require(
        tokens.dim() == 2 and _is_integer(tokens) and tokens.shape[1] == config.length,
        f"tokens are {tokens.dtype} {list(tokens.shape)}.",
        f"Give integers of shape [B, {config.length}], without the prefix.",
    )
    tokens = tokens.long()
    if validate:
        check_codes(tokens, config)
    if config.order != "positions":
        places = config.code_of_token.to(tokens.device, non_blocking=True)
        tokens = torch.empty_like(tokens).index_copy_(1, places, tokens)
    shape = config.grid_shape if config.depth == 1 else (*config.grid_shape, config.depth)
    return tokens.reshape(len(tokens), *shape)


def resolve_labels(names_or_ids: Iterable[str | int], config: SequenceConfig) -> list[int]:
    """Class names or ids -> labels; for another condition, inputs of its `parse` -> values.

    A string is first looked up among the class names and only then read as a number: "7" is the class called "7" if
    there is one.

    Args:
        names_or_ids: names, integers in [0, num_classes), or such integers as strings; freely mixed.

    Raises:
        CodegridError: a class is unknown (the message names the nearest ones), or the prior has no classes.
    """
    if isinstance(names_or_ids, (str, numbers.Integral)):
        names_or_ids = [names_or_ids]
    return config.conditioning.parse(names_or_ids)


def flat_codes(codes: Tensor, config: SequenceConfig) -> Tensor:
    """[B, L] or [B, h, w(, depth)] -> [B, L] int64."""
    grid = config.grid_shape if config.depth == 1 else (*config.grid_shape, config.depth)
    require(
        _is_integer(codes) and tuple(codes.shape[1:]) in {(config.length,), grid},
        f"codes are {codes.dtype} {list(codes.shape)}.",
        f"Give integers of shape [B, {config.length}] or [B, {', '.join(map(str, grid))}].",
    )
    return codes.reshape(len(codes), config.length).long()


def flat_rows(codes: Tensor, config: SequenceConfig) -> Tensor:
    """First codes of images, [B, P] or the grid's upper rows [B, r, w(, depth)] -> [B, P] int64, P below the length.

    [B, P] has the order of the config. Upper rows are only for the order "positions": in "grids" the whole top grid
    comes first; give its codes flat.

    Raises:
        CodegridError: wrong shape, no code left to sample, or a code beyond the codebook.
    """
    require(
        codes.dim() == 2 or config.order == "positions",
        f"prefix_codes has the shape {list(codes.shape)}, but the prior's order is {config.order!r}.",
        "Give the first codes in that order, [B, P] (the top grid first).",
    )
    line = config.grid_shape[1:] if config.depth == 1 else (config.grid_shape[1], config.depth)
    require(
        _is_integer(codes) and (codes.dim() == 2 or tuple(codes.shape[2:]) == line),
        f"prefix_codes are {codes.dtype} {list(codes.shape)}.",
        f"Give integers of shape [B, P] or [B, r, {', '.join(map(str, line))}].",
    )
    codes = codes.flatten(1).long()
    require(
        codes.shape[1] < config.length,
        f"prefix_codes gives {codes.shape[1]} codes of {config.length}, which leaves none to sample.",
        f"Give at most {config.length - 1}.",
    )
    check_codes(codes, config)
    return codes


def check_codes(codes: Tensor, config: SequenceConfig) -> None:
    if not codes.numel():
        return
    low, high = torch.stack(codes.aminmax()).tolist()  # one look at the device
    require(
        low >= 0 and high < config.codebook_size,
        f"A code lies outside the codebook: they run from {low} to {high}, the codebook from 0 to "
        f"{config.codebook_size - 1}.",
        "Give codes of the tokenizer that the prior was trained with.",
    )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)

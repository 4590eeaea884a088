"""Codes as a sequence of tokens: the vocabulary, the order and the prefix that all parts of the prior use.

There is one flat vocabulary, `[codes | the condition's tokens | null]`. A sequence is a prefix (one token for a class
or null; `conditioning.py` has others) and then the codes of the grid in raster order. If a position has several codes
(`depth` > 1), they follow each other, coarse to fine. If they are a top code and its block of a finer grid, the whole
top grid can come before the whole finer one.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from codegrid.errors import CodegridError, MissingFileError, require
from codegrid.prior.conditioning import (
    ClassCondition,
    Condition,
    NoCondition,
    check_bounds,
    condition_from_dict,
    condition_to_dict,
)

SEQUENCE_CONFIG_NAME = "sequence_config.json"
# Upper bounds: a file gives these sizes, and tables and lists of the sizes are made.
MOST_CODES, MOST_POSITIONS = 2**31, 2**20


@dataclass(frozen=True)
class SequenceConfig:
    """The meaning of a prior's tokens. It comes from the code data set, so that the two stages cannot disagree.

    Args:
        codebook_size: number of codes K; codes run from 0 to K - 1.
        grid_shape: rows and columns of the code grid.
        depth: codes at each position of the grid (above 1 for residual quantizers).
        order: "positions" puts all codes of a position before those of the next position. "grids" puts the first code
            of every position before all others. The others of a position are a square block of a finer grid (depth 5:
            2 x 2) and follow row by row of that grid (VQ-VAE-2's top and bottom, https://arxiv.org/abs/1906.00446).
        class_names: one unique name per class, in the order of the labels; None for an unconditional prior.
        tokenizer_fingerprint: fingerprint of the tokenizer that made the codes; None if unknown.
        null_class: whether a conditional prior has also learned the null token, which guidance and images without a
            class need. The vocabulary has the token in any case.
        condition: a condition of the codes other than a class, of a registered kind (`register_condition`). None if
            the condition is a class or there is none.

    Raises:
        CodegridError: a field is of the wrong type or out of its range. The message names it.
    """

    codebook_size: int
    grid_shape: tuple[int, int]
    depth: int = 1
    order: Literal["positions", "grids"] = "positions"
    class_names: tuple[str, ...] | None = None
    tokenizer_fingerprint: str | None = None
    null_class: bool = True
    condition: Condition | None = None

    def __post_init__(self) -> None:
        require(
            isinstance(self.grid_shape, (tuple, list)) and len(self.grid_shape) == 2,
            f"grid_shape is {self.grid_shape!r}: it must be two numbers, rows and columns.",
        )
        object.__setattr__(self, "grid_shape", tuple(self.grid_shape))
        height, width = self.grid_shape
        sizes = {"codebook_size": self.codebook_size, "depth": self.depth}
        for name, value in {**sizes, "grid_shape[0]": height, "grid_shape[1]": width}.items():
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"{name} is {value!r}: it must be a whole number of at least 1.",
            )
        require(
            self.codebook_size <= MOST_CODES, f"codebook_size is {self.codebook_size}: it must be at most {MOST_CODES}."
        )
        require(
            self.length <= MOST_POSITIONS,
            f"grid_shape {self.grid_shape} with {self.depth} codes a position is a sequence of {self.length} codes: it "
            f"must have at most {MOST_POSITIONS}.",
        )
        self._check_order()
        self._check_condition()
        fingerprint = self.tokenizer_fingerprint
        require(
            fingerprint is None or isinstance(fingerprint, str),
            f"tokenizer_fingerprint is {fingerprint!r}: it must be a string or None.",
        )
        require(
            self.null_class is True or (self.null_class is False and self.conditioning.vocab_size > 0),
            f"null_class is {self.null_class!r}: it must be True, or False where there are class_names.",
        )

    def _check_order(self) -> None:
        require(
            self.order in ("positions", "grids"), f"order is {self.order!r}: it must be one of 'positions', 'grids'."
        )
        require(
            self.order == "positions" or (self.depth > 1 and math.isqrt(self.depth - 1) ** 2 == self.depth - 1),
            f"order is 'grids', but depth is {self.depth}: it must be 1 and a square, as 5 = 1 + 2 x 2.",
        )

    def _check_condition(self) -> None:
        condition = self.condition
        if condition is not None and not isinstance(condition, Condition):
            condition = condition_from_dict(condition)
        require(
            condition is None or self.class_names is None,
            "There are class_names and a condition: a prior follows one of them.",
        )
        if isinstance(condition, ClassCondition):  # a single representation, so that equal configs compare equal
            object.__setattr__(self, "class_names", condition.class_names)
        if isinstance(condition, (NoCondition, ClassCondition)):
            condition = None
        object.__setattr__(self, "condition", condition)
        if condition is None:
            condition = NoCondition() if self.class_names is None else ClassCondition(self.class_names)
            object.__setattr__(self, "class_names", getattr(condition, "class_names", None))
        object.__setattr__(self, "_conditioning", condition)
        check_bounds(condition, MOST_POSITIONS - self.length)

    @property
    def conditioning(self) -> Condition:
        """The condition of the codes: `condition`, the classes, or none."""
        return self._conditioning

    @property
    def prefix_length(self) -> int:
        """Tokens before the codes."""
        return self.conditioning.num_tokens

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional prior."""
        return 0 if self.class_names is None else len(self.class_names)

    @property
    def can_be_guided(self) -> bool:
        """Whether guidance is possible: there is a condition, and the prior has learned null."""
        return self.conditioning.vocab_size > 0 and self.null_class

    @property
    def length(self) -> int:
        """Codes per image: rows * columns * depth. A sequence of tokens has the prefix before them."""
        return self.grid_shape[0] * self.grid_shape[1] * self.depth

    @property
    def code_of_token(self) -> Tensor:
        """[length] int64: the index of each token's code among an image's codes, counted position by position."""
        places = torch.arange(self.length).view(*self.grid_shape, self.depth)  # [h, w, depth]
        if self.order == "positions":
            return places.flatten()
        side = math.isqrt(self.depth - 1)
        blocks = places[..., 1:].unflatten(2, (side, side)).transpose(1, 2)  # [h, side, w, side]
        return torch.cat([places[..., 0].flatten(), blocks.flatten()])

    @property
    def vocab_size(self) -> int:
        """Codes, the condition's tokens and null."""
        return self.codebook_size + self.conditioning.vocab_size + 1

    @property
    def null_token(self) -> int:
        """Prefix of a sequence without a class: null branch of guidance, and start of an unconditional prior."""
        return self.codebook_size + self.conditioning.vocab_size

    @property
    def null_prefix(self) -> Tensor:
        """[prefix_length] int64: the prefix of a sequence without a condition."""
        return torch.tensor(self.conditioning.null, dtype=torch.int64) + self.codebook_size

    def class_token(self, label: int) -> int:
        """Prefix of a sequence of class `label`, in [0, num_classes).

        Raises:
            ValueError: there is no such class.
        """
        require(self.class_names is not None, "This prior is unconditional: it has no class tokens.")
        self.conditioning.check_value(label)
        return self.codebook_size + int(label)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values. Without a condition it has no `condition`, as in older files."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "condition"}
        return values if self.condition is None else values | {"condition": condition_to_dict(self.condition)}

    def save(self, folder: str | Path) -> Path:
        """Write `sequence_config.json` atomically into `folder`, which is made if missing. Returns its path."""
        path = Path(folder) / SEQUENCE_CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            with aside.open("w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=2, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> SequenceConfig:
        """Read `sequence_config.json` of `folder`.

        Raises:
            MissingFileError: there is no such file: the folder is not a prior of this project.
            ValueError: it is not a JSON object, a key is unknown or missing, or a value is wrong. It names the file.
        """
        path = Path(folder) / SEQUENCE_CONFIG_NAME
        if not path.is_file():
            raise MissingFileError(
                f"There is no {SEQUENCE_CONFIG_NAME} in {folder}: it is no prior, or was not saved with save_prior."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are both ValueErrors
            raise CodegridError(f"{path} is not valid JSON: {error}.") from error
        return _config_from_json(values, path)


def _config_from_json(values: Any, path: Path) -> SequenceConfig:
    require(isinstance(values, dict), f"{path} must hold a JSON object, not {type(values).__name__}.")
    known = {field.name for field in fields(SequenceConfig)}
    younger = {"order", "null_class", "condition"}  # than the first saved priors
    unknown, missing = sorted(set(values) - known), sorted(known - set(values) - younger)
    require(not unknown, f"Unknown keys in {path}: {', '.join(unknown)}. It may hold {', '.join(sorted(known))}.")
    require(not missing, f"Keys missing from {path}: {', '.join(missing)}.")
    try:
        return SequenceConfig(**values)
    except ValueError as error:
        raise CodegridError(f"{path}: {error}") from error


def to_tokens(
    codes: Tensor, labels: Tensor | None, drop: Tensor | None, config: SequenceConfig, *, validate: bool = True
) -> Tensor:
    """Codes of images -> the token sequences on which a prior is trained.

    Args:
        codes: [B, L] (position by position, as in the code data set) or [B, h, w] or [B, h, w, depth], any integer
            dtype, in [0, codebook_size).
        labels: [B] integers in [0, num_classes), or the values of another condition, [B, *value_shape]; None if and
            only if the prior is unconditional.
        drop: [B] bool; True replaces the class (the condition) by null, for guidance. None drops none.
        validate: check the ranges of `codes` and `labels`. On an accelerator this is a sync point: pass False there if
            the codes were checked when they were read.

    Returns:
        [B, prefix_length + L] int64, on the device of `codes`: the prefix and the codes in the order of the config.

    Raises:
        CodegridError: wrong shape, a code beyond the codebook, a label beyond the classes, missing or unexpected
            labels, or drop for a prior without a null class.
    """
    codes = _flat_codes(codes, config)
    if validate:
        _check_codes(codes, config)
    prefix = prefix_tokens(labels, len(codes), config, device=codes.device, validate=validate)  # [B, n]
    if drop is not None:
        require(config.null_class, "This prior has no null class: drop must be None.")
        require(
            drop.dtype == torch.bool and drop.shape == (len(codes),),
            f"drop must be bool of shape [{len(codes)}], not {drop.dtype} {list(drop.shape)}.",
        )
        prefix = torch.where(drop.to(prefix.device)[:, None], config.null_prefix.to(prefix.device), prefix)
    if config.order != "positions":
        codes = codes[:, config.code_of_token.to(codes.device)]
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
            f"This prior has {kind.describe()}: {kind.noun} must be given (drop replaces them by null).",
        )
        return config.null_prefix.to(device).expand(batch, -1)
    require(kind.vocab_size > 0, "This prior is unconditional: it takes no labels.")
    shape = (batch, *kind.value_shape)
    require(
        labels.shape == shape and _is_integer(labels),
        f"{kind.noun} must be integers of shape {list(shape)}, not {labels.dtype} {list(labels.shape)}.",
    )
    return kind.prefix(labels.to(device=device, dtype=torch.int64), validate) + config.codebook_size


def to_codes(tokens: Tensor, config: SequenceConfig) -> Tensor:
    """Code tokens without their prefix, [B, L] -> grids of codes [B, h, w] int64, or [B, h, w, depth] if depth > 1.

    Raises:
        CodegridError: wrong shape, or a token that is not a code.
    """
    require(
        tokens.dim() == 2 and _is_integer(tokens) and tokens.shape[1] == config.length,
        f"tokens must be integers of shape [B, {config.length}] (without the prefix), not {tokens.dtype} "
        f"{list(tokens.shape)}.",
    )
    tokens = tokens.long()
    _check_codes(tokens, config)
    if config.order != "positions":
        tokens = torch.empty_like(tokens).index_copy_(1, config.code_of_token.to(tokens.device), tokens)
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


def _flat_codes(codes: Tensor, config: SequenceConfig) -> Tensor:
    """[B, L] or [B, h, w(, depth)] -> [B, L] int64."""
    grid = config.grid_shape if config.depth == 1 else (*config.grid_shape, config.depth)
    require(
        _is_integer(codes) and tuple(codes.shape[1:]) in {(config.length,), grid},
        f"codes must be integers of shape [B, {config.length}] or [B, {', '.join(map(str, grid))}], not {codes.dtype} "
        f"{list(codes.shape)}.",
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
        f"prefix_codes has the shape {list(codes.shape)}, but the prior's order is {config.order!r}: give the first "
        "codes in that order, [B, P] (the top grid first).",
    )
    line = config.grid_shape[1:] if config.depth == 1 else (config.grid_shape[1], config.depth)
    require(
        _is_integer(codes) and (codes.dim() == 2 or tuple(codes.shape[2:]) == line),
        f"prefix_codes must be integers of shape [B, P] or [B, r, {', '.join(map(str, line))}], not {codes.dtype} "
        f"{list(codes.shape)}.",
    )
    codes = codes.flatten(1).long()
    require(
        codes.shape[1] < config.length,
        f"prefix_codes gives {codes.shape[1]} codes of {config.length}: it must leave at least one to sample.",
    )
    _check_codes(codes, config)
    return codes


def _check_codes(codes: Tensor, config: SequenceConfig) -> None:
    if not codes.numel():
        return
    low, high = (int(extreme) for extreme in codes.aminmax())
    require(
        low >= 0 and high < config.codebook_size,
        f"A code lies outside the codebook: they run from {low} to {high}, the codebook from 0 to "
        f"{config.codebook_size - 1}.",
    )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)

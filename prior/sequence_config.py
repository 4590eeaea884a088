"""What a prior's tokens mean: `SequenceConfig`, saved beside the prior as `sequence_config.json`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from codegrid.downloads import read_json
from codegrid.errors import CodegridError, MissingFileError, require
from codegrid.prior.conditioning import (
    ClassCondition,
    Condition,
    NoCondition,
    check_bounds,
    condition_from_dict,
    condition_to_dict,
)
from codegrid.prior.conditions import parts_of

SEQUENCE_CONFIG_NAME = "sequence_config.json"
# Upper bounds: a file gives these sizes, and tables and lists of the sizes are made.
MOST_CODES, MOST_POSITIONS = 2**31, 2**20
AXES = ("l", "ld", "dl", "hw", "hwd", "dhw", "thw", "thwd")  # `SequenceConfig.axes`


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
        axes: of codes without pictures (`codegrid import-codes`), the axes of a row as it was imported with their
            sizes, such as {"d": 8, "l": 75}: l positions, h rows, w columns, d codes a position, t frames (which lie
            below each other in the grid). None of pictures.

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
    axes: dict[str, int] | None = None

    def __post_init__(self) -> None:
        require(
            isinstance(self.grid_shape, (tuple, list)) and len(self.grid_shape) == 2,
            f"grid_shape is {self.grid_shape!r}.",
            "Give two numbers, rows and columns.",
        )
        object.__setattr__(self, "grid_shape", tuple(self.grid_shape))
        height, width = self.grid_shape
        sizes = {"codebook_size": self.codebook_size, "depth": self.depth}
        for name, value in {**sizes, "grid_shape[0]": height, "grid_shape[1]": width}.items():
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"{name} is {value!r}.",
                "Give a whole number of at least 1.",
            )
        require(
            self.codebook_size <= MOST_CODES, f"codebook_size is {self.codebook_size}.", f"Give at most {MOST_CODES}."
        )
        require(
            self.length <= MOST_POSITIONS,
            f"grid_shape {self.grid_shape} with {self.depth} codes a position is a sequence of {self.length} codes.",
            f"Take a tokenizer with fewer codes an image: at most {MOST_POSITIONS}.",
        )
        self._check_order()
        self._check_condition()
        self._check_axes()
        fingerprint = self.tokenizer_fingerprint
        require(
            fingerprint is None or isinstance(fingerprint, str),
            f"tokenizer_fingerprint is {fingerprint!r}.",
            "Give a string, or None.",
        )
        require(
            self.null_class is True or (self.null_class is False and self.conditioning.vocab_size > 0),
            f"null_class is {self.null_class!r}.",
            "Give True, or False where there are class_names.",
        )

    def _check_order(self) -> None:
        require(
            self.order in ("positions", "grids"), f"order is {self.order!r}.", "Choose one of 'positions', 'grids'."
        )
        require(
            self.order == "positions" or (self.depth > 1 and math.isqrt(self.depth - 1) ** 2 == self.depth - 1),
            f"order is 'grids', but depth is {self.depth}.",
            "Give a depth of 1 and a square, as 5 = 1 + 2 x 2, or the order 'positions'.",
        )

    def _check_axes(self) -> None:
        axes = self.axes
        known = isinstance(axes, dict) and "".join(axes) in AXES and all(type(size) is int for size in axes.values())
        require(
            axes is None or (known and math.prod(axes.values()) == self.length),
            f"axes is {axes!r}.",
            f"Give the sizes of one of {', '.join(AXES)}, together {self.length} codes; or None.",
        )

    def _check_condition(self) -> None:
        condition = self.condition
        if condition is not None and not isinstance(condition, Condition):
            condition = condition_from_dict(condition)
        require(
            condition is None or self.class_names is None,
            "There are class_names and a condition, and a prior follows one of them.",
            "Leave one of them out.",
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

    @property
    def part_of_token(self) -> Tensor:
        """[prefix_length] int64: the part of the condition that each token of the prefix is of."""
        counts = torch.tensor([part.num_tokens for part in parts_of(self.conditioning)])
        return torch.arange(len(counts)).repeat_interleave(counts)

    def without(self, prefixes: Tensor, drop: Tensor | Sequence[bool]) -> Tensor:
        """Prefixes [B, prefix_length] with null in place of the parts of the condition that are dropped.

        `drop` is bool [B] (all parts), [B, parts], or [parts] as a list.
        """
        if not isinstance(drop, Tensor):
            drop = torch.tensor(drop)[None].expand(len(prefixes), -1)
        drop = drop.to(prefixes.device, non_blocking=True)
        lost = drop[:, None] if drop.dim() == 1 else drop[:, self.part_of_token.to(drop.device, non_blocking=True)]
        return torch.where(lost, self.null_prefix.to(prefixes.device, non_blocking=True), prefixes)

    def class_token(self, label: int) -> int:
        """Prefix of a sequence of class `label`, in [0, num_classes).

        Raises:
            ValueError: there is no such class.
        """
        require(
            self.class_names is not None,
            "This prior is unconditional: it has no class tokens.",
            "Leave the labels out.",
        )
        self.conditioning.check_value(label)
        return self.codebook_size + int(label)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values. Without a condition it has no `condition`, as in older files; nor `axes`."""
        younger = ("condition", "axes")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in younger}
        values |= {} if self.condition is None else {"condition": condition_to_dict(self.condition)}
        return values | ({} if self.axes is None else {"axes": self.axes})

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
        if not path.is_file() and not path.is_symlink():
            raise MissingFileError(
                f"There is no {SEQUENCE_CONFIG_NAME} in {folder}: it is no prior, or was not saved with save_prior.",
                "Name a folder that `codegrid train-prior` or save_prior wrote.",
            )
        return _config_from_json(read_json(path), path)


def _config_from_json(values: dict[str, Any], path: Path) -> SequenceConfig:
    known = {field.name for field in fields(SequenceConfig)}
    younger = {"order", "null_class", "condition", "axes"}  # than the first saved priors
    unknown, missing = sorted(set(values) - known), sorted(known - set(values) - younger)
    require(
        not unknown,
        f"Unknown keys in {path}: {', '.join(unknown)}.",
        f"It may hold {', '.join(sorted(known))}: load it with the version of codegrid that wrote it.",
    )
    require(not missing, f"Keys missing from {path}: {', '.join(missing)}.", "Save or download the prior again.")
    try:
        return SequenceConfig(**values)
    except ValueError as error:
        raise CodegridError(f"{path} cannot be used ({error}).", "Save or download the prior again.") from error

"""Conditions of an image's codes; each kind is a prefix of tokens before the codes.

A kind is a frozen dataclass, and `sequence_config.json` stores its fields. This file has two kinds, none and class;
`conditions.py` has picture, text and combinations. Another package adds its own with `register_condition`.
"""

from __future__ import annotations

import difflib
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from codegrid.errors import CodegridError, require

MOST_CLASSES = 10**6  # an upper bound: a file gives the number of classes, and lists of that size are made


class Condition(ABC):
    """A kind of condition. Subclasses are frozen dataclasses that check their fields.

    Tokens start at 0 here. In a prior's vocabulary, `[codes | condition's tokens | null]`, they follow the codes.

    Attributes:
        type: the kind's name in the registry and in saved files.
        noun: the word for its values in error messages.
        columns: the columns of a code data set that `read` reads; integers, or lists of integers of one length.
    """

    type: ClassVar[str]
    noun: ClassVar[str] = "values"
    columns: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens of the prefix, at least 1."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of different tokens in prefixes, without null; 0 if there is no condition."""

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Shape of one image's value, which consists of integers."""
        return (self.num_tokens,)

    @property
    def null(self) -> tuple[int, ...]:
        """The prefix of an image without a condition: `num_tokens` numbers; `vocab_size` is the null token."""
        return (self.vocab_size,) * self.num_tokens

    def prefix(self, values: Tensor, validate: bool = True) -> Tensor:
        """Values int64 [B, *value_shape] -> tokens int64 [B, num_tokens] in [0, vocab_size), on the same device.

        Args:
            validate: refuse values out of their range. On an accelerator this is a synchronisation with the CPU.

        Raises:
            CodegridError: a value is out of its range.
        """
        if validate and values.numel():
            low, high = (int(extreme) for extreme in values.aminmax())
            self.check_value(low)
            self.check_value(high)
        return values.reshape(len(values), self.num_tokens)

    def check_value(self, value: int) -> None:
        require(
            0 <= value < self.vocab_size,
            f"The {self.noun} hold {value}.",
            f"Give values from 0 to {self.vocab_size - 1}.",
        )

    def read(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of `columns` of a code data set -> values [B, *value_shape], and which are known: bool [B].

        Unknown ones are trained as null. Their values must be in range too. Of a combination known is [B, parts].
        """
        values = columns[self.columns[0]]
        return values, torch.ones(len(values), dtype=torch.bool)

    @abstractmethod
    def parse(self, wanted: Iterable[Any]) -> list[Any]:
        """A user's input, one item per image (names, for example) -> values: integers or lists of integers.

        Raises:
            CodegridError: an item is not a value of this condition. The message says what is allowed.
        """

    def fields_of_file(self) -> dict[str, Any]:
        """The fields as plain values for a JSON file, without the type."""
        return asdict(self)  # type: ignore[call-overload]

    def name(self, value: Any) -> str:
        """The name of one image's value, for captions and file names."""
        return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    @abstractmethod
    def describe(self) -> str:
        """Text for cards and announcements that follows "with": "10 classes"."""


Kind = TypeVar("Kind", bound=type[Condition])
CONDITIONS: dict[str, type[Condition]] = {}


def register_condition(kind: Kind) -> Kind:
    """Register a kind of condition for saved priors and code data sets. Works as a decorator too.

    Raises:
        CodegridError: it has no `type`, or another kind has the same one.
    """
    name = getattr(kind, "type", None)
    require(
        isinstance(name, str) and bool(name), f"{kind.__name__} has no type.", "Give it the class attribute `type`."
    )
    known = CONDITIONS.get(name)
    same = known is None or (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__)
    require(same, f"There is a condition of the type {name!r} already.", "Choose another type.")
    CONDITIONS[name] = kind
    return kind


def condition_to_dict(condition: Condition) -> dict[str, Any]:
    """A condition as plain values for a JSON file."""
    return {"type": condition.type, **condition.fields_of_file()}


def condition_from_dict(values: Any) -> Condition:
    """The inverse of `condition_to_dict`.

    Raises:
        CodegridError: the type is not registered, a field is unknown or missing, or a value is wrong.
    """
    require(isinstance(values, Mapping), f"condition is {values!r:.200}.", "Give a JSON object with a type.")
    fields_given = dict(values)
    name = fields_given.pop("type", None)
    if not isinstance(name, str) or name not in CONDITIONS:
        raise CodegridError(
            f"condition has the type {name!r}, and known are {', '.join(CONDITIONS)}.",
            "Import the package that registers it first.",
        )
    kind = CONDITIONS[name]
    unknown = sorted(set(fields_given) - {field.name for field in fields(kind)})  # type: ignore[arg-type]
    require(
        not unknown,
        f"condition {name!r} has unknown fields: {', '.join(unknown)}.",
        "Leave them out, or use the version of the package that wrote them.",
    )
    try:
        return kind(**fields_given)
    except TypeError as error:
        raise CodegridError(
            f"condition {name!r} cannot be read ({error}).", "Give the fields that this type has."
        ) from error


def check_bounds(condition: Condition, most_tokens: int) -> None:
    """Refuse a condition with made-up sizes before anything of that size is allocated.

    Raises:
        CodegridError: it has no token, more than `most_tokens` tokens, or too large a vocabulary.
    """
    tokens, vocabulary = condition.num_tokens, condition.vocab_size
    require(
        1 <= tokens <= most_tokens,
        f"condition {condition.type!r} is a prefix of {tokens} tokens.",
        f"Give it 1 to {most_tokens}.",
    )
    require(
        0 <= vocabulary <= MOST_CLASSES,
        f"condition {condition.type!r} has {vocabulary} different tokens.",
        f"Give it at most {MOST_CLASSES}.",
    )


@register_condition
@dataclass(frozen=True)
class NoCondition(Condition):
    """No condition: the prefix is null."""

    type: ClassVar[str] = "none"

    @property
    def num_tokens(self) -> int:
        return 1

    @property
    def vocab_size(self) -> int:
        return 0

    def parse(self, wanted: Iterable[Any]) -> list[Any]:
        wanted = list(wanted)
        require(
            not wanted,
            f"This prior is unconditional: it has no classes, and cannot make {wanted[:3]!r}.",
            "Leave the classes out.",
        )
        return []

    def describe(self) -> str:
        return "no classes"


@register_condition
@dataclass(frozen=True)
class ClassCondition(Condition):
    """One class of a list: a prefix of one token. Values are labels [B] in [0, number of classes).

    Args:
        class_names: one unique name per class, in the order of the labels.
    """

    type: ClassVar[str] = "class"
    noun: ClassVar[str] = "labels"
    columns: ClassVar[tuple[str, ...]] = ("label",)

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = self.class_names
        require(
            isinstance(names, (tuple, list)) and len(names) >= 1 and all(isinstance(name, str) for name in names),
            f"class_names is {names!r:.200}.",
            "Give a list of at least one name, or None for no classes.",
        )
        require(len(names) <= MOST_CLASSES, f"class_names has {len(names)} classes.", f"Give at most {MOST_CLASSES}.")
        object.__setattr__(self, "class_names", tuple(names))
        seen: set[str] = set()
        for name in names:
            require(
                name not in seen, f"class_names has two classes called {name!r}.", "Give each class a name of its own."
            )
            seen.add(name)

    @property
    def num_tokens(self) -> int:
        return 1

    @property
    def vocab_size(self) -> int:
        return len(self.class_names)

    @property
    def value_shape(self) -> tuple[int, ...]:
        return ()

    def check_value(self, value: int) -> None:
        require(
            0 <= value < self.vocab_size,
            f"There is no class {value}.",
            f"Give a label from 0 to {self.vocab_size - 1} ({self._some()}).",
        )

    def read(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Images without a label among labelled ones have the label -1."""
        labels = columns["label"]
        return labels.clamp(min=0), labels >= 0

    def parse(self, wanted: Iterable[Any]) -> list[int]:
        """Class names or ids -> labels; see `resolve_labels`."""
        ids = {name: label for label, name in enumerate(self.class_names)}
        return [self._label(value, ids) for value in wanted]

    def name(self, value: Any) -> str:
        return self.class_names[value]

    def describe(self) -> str:
        return f"{self.vocab_size} classes"

    def _label(self, value: Any, ids: dict[str, int]) -> int:
        if isinstance(value, str):
            if value in ids:
                return ids[value]
            try:
                label = int(value)
            except ValueError:
                raise CodegridError(f"There is no class called {value!r}.", self._nearest(value)) from None
        else:
            require(
                isinstance(value, numbers.Integral) and not isinstance(value, bool),
                f"{value!r} is neither the name nor the number of a class.",
                f"Choose among {self._some()}, or give a number from 0 to {self.vocab_size - 1}.",
            )
            label = int(value)
        self.check_value(label)
        return label

    def _nearest(self, name: str) -> str:
        lowered = {known.lower(): known for known in self.class_names}
        close = [lowered[match] for match in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)]
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        return f"{hint}The classes are {self._some()}."

    def _some(self, limit: int = 20) -> str:
        names = ", ".join(self.class_names[:limit])
        return names if self.vocab_size <= limit else f"{names}, ... ({self.vocab_size} in all)"

"""Conditions other than a class: the codes of another picture, a text, and several conditions at once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from codegrid.errors import CodegridError, require
from codegrid.prior.conditioning import (
    MOST_CLASSES,
    ClassCondition,
    Condition,
    NoCondition,
    condition_from_dict,
    condition_to_dict,
    register_condition,
)

BYTES = "bytes"
_MOST_PARTS = 3  # of a combination: guidance of each has 2^parts branches
_MOST_TOKENS = 2**20
_PICTURE, _TEXT = "condition_codes", "prompt"  # columns of a code data set
_PROBE = "A Red-HEART,\tno. 12: \u00e9 e\u0301 \ufb01 \u732b  end"  # capitals, digits, marks, accents, spaces

_COPIES: dict[str, str] = {}  # folders of priors with the tokenizer of their texts, by the hash of its vocabulary
_logger = logging.getLogger(__name__)


@register_condition
@dataclass(frozen=True)
class PictureCondition(Condition):
    """Another picture, as its codes: values [B, rows * columns * depth] in the order of a code data set's row.

    Args:
        codebook_size, grid_shape, depth: of its codes.
        tokenizer_fingerprint: of the tokenizer that makes them, the images' own one or another; None if unknown.
        made_by: how the picture follows from the true one, such as "downscale:4" (pipelines/data/degradations.py);
            None if it is a picture of its own.
    """

    type: ClassVar[str] = "picture"
    noun: ClassVar[str] = "codes of the condition"
    columns: ClassVar[tuple[str, ...]] = (_PICTURE,)

    codebook_size: int
    grid_shape: tuple[int, int]
    depth: int = 1
    tokenizer_fingerprint: str | None = None
    made_by: str | None = None

    def __post_init__(self) -> None:
        shape = self.grid_shape
        require(
            isinstance(shape, (tuple, list)) and len(shape) == 2,
            f"grid_shape of the condition is {shape!r}.",
            "Give two numbers, rows and columns.",
        )
        object.__setattr__(self, "grid_shape", tuple(shape))
        sizes = {"codebook_size": self.codebook_size, "depth": self.depth}
        for name, value in {**sizes, "grid_shape[0]": shape[0], "grid_shape[1]": shape[1]}.items():
            _check_size(f"{name} of the condition", value, MOST_CLASSES)
        for name in ("tokenizer_fingerprint", "made_by"):
            value = getattr(self, name)
            require(value is None or isinstance(value, str), f"{name} is {value!r}.", "Give a string, or None.")

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid_shape) * self.depth

    @property
    def codes_of(self) -> tuple[int, tuple[int, int], int, str | None]:
        """What its codes are of: size of the codebook, grid, depth, fingerprint of the tokenizer."""
        return self.codebook_size, self.grid_shape, self.depth, self.tokenizer_fingerprint

    @property
    def vocab_size(self) -> int:
        return self.codebook_size

    def parse(self, wanted: Iterable[Any]) -> list[list[int]]:
        """Codes of each picture, in any shape with `num_tokens` numbers."""
        return [self._codes(value) for value in wanted]

    def name(self, value: Any) -> str:
        return ""

    def describe(self) -> str:
        made = f" ({self.made_by})" if self.made_by else ""
        return f"a picture of {self.num_tokens} tokens{made}"

    def _codes(self, value: Any) -> list[int]:
        try:
            codes = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._no_codes(type(value).__name__) from error
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
        if not whole or codes.numel() != self.num_tokens:
            raise self._no_codes(f"{codes.dtype} {list(codes.shape)}")
        return codes.flatten().tolist()

    def _no_codes(self, found: str) -> CodegridError:
        return CodegridError(
            f"A condition is {found}, and this prior follows the {self.num_tokens} codes of a picture.",
            f"Give {self.num_tokens} whole numbers below {self.codebook_size}; a pipeline takes pictures (condition=).",
        )


@register_condition
@dataclass(frozen=True)
class TextCondition(Condition):
    """A text as the ids of its tokens: values [B, length]. Short texts end in the id `num_ids`, long ones are cut.

    Args:
        length: tokens of every text.
        tokenizer: "bytes" (UTF-8, nothing to download), or the folder or Hub name of a tokenizer of transformers.
        num_ids: its number of ids.
        tokenizer_hash: sha256 of what makes its ids, so that another tokenizer of that name is refused; None for bytes.
    """

    type: ClassVar[str] = "text"
    noun: ClassVar[str] = "tokens of the text"
    columns: ClassVar[tuple[str, ...]] = (_TEXT,)

    length: int
    tokenizer: str = BYTES
    num_ids: int = 256
    tokenizer_hash: str | None = None

    def __post_init__(self) -> None:
        _check_size("length of the text", self.length, _MOST_TOKENS)
        _check_size("num_ids of the text's tokenizer", self.num_ids, MOST_CLASSES - 1)
        require(
            isinstance(self.tokenizer, str) and bool(self.tokenizer),
            f"The text's tokenizer is {self.tokenizer!r}.",
            f"Give {BYTES!r}, or the folder or Hub name of a tokenizer of transformers.",
        )

    @classmethod
    def of(cls, tokenizer: str = BYTES, length: int = 64) -> TextCondition:
        """The condition of a tokenizer, which is loaded.

        Raises:
            CodegridError: it cannot be loaded.
        """
        if tokenizer == BYTES:
            return cls(length)
        loaded, made_by = _tokenizer(tokenizer)
        return cls(length, tokenizer, max(loaded.get_vocab().values()) + 1, made_by)

    @property
    def num_tokens(self) -> int:
        return self.length

    @property
    def vocab_size(self) -> int:
        return self.num_ids + 1

    def parse(self, wanted: Iterable[Any]) -> list[list[int]]:
        """Texts -> their ids. A text that is too long is cut; a line in the log says so."""
        values, cut = [], []
        for text in [wanted] if isinstance(wanted, str) else wanted:
            require(isinstance(text, str), f"A prompt is a {type(text).__name__}.", "Give a string for each image.")
            ids, was_cut = self.encode(text)
            values.append(ids)
            cut += [text] if was_cut else []
        if cut:
            what = "A prompt is" if len(cut) == 1 else f"{len(cut)} prompts are"
            _logger.warning(
                f"{what} longer than the {self.length} tokens that this prior reads, and cut: "
                f"{self.name(self.encode(cut[0])[0])!r}."
            )
        return values

    def encode(self, text: str) -> tuple[list[int], bool]:
        """A text of any characters, lone surrogates and names of other bytes too -> its ids, and whether it was cut."""
        raw = _bytes(text)
        ids = list(raw)
        if self.tokenizer != BYTES:
            ids = self.loaded().encode(raw.decode("utf-8", "replace"), add_special_tokens=False)
        kept = ids[: self.length]
        if self.tokenizer == BYTES and len(ids) > self.length:
            end = self.length
            while end and ids[end] & 0xC0 == 0x80:  # not in the middle of a character
                end -= 1
            kept = ids[: end or self.length]
        return kept + [self.num_ids] * (self.length - len(kept)), len(ids) > self.length

    def name(self, value: Any) -> str:
        ids = [int(number) for number in value if number != self.num_ids]
        if self.tokenizer == BYTES:
            return bytes(ids).decode(errors="replace")
        return str(self.loaded().decode(ids))

    def describe(self) -> str:
        by = BYTES if self.tokenizer == BYTES else f"tokens of {self.tokenizer}"
        return f"a text of up to {self.length} {by}"

    def loaded(self) -> Any:
        """Its tokenizer of transformers.

        Raises:
            CodegridError: it cannot be loaded, or makes other ids than in training.
        """
        tokenizer, made_by = _tokenizer(_COPIES.get(self.tokenizer_hash or "", self.tokenizer))
        require(
            self.tokenizer_hash in (None, made_by),
            f"The text's tokenizer {self.tokenizer!r} makes other ids of texts than when the prior was trained.",
            "Give the version that made the codes of the texts.",
        )
        return tokenizer


@register_condition
@dataclass(frozen=True)
class CombinedCondition(Condition):
    """Two or three conditions, whose prefixes follow each other. Each has a null and a guidance scale of its own.

    Values are those of the parts, flat, side by side: [B, sum of their numbers]. In the vocabulary the parts' tokens
    follow each other too; they share the null token.

    Args:
        parts: conditions of different types.
    """

    type: ClassVar[str] = "combined"

    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        require(
            isinstance(self.parts, (tuple, list)) and 2 <= len(self.parts) <= _MOST_PARTS,
            f"A combination has the parts {self.parts!r:.200}.",
            f"Give 2 to {_MOST_PARTS} conditions.",
        )
        parts = tuple(part if isinstance(part, Condition) else condition_from_dict(part) for part in self.parts)
        types = [part.type for part in parts]
        nested = any(isinstance(part, (NoCondition, CombinedCondition)) for part in parts)
        require(
            len(set(types)) == len(types) and not nested,
            f"A combination has parts of the types {', '.join(types)}.",
            "Give conditions of different types, such as class and picture.",
        )
        object.__setattr__(self, "parts", parts)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)

    @property
    def vocab_size(self) -> int:
        return sum(part.vocab_size for part in self.parts)

    @property
    def noun(self) -> str:  # type: ignore[override]
        return " and ".join(part.noun for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(column for part in self.parts for column in part.columns)

    @property
    def value_shape(self) -> tuple[int, ...]:
        return (sum(self._sizes),)

    def prefix(self, values: Tensor, validate: bool = True) -> Tensor:
        tokens, first = [], 0
        for part, own in zip(self.parts, self.values_of_parts(values), strict=True):
            tokens.append(part.prefix(own, validate) + first)
            first += part.vocab_size
        return torch.cat(tokens, 1)

    def values_of_parts(self, values: Tensor) -> list[Tensor]:
        """Values [B, n] -> those of each part, [B, *value_shape]."""
        found = values.split(self._sizes, 1)
        return [own.reshape(len(own), *part.value_shape) for own, part in zip(found, self.parts, strict=True)]

    def read(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Known ones are bool [B, parts]."""
        values, known = zip(*(part.read(columns) for part in self.parts), strict=True)
        return torch.cat([own.reshape(len(own), -1) for own in values], 1), torch.stack(known, 1)

    def parse(self, wanted: Iterable[Any]) -> list[list[int]]:
        """A tuple of inputs for each image, one for each part."""
        rows = [tuple(row) if isinstance(row, (tuple, list)) else (row,) for row in wanted]
        kinds = ", ".join(part.type for part in self.parts)
        for row in rows:
            require(
                len(row) == len(self.parts),
                f"An image's condition is {row!r:.100}, and this prior follows {self.describe()}.",
                f"Give a tuple for each image: {kinds}; a pipeline takes class_labels=, condition= and prompt=.",
            )
        found = [part.parse(column) for part, column in zip(self.parts, zip(*rows, strict=True), strict=True)]
        return [[number for own in row for number in _flat(own)] for row in zip(*found, strict=True)]

    def name(self, value: Any) -> str:
        names, first = [], 0
        for part, size in zip(self.parts, self._sizes, strict=True):
            own = list(value[first : first + size])
            names.append(part.name(own if part.value_shape else own[0]))
            first += size
        return " ".join(name for name in names if name)

    def describe(self) -> str:
        return f"{' and '.join(part.describe() for part in self.parts)}, {self.num_tokens} tokens in all"

    def fields_of_file(self) -> dict[str, Any]:
        return {"parts": [condition_to_dict(part) for part in self.parts]}

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(part.value_shape) for part in self.parts]


def parts_of(condition: Condition) -> tuple[Condition, ...]:
    """The conditions that have a null of their own: the parts of a combination, or the condition itself."""
    return condition.parts if isinstance(condition, CombinedCondition) else (condition,)


def classes_of(condition: Condition) -> tuple[str, ...]:
    """The classes that are followed, alone or beside pictures and texts; empty if there are none."""
    return next((part.class_names for part in parts_of(condition) if isinstance(part, ClassCondition)), ())


def save_text_tokenizer(condition: Condition, folder: str | Path) -> None:
    """Write the tokenizer of the texts that a prior follows into the prior's folder, which is then whole.

    Bytes need none. One that cannot be loaded any more costs no training: a line in the log says that it is missing.
    """
    for text in _with_tokenizer(condition):
        try:
            text.loaded().save_pretrained(folder)
        except CodegridError as error:
            _logger.warning(f"The prior is saved without the tokenizer of its texts. {error}")


def find_text_tokenizer(condition: Condition, folder: Path) -> None:
    """Let texts be read by the tokenizer in a prior's folder, where one is: the place of its training may be gone."""
    for text in _with_tokenizer(condition):
        if text.tokenizer_hash and (folder / "tokenizer_config.json").is_file():
            _COPIES[text.tokenizer_hash] = str(folder)


def _with_tokenizer(condition: Condition) -> list[TextCondition]:
    return [part for part in parts_of(condition) if isinstance(part, TextCondition) and part.tokenizer != BYTES]


def combined(*conditions: Condition | None) -> Condition | None:
    """One condition of those that are given: a combination, where there are several; None, where there is none."""
    given = tuple(condition for condition in conditions if condition is not None)
    return CombinedCondition(given) if len(given) > 1 else given[0] if given else None


def _check_size(what: str, value: Any, most: int) -> None:
    require(
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most,
        f"{what} is {value!r}.",
        f"Give a whole number from 1 to {most}.",
    )


def _flat(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


@cache
def _tokenizer(name: str) -> tuple[Any, str]:
    """A tokenizer of transformers, and the hash of what makes its ids: vocabulary, merges or scores, and a text's ids.

    The text stands for capitals, spaces and words, whose part of the file changes with the library's versions.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = json.loads(loaded.backend_tokenizer.to_str())["model"] if loaded.is_fast else {}
        ids = [sorted(loaded.get_vocab().items()), loaded.encode(_PROBE, add_special_tokens=False)]
        made_by = json.dumps([*ids, model.get("merges"), model.get("vocab")])
        return loaded, hashlib.sha256(made_by.encode()).hexdigest()
    except Exception as error:  # transformers and tokenizers raise whatever their files do
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise CodegridError(
            f"The text's tokenizer {name!r} cannot be loaded: {reason}.",
            f"Name a folder or a Hub repository with a tokenizer of transformers, or {BYTES!r}.",
        ) from error

"""Probabilities by neighbouring codes, in integers alone: a file of them reads alike on every machine.

log2 p(code | neighbours) + constant = log2 p(code) + sum over the neighbours n of e_n log2 (p(code | n) / p(code)), a
product of experts (Hinton 2002). The logarithms are counted from a code data set once and rounded to 1/256; what is
computed for a file is sums of these integers and a power of 2 from a table.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.codec.decisions import bits_of
from codegrid.pipelines.codec.models import IntegerModel
from codegrid.pipelines.system.files import write_atomically, write_json

CONTEXT_FOLDER = "context"  # inside a pipeline's folder
_FILE_NAME, CONTEXT_CONFIG_NAME = "context.safetensors", "context_config.json"
# Rows and columns back to a neighbour in the grid; the last is the coarser code at the same position.
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_UNIT = 256  # logarithms are in 1 / _UNIT
_SMOOTHING = 100  # pseudo-counts of log p(code) in log p(code | neighbour)
_LEAST = -30 * _UNIT  # below it, a code's logarithm counts as this
_MOST_DENSE = 2**24  # values of a table that is kept whole in memory


@dataclass(frozen=True)
class Table:
    """log2 (p(code | neighbour) / p(code)) of one kind of neighbour, in 1/256, with its exponent in it already.

    Attributes:
        default: int32 [K + 1], the value of codes that were not seen beside the neighbour; K is "no neighbour".
        start: int64 [K + 2]; the codes that were seen beside neighbour n are codes[start[n]:start[n + 1]].
        codes: int32 [N].
        values: int32 [N], added to `default`.
    """

    default: np.ndarray
    start: np.ndarray
    codes: np.ndarray
    values: np.ndarray

    @functools.cached_property
    def dense(self) -> np.ndarray | None:
        """All values, int16 [K + 1, K], if they are few: adding whole rows is several times as fast."""
        size = len(self.default) - 1
        if size * (size + 1) > _MOST_DENSE:
            return None
        values = np.zeros((size + 1, size), dtype=self.default.dtype)
        self._add_sparse(values, np.arange(size + 1))
        return values.astype(np.int16) if np.abs(values).max(initial=0) < 2**15 else None

    def add_to(self, logs: np.ndarray, neighbours: np.ndarray) -> None:
        """logs [B, K] += the values for neighbours [B]."""
        if self.dense is not None and logs.dtype == np.int32:
            logs += self.dense[neighbours]
        else:
            self._add_sparse(logs, neighbours)

    def _add_sparse(self, logs: np.ndarray, neighbours: np.ndarray) -> None:
        logs += self.default[neighbours][:, None]
        first, number = self.start[neighbours], self.start[neighbours + 1] - self.start[neighbours]
        rows = np.repeat(np.arange(len(neighbours)), number)
        places = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + np.repeat(first, number)
        logs[rows, self.codes[places]] += self.values[places]  # a pair of row and code occurs once


class ContextModel(IntegerModel):
    """Tables of neighbours, per level of the codes (`depth`).

    Args:
        logs: log2 p(code) of each level in 1/256, int32 [depth, K].
        tables: for each level its tables, of the neighbours `_NEIGHBOURS` and, from the second level on, of the coarser
            code.
        tokenizer_fingerprint: of the tokenizer whose codes were counted.
    """

    number = 1

    def __init__(self, logs: np.ndarray, tables: list[list[Table]], tokenizer_fingerprint: str) -> None:
        self.logs, self.tables, self.tokenizer_fingerprint = logs, tables, tokenizer_fingerprint
        self.codebook_size = logs.shape[1]
        digest = hashlib.sha256(tokenizer_fingerprint.encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).astype("<i8").tobytes())
        self.fingerprint = digest.digest()[:4]

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse a pipeline whose tokenizer has another fingerprint.

        Raises:
            LoadingError: it has.
        """
        if self.tokenizer_fingerprint != fingerprint:
            raise LoadingError(
                "The context model was counted from codes of the tokenizer with fingerprint "
                f"{self.tokenizer_fingerprint[:12]}; this tokenizer's is {fingerprint[:12]}.",
                "Count it again: codegrid make-pipeline ... --context CODES.",
            )

    def leaves(self, codes: np.ndarray, place: int) -> np.ndarray:
        _, width, depth = codes.shape[1:]
        row, column, level = place // (width * depth), place // depth % width, place % depth
        logs = np.repeat(self.logs[level][None], len(codes), axis=0)  # [B, K]
        for table, neighbours in zip(
            self.tables[level], neighbours_of(codes, row, column, level, self.codebook_size), strict=True
        ):
            table.add_to(logs, neighbours)
        return _powers(logs, bits_of(self.codebook_size))

    @property
    def num_bytes(self) -> int:
        """The size of the tables."""
        return sum(array.nbytes for array in self._arrays().values())

    def save(self, folder: Path) -> None:
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _FILE_NAME, lambda aside: save_file(arrays, aside))
        write_json(
            folder / CONTEXT_CONFIG_NAME,
            {
                "tokenizer_fingerprint": self.tokenizer_fingerprint,
                "codebook_size": self.codebook_size,
                "depth": len(self.logs),
                "fingerprint": self.fingerprint.hex(),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> ContextModel:
        """Read what `save` wrote.

        Raises:
            LoadingError: the files are missing, damaged or do not fit each other.
        """
        try:
            config = json.loads((folder / CONTEXT_CONFIG_NAME).read_text(encoding="utf-8"))
            arrays = load_file(folder / _FILE_NAME)
            depth = int(config["depth"])
            tables = [
                [
                    Table(*(arrays[f"{level}.{index}.{name}"] for name in Table.__dataclass_fields__))
                    for index in range(len(_NEIGHBOURS) + (level > 0))
                ]
                for level in range(depth)
            ]
            model = cls(arrays["logs"], tables, config["tokenizer_fingerprint"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LoadingError(
                f"{folder} does not hold a context model ({type(error).__name__}: {error}).",
                "Make it again: codegrid make-pipeline ... --context CODES.",
            ) from error
        if model.fingerprint.hex() != config["fingerprint"]:
            raise LoadingError(
                f"The context model in {folder} is damaged: its tables have another fingerprint than its config.",
                "Make it again: codegrid make-pipeline ... --context CODES.",
            )
        return model

    @classmethod
    def of_pipeline(cls, folder: Path) -> ContextModel | None:
        """The context model of a pipeline's folder, or None if it has none."""
        inside = folder / CONTEXT_FOLDER
        return cls.load(inside) if (inside / CONTEXT_CONFIG_NAME).is_file() else None

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"logs": self.logs}
        for level, tables in enumerate(self.tables):
            for index, table in enumerate(tables):
                arrays |= {f"{level}.{index}.{name}": value for name, value in vars(table).items()}
        return arrays


def neighbours_of(codes: np.ndarray, row: int, column: int, level: int, none: int) -> list[np.ndarray]:
    """Codes [B, h, w, depth] -> the neighbours of one place, [B] each, in the order of a level's tables."""
    width = codes.shape[2]
    found = []
    for up, left in _NEIGHBOURS:
        inside = row >= up and 0 <= column - left < width
        outside = np.full(len(codes), none, dtype=np.int64)
        found.append(codes[:, row - up, column - left, level] if inside else outside)
    return [*found, codes[:, row, column, level - 1]] if level else found


@functools.cache
def _exponentials(bits: int) -> np.ndarray:
    """max(1, floor(2^(bits + f / 256)) >> n) of the logarithms x = f - 256 n from `_LEAST` to 0, int32 [1 - _LEAST].

    By integer roots: alike on every machine.
    """
    roots = [1 << (_UNIT * bits + f) for f in range(_UNIT)]
    for _ in range(_UNIT.bit_length() - 1):  # 2^8 is 256: the root of that degree is eight square roots
        roots = [math.isqrt(root) for root in roots]
    return np.array([max(1, roots[x % _UNIT] >> -(x // _UNIT)) for x in range(_LEAST, 1)], dtype=np.int32)


def _powers(logs: np.ndarray, height: int) -> np.ndarray:
    """Logarithms int32 [B, K] -> weights [B, K] of at least 1, relative to each row's greatest, about 2^bits.

    The sum of a row fits into 31 bits (int32) for trees of up to ten levels, else into 39 (int64).
    """
    small = height <= 10
    bits = 30 - height if small else min(22, 38 - height)
    # Places in the table: what lies below `_LEAST` takes its first entry.
    places = logs - (logs.max(axis=1, keepdims=True) + _LEAST)
    weights = np.take(_exponentials(bits), places, mode="clip")
    return weights if small else weights.astype(np.int64)


def count_contexts(codes: np.ndarray, codebook_size: int, tokenizer_fingerprint: str) -> ContextModel:
    """Count a context model from codes of a data set, int [N, h, w, depth].

    A tenth of the images is not counted but used to choose the exponents of the neighbours, by maximum likelihood.

    Raises:
        CodegridError: there are fewer than 20 images.
    """
    require(
        len(codes) >= 20,
        f"There are {len(codes)} images: a context model is counted from at least 20.",
        "Tokenize more pictures.",
    )
    codes = codes.astype(np.int64)
    chosen = np.random.default_rng(0).permutation(len(codes)) < max(2, len(codes) // 10)
    logs, tables = [], []
    for level in range(codes.shape[3]):
        counts = np.bincount(codes[~chosen, :, :, level].ravel(), minlength=codebook_size) + 0.5
        log = np.log2(counts / counts.sum())
        raw = [_raw_table(*_pairs(codes[~chosen], level, index, codebook_size), log) for index in _kinds(level)]
        exponents = _fitted(codes[chosen], level, log, raw)
        logs.append(np.round(_UNIT * log).astype(np.int32))
        tables.append([_scaled(table, exponent) for table, exponent in zip(raw, exponents, strict=True)])
    return ContextModel(np.stack(logs), tables, tokenizer_fingerprint)


def _kinds(level: int) -> range:
    return range(len(_NEIGHBOURS) + (level > 0))


def _pairs(codes: np.ndarray, level: int, kind: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a code and its neighbour of one kind: neighbours [n], codes [n]."""
    _, height, width, _ = codes.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    neighbours = [neighbours_of(codes, row, column, level, none)[kind] for row, column in places]
    return np.concatenate(neighbours), np.concatenate([codes[:, row, column, level] for row, column in places])


def _raw_table(neighbours: np.ndarray, codes: np.ndarray, log: np.ndarray) -> Table:
    """log2 ((count + a p) / (total + a) / p), a pseudo-counts, as floats with exponent 1."""
    size = len(log)
    pairs, counts = np.unique(neighbours * size + codes, return_counts=True)
    totals = np.bincount(neighbours, minlength=size + 1)
    default = np.log2(_SMOOTHING / (totals + _SMOOTHING))
    seen = pairs % size
    values = np.log2(1 + counts / (_SMOOTHING * np.exp2(log[seen])))
    start = np.searchsorted(pairs // size, np.arange(size + 2))
    return Table(default, start.astype(np.int64), seen.astype(np.int32), values)


def _scaled(table: Table, exponent: float) -> Table:
    default, values = (np.round(_UNIT * exponent * array).astype(np.int32) for array in (table.default, table.values))
    return Table(default, table.start, table.codes, values)


def _fitted(codes: np.ndarray, level: int, log: np.ndarray, tables: list[Table], most: int = 4096) -> list[float]:
    """The exponents that make these codes likeliest; their logarithms are concave in them."""
    size = len(log)
    pairs = [_pairs(codes, level, kind, size) for kind in _kinds(level)]
    chosen = np.random.default_rng(1).permutation(len(pairs[0][1]))[: min(most, max(64, 2**25 // size))]
    target = torch.from_numpy(pairs[0][1][chosen])
    features = []
    for table, (neighbours, _) in zip(tables, pairs, strict=True):
        dense = np.zeros((len(chosen), size))
        table.add_to(dense, neighbours[chosen])
        features.append(torch.from_numpy(dense.astype(np.float32)))
    stacked = torch.stack(features, -1) * np.log(2)  # [n, K, kinds]
    base = torch.from_numpy(log.astype(np.float32)) * np.log(2)
    exponents = torch.full((len(tables),), 1 / len(tables), requires_grad=True)
    optimizer = torch.optim.LBFGS([exponents], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(base + stacked @ exponents, target)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return exponents.detach().tolist()

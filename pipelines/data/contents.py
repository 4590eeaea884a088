"""What the pictures of a run were when it first read them: a picture that has other bytes since is found."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch
from torch import Tensor

from codegrid.pipelines.data.records import DataError, ImageSource


def short(content: str) -> int:
    """The first 8 bytes of a `content_hash` as an int64 that is not 0."""
    return int.from_bytes(bytes.fromhex(content[:16]), "big", signed=True) or 1


class Contents:
    """The contents of the pictures of `source`, as far as they were read.

    They are hashed where the bytes are read anyway, in the processes that load pictures; a checkpoint holds 16 bytes of
    each picture.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._known = np.zeros(len(source), np.int64)  # 0: not read yet
        self._new: list[int] = []
        self._hashed_names: np.ndarray | None = None

    def add(self, rows: np.ndarray, contents: np.ndarray) -> None:
        """Note pictures that were read, int64 [R] each: their rows in the source and the `short` of their contents.

        Raises:
            DataError: one had other bytes before.
        """
        before = self._known[rows]
        if len(changed := rows[(before != 0) & (before != contents)]):
            name = self._source[int(changed[0])].source_id
            raise DataError(
                f"{name} has other bytes than when this run first read it.",
                "Put the old file back and run the same command again, or start a new run from this one's weights: "
                "--init-from its export, and another --output-dir.",
            )
        self._new += rows[before == 0].tolist()
        self._known[rows] = contents

    def take_new(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, contents) that were added since the last call, for the other ranks."""
        rows, self._new = np.unique(np.array(self._new, np.int64)), []
        return rows, self._known[rows]

    def tensors(self) -> dict[str, Tensor]:
        """Hashes of names and contents, int64 [R] each; empty where nothing was read."""
        rows = self._known.nonzero()[0]
        if not len(rows):
            return {}
        return {"names": torch.from_numpy(self._names()[rows]), "contents": torch.from_numpy(self._known[rows])}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`. Pictures that the source does not have are left out."""
        if not tensors:
            return
        names, order = self._names(), np.argsort(self._names(), kind="stable")
        saved = tensors["names"].numpy()
        places = np.searchsorted(names, saved, sorter=order).clip(max=len(names) - 1)
        rows = order[places]
        found = names[rows] == saved
        self._known[rows[found]] = tensors["contents"].numpy()[found]

    def _names(self) -> np.ndarray:
        """A hash of each source id, int64 [N]."""
        if self._hashed_names is None:
            hashes = [hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in self._source.names()]
            self._hashed_names = np.frombuffer(b"".join(hashes), np.int64)
        return self._hashed_names

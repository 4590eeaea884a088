""".npz files of other projects: mean and covariance of features, and pictures as one array (ADM's samples).

Nothing is unpickled, and nothing is allocated before the sizes that the file states are checked.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from codegrid.names import shown
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.system.files import sha256, write_atomically

_MEAN, _COVARIANCE, _PICTURES = "mu", "sigma", "arr_0"
_MOST_DIMENSIONS, _MOST_SIDE, _MOST_PICTURES = 16_384, 16_384, 100_000_000
_MOST_TEXT = 200
_KNOWN = "It must have mu and sigma, as pytorch-fid, clean-fid and ADM write them, or pictures in arr_0."


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of features, float64; `noted` is what the file says of how they were made."""

    mean: Tensor
    covariance: Tensor
    noted: dict[str, str]


class NpzFile:
    """What an .npz file has: `statistics`, pictures, or both.

    Attributes:
        fingerprint: sha256 of the file.
        shape: (N, H, W, C) of the pictures, uint8, or None.

    Raises:
        DataError: it is no .npz file, has neither, or arrays of another kind than they must be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.name = shown(self.path)
        if not self.path.is_file():
            raise DataError(f"{self.name} does not exist.", "Name an .npz file, or a folder of pictures.")
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                self.headers = {name.removesuffix(".npy"): _header(archive, name) for name in names}
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise DataError(f"{self.name} is no .npz file of plain arrays ({error}).", _KNOWN) from error
        self.has_statistics = {_MEAN, _COVARIANCE} <= set(self.headers)
        self.shape = self._shape_of_pictures() if _PICTURES in self.headers else None
        if not self.has_statistics and self.shape is None:
            raise DataError(f"{self.name} has {', '.join(self.headers) or 'no arrays'}.", _KNOWN)
        self.fingerprint = sha256(self.path)

    def _shape_of_pictures(self) -> tuple[int, int, int, int]:
        shape, fortran, dtype = self.headers[_PICTURES]
        fits = len(shape) == 4 and shape[3] in (1, 3) and dtype == np.uint8 and not fortran
        if not fits or not all(1 <= side <= _MOST_SIDE for side in shape[1:3]) or not 1 <= shape[0] <= _MOST_PICTURES:
            raise DataError(
                f"arr_0 in {self.name} is {dtype} {list(shape)}.", "Pictures are uint8 [N, H, W, 3], in C order."
            )
        return shape[0], shape[1], shape[2], shape[3]

    def read_statistics(self, dimensions: int, net: dict[str, str]) -> Statistics:
        """Mean and covariance.

        Args:
            dimensions: number of the net's features.
            net: what the net says of itself; a file that says otherwise is refused.

        Raises:
            DataError: they are of another number of features, of another net, not symmetric or not finite.
        """
        shapes = {name: self.headers[name][0] for name in (_MEAN, _COVARIANCE)}
        of_floats = all(self.headers[name][2].kind == "f" for name in shapes)
        found = f"mu {list(shapes[_MEAN])} and sigma {list(shapes[_COVARIANCE])} in {self.name}"
        if not of_floats or shapes != {_MEAN: (dimensions,), _COVARIANCE: (dimensions, dimensions)}:
            raise DataError(
                f"{found} are not those of the feature net {net['name']}, which has {dimensions:,} features.",
                "Name the net that the statistics were made with by --feature-net, or give the pictures.",
            )
        noted = {name: str(value) for name, value in self._texts().items()}
        other = [name for name in net if noted.get(f"net_{name}", net[name]) != net[name]]
        if other:
            raise DataError(
                f"{self.name} was made with another feature net: "
                + ", ".join(f"{name} {noted[f'net_{name}']!r}, not {net[name]!r}" for name in other)
                + ".",
                "Name that net by --feature-net (--feature-weights), or give the pictures.",
            )
        with np.load(self.path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name].astype(np.float64)) for name in (_MEAN, _COVARIANCE))
        if not bool(mean.isfinite().all()) or not bool(covariance.isfinite().all()):
            raise DataError(f"{found} have values that are not numbers.", "Make the file again.")
        if not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * float(covariance.abs().max())):
            raise DataError(f"sigma in {self.name} is not symmetric: it is no covariance.", "Make the file again.")
        if float(covariance.diagonal().min()) < 0:
            raise DataError(f"sigma in {self.name} has a negative variance.", "Make the file again.")
        return Statistics(mean, covariance, noted)

    def _texts(self) -> dict[str, str]:
        wanted = [
            name
            for name, (shape, _, dtype) in self.headers.items()
            if shape == () and dtype.kind == "U" and dtype.itemsize <= 4 * _MOST_TEXT
        ]
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name].item() for name in wanted}

    def pictures(self, rows: Sequence[int], at_once: int) -> Iterator[Tensor]:
        """The pictures of `rows`, which ascend: uint8 [n, H, W, C], at most `at_once` at a time.

        Raises:
            DataError: the file ends early.
        """
        assert self.shape is not None
        size = math.prod(self.shape[1:])
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{_PICTURES}.npy") as file:
            _read_header(file)
            place, kept = 0, []
            for row in rows:
                while place < row:  # skipped in parts: a compressed file has no other way
                    step = min(row - place, at_once)
                    _exactly(file, step * size, self.name)
                    place += step
                kept.append(np.frombuffer(_exactly(file, size, self.name), np.uint8).reshape(self.shape[1:]))
                place += 1
                if len(kept) == at_once:
                    yield torch.from_numpy(np.stack(kept))
                    kept = []
            if kept:
                yield torch.from_numpy(np.stack(kept))


def write_statistics(path: Path, mean: Tensor, covariance: Tensor, noted: dict[str, Any]) -> None:
    """Write mean [D] and covariance [D, D] as mu and sigma, and what is `noted` as texts."""
    texts = {name: np.array(str(value)[:_MOST_TEXT]) for name, value in noted.items()}

    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # numpy would add .npz to a name
            np.savez(file, **{_MEAN: mean.numpy(), _COVARIANCE: covariance.numpy(), **texts})

    write_atomically(path, write)


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    with archive.open(name) as file:
        shape, fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    if len(shape) <= 2 and any(side > _MOST_DIMENSIONS for side in shape):
        raise ValueError(f"{name} has {list(shape)} numbers, more than {_MOST_DIMENSIONS:,} a side")
    return shape, fortran, dtype


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"arrays of version {version}")


def _exactly(file: IO[bytes], number: int, name: str) -> bytes:
    try:
        data = file.read(number)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{name} is damaged: {error}.", "Get or make the file again.") from error
    if len(data) != number:
        raise DataError(f"{name} ends before its last picture.", "Get or make the file again.")
    return data

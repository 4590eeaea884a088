"""Sets of real pictures or of finished samples: a folder, a table, or an .npz file, cut alike, and their features."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from codegrid.names import shown
from codegrid.pipelines.data.batches import Pictures, read_picture
from codegrid.pipelines.data.records import DataConfig, DataError, ImageRecord, ImageSource
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.features import FeatureCache
from codegrid.pipelines.evaluation.left_out import describe_left_out, left_out
from codegrid.pipelines.evaluation.npz_files import NpzFile
from codegrid.pipelines.system.devices import wait_patiently
from codegrid.tokenizer.images import FORMATS, Preprocessing

_CHUNK = 250  # pictures per entry of the feature cache
_SHEET_NAME, _SETTINGS_NAME = "samples.png", "generation.json"  # of `codegrid generate`, beside its images


@dataclass(frozen=True)
class Cut:
    """How pictures become what is compared: as the tokenizer's config says, or to the size of the samples."""

    preprocessing: Preprocessing
    channels: int

    def describe(self) -> dict[str, Any]:
        return {**asdict(self.preprocessing), "channels": self.channels}


class Chunk(NamedTuple):
    """Some pictures of a set.

    Attributes:
        pixels: uint8 [n, H, W, C].
        rows: of the pictures in the set, [n].
        labels: their classes, -1 where it is not known, [n].
        skipped: by name why others are left out.
    """

    pixels: Tensor
    rows: list[int]
    labels: list[int]
    skipped: dict[str, str]


class FolderPictures:
    """The pictures of a source, loaded by `num_workers` processes; those that cannot be used are left out by name."""

    def __init__(self, source: ImageSource, cut: Cut, num_workers: int = 0) -> None:
        self.source, self.cut, self.description = source, cut, source.description
        self.fingerprint, self.num_workers = source.fingerprint, num_workers

    def __len__(self) -> int:
        return len(self.source)

    def read(self, chunks: Iterable[Sequence[int]]) -> Iterator[Chunk]:
        chunks = [[int(row) for row in chunk] for chunk in chunks]
        read = partial(read_picture, preprocessing=self.cut.preprocessing, channels=self.cut.channels)
        found = Pictures(self.source, read).in_order(itertools.chain.from_iterable(chunks), self.num_workers)
        for chunk in chunks:
            kept, rows, labels, skipped = [], [], [], {}
            for row, picture in zip(chunk, itertools.islice(found, len(chunk)), strict=True):
                if picture.pixels is None:
                    skipped[picture.source_id] = f"{picture.reason}: {picture.detail}"
                else:
                    kept.append(picture.pixels[0])
                    rows.append(row)
                    labels.append(picture.label)
            pixels = torch.from_numpy(np.stack(kept)) if kept else torch.empty(0, 0, 0, 0, dtype=torch.uint8)
            yield Chunk(pixels, rows, labels, skipped)


class ArrayPictures:
    """The pictures of an .npz file, which have the size already."""

    def __init__(self, file: NpzFile, cut: Cut) -> None:
        assert file.shape is not None
        self.file, self.cut, self.fingerprint = file, cut, file.fingerprint
        number, height, width, _ = file.shape
        self.description = f"{file.name}: {number:,} pictures of {height}x{width} in arr_0"
        if (height, width) != cut.preprocessing.size:
            raise DataError(
                f"The pictures in {file.name} are {height}x{width}, and {cut.preprocessing.size_text} is compared.",
                "Give the pictures as a folder, which are cut to this size.",
            )

    def __len__(self) -> int:
        return self.file.shape[0] if self.file.shape else 0

    def read(self, chunks: Iterable[Sequence[int]]) -> Iterator[Chunk]:
        """Every chunk but the last has the same number of rows, which ascend."""
        rows = [int(row) for chunk in chunks for row in chunk]
        for pixels in self.file.pictures(rows, _CHUNK):
            mine, rows = rows[: len(pixels)], rows[len(pixels) :]
            yield Chunk(pixels, mine, [-1] * len(pixels), {})


@dataclass
class SetFeatures:
    """Features [N, D] and logits [N, classes] of a set, whose pictures they are, and what was left out.

    Attributes:
        rows: of the pictures in their set, int64 [N].
        labels: their classes, -1 where it is not known, int64 [N].
    """

    features: Tensor
    logits: Tensor
    rows: Tensor
    labels: Tensor
    without: dict[str, Any]


def check_number(number: int, what: str, least: int) -> None:
    """Refuse a set that is too small before anything is computed.

    Raises:
        DataError: there are fewer than `least`.
    """
    if number < least:
        raise DataError(f"There are {number:,} {what}, and at least {least} are needed.", "Give more pictures.")


def spread(number: int, most: int) -> np.ndarray:
    """At most `most` of `number` places, spread evenly; all of them if `most` is 0: int64, ascending."""
    count = number if not most else min(most, number)
    return np.linspace(0, number - 1, count).round().astype(np.int64)


def set_features(
    pictures: FolderPictures | ArrayPictures,
    rows: np.ndarray,
    cache: FeatureCache,
    accelerator: Accelerator,
    what: str,
    least: int,
) -> SetFeatures:
    """Features of the pictures at `rows`, in order. The ranks share the work, and all get all of it.

    Raises:
        DataError: fewer than `least` of them could be used.
    """
    chunks = [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]
    mine = range(len(chunks))[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(
        total=sum(len(chunks[place]) for place in mine),
        desc=what,
        unit="image",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
    keys, skipped = [], {}
    for place, chunk in zip(mine, pictures.read([chunks[place] for place in mine]), strict=True):
        skipped.update(chunk.skipped)
        if len(chunk.pixels):
            keys.append((place, cache.key(chunk.pixels), chunk.rows, chunk.labels))
        bar.update(len(chunks[place]))
    bar.close()
    keys = sorted(gather_object(keys))
    without = left_out(dict(gather_object(list(skipped.items()))))
    wait_patiently(accelerator)
    found = cache.load([key for _, key, _, _ in keys]) if keys else (torch.empty(0, 1), torch.empty(0, 1))
    whose = (torch.tensor([number for key in keys for number in key[part]], dtype=torch.int64) for part in (2, 3))
    if len(found[0]) < least:
        raise DataError(
            " ".join(
                [
                    f"{len(found[0]):,} of the {len(rows):,} {what} could be used, and at least {least} are needed.",
                    *describe_left_out(without, what),
                ]
            ),
            "Give more pictures, of the size that is compared; `codegrid look` shows what is read.",
        )
    return SetFeatures(*found, *whose, without)


def is_npz(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix.lower() == ".npz" or (path.is_file() and path.suffix.lower() in (".npy", ".pt", ".pkl", ".mat"))


def open_samples(samples: str, num_workers: int = 0) -> tuple[FolderPictures | ArrayPictures, str]:
    """Finished samples, all of one size, and a sentence about them.

    Raises:
        DataError: they cannot be read, or their sizes differ.
    """
    if is_npz(samples):
        file = NpzFile(samples)
        if file.shape is None:
            raise DataError(
                f"{file.name} has statistics and no pictures.",
                "Give it as the reference; samples are pictures.",
            )
        height, width = file.shape[1:3]
        pictures = ArrayPictures(file, Cut(Preprocessing((height, width)), file.shape[3]))
        return pictures, f"{pictures.description}."
    source = open_images(DataConfig(samples))
    if (Path(samples).expanduser() / _SETTINGS_NAME).is_file():  # a folder of `codegrid generate`
        rows = [row for row, name in enumerate(source.names()) if name != _SHEET_NAME]
        source = source.subset(np.array(rows), "without the sheet") if len(rows) < len(source) else source
    sizes = Counter(size for record in source if (size := _size(record)) is not None)
    if not sizes:
        raise DataError(f"None of the pictures of {shown(samples)} can be read.", "`codegrid look` shows what is read.")
    if len(sizes) > 1:
        most = ", ".join(f"{count:,} of {width}x{height}" for (width, height), count in sizes.most_common(4))
        raise DataError(
            f"The samples in {shown(samples)} are of {len(sizes)} sizes (width x height): {most}.",
            "Bring them to one size, or move what is no sample out of the folder.",
        )
    ((width, height),) = sizes
    cut = Cut(replace(Preprocessing(), image_size=(height, width), max_aspect=10_000), 3)
    return FolderPictures(source, cut, num_workers), f"{source.description}, of {height}x{width} (height x width)."


def _size(record: ImageRecord) -> tuple[int, int] | None:
    """(width, height) by the header; None if there is none, which is said when the picture is read."""
    try:
        file = io.BytesIO(record.data) if isinstance(record.data, bytes) else record.data
        with Image.open(file, formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on a side
            return image.size[::-1] if turned else image.size
    except Exception:  # a Pillow plugin may raise any error on a damaged header
        return None

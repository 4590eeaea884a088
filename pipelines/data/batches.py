"""Batches of training images: order and augmentation are keyed by position, so that a resume changes neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codegrid.pipelines.data.records import DataError, ImageSource
from codegrid.pipelines.data.workers import load
from codegrid.pipelines.system.randomness import SampleOrder, uniforms
from codegrid.tokenizer.images import BadImage, Preprocessing, to_square

# A bad image is replaced by another; so many bad ones in a row mean that the source holds no images worth training on.
_MOST_REPLACEMENTS = 100


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of the training images, drawn anew each epoch.

    Args:
        flip: mirror half of the images.
        random_crop: cut the square anywhere along the long side instead of in the centre.
    """

    flip: bool = True
    random_crop: bool = True


@dataclass
class ImageBatch:
    """pixels uint8 [B, H, W, C]; labels int64 [B], -1 where there is none; the source ids; the inputs that could not be
    read, with their reasons."""

    pixels: Tensor
    labels: Tensor
    source_ids: list[str]
    skipped: dict[str, str] = field(default_factory=dict)


class AugmentedImages(Dataset):
    """Item (epoch, index) -> one augmented image; what is drawn depends on seed, epoch and index alone."""

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        channels: int,
        augmentation: AugmentationConfig,
        seed: int,
    ) -> None:
        self.source, self.preprocessing, self.channels = source, preprocessing, channels
        self.augmentation, self.seed = augmentation, seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, int, str, dict[str, str]]:
        epoch, index = item
        top, left, mirror = uniforms(3, self.seed, "augmentation", epoch, index)
        skipped: dict[str, str] = {}
        for attempt in range(_MOST_REPLACEMENTS):
            record = self.source[index]
            try:
                crop = (top, left) if self.augmentation.random_crop else "center"
                mirrored = mirror < 0.5 and self.augmentation.flip
                pixels = to_square(record.data, self.preprocessing, self.channels, crop=crop, flip=mirrored)
                return pixels, -1 if record.label is None else record.label, record.source_id, skipped
            except BadImage as error:
                skipped[record.source_id] = f"{error.reason}: {error}"
                (other,) = uniforms(1, self.seed, "replacement", epoch, item[1], attempt)
                index = int(other * len(self.source))
        raise DataError(
            f"{len(skipped)} images in a row could not be used; the last: {list(skipped.items())[-1]}. "
            "Check data.source and preprocessing."
        )


def image_batches(
    images: AugmentedImages, start: int, stop: int, micro_batch_size: int, rank: int, ranks: int, num_workers: int
) -> Iterator[ImageBatch]:
    """This rank's batches for the micro-steps start, ..., stop - 1 of the run.

    A micro-step takes the next ranks * micro_batch_size positions of the order; rank r takes every ranks-th of them.
    """
    order = SampleOrder(len(images.source), images.seed)
    whole = ranks * micro_batch_size

    def indices() -> Iterator[list[tuple[int, int]]]:
        for micro_step in range(start, stop):
            yield order.positions(micro_step * whole, whole)[rank::ranks]

    yield from load(images, num_workers, batch_sampler=_Batches(indices), collate_fn=_collate)


class _Batches:
    def __init__(self, make) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._make()


def _collate(items: list[tuple[np.ndarray, int, str, dict[str, str]]]) -> ImageBatch:
    pixels, labels, names, bad = zip(*items, strict=True)
    skipped = {name: reason for each in bad for name, reason in each.items()}
    return ImageBatch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), list(names), skipped)

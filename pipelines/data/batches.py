"""From records to pixels: the one way for training, tokenizing, evaluating and verifying.

A record becomes a `Picture` (squares uint8 [V, H, W, C], or the reason why it is left out); pictures become batches of
uint8 [B, H, W, C], which travel to the device as bytes. Order and augmentation of training batches are keyed by
position, so that a resume changes neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codegrid.names import shown
from codegrid.pipelines.data.contents import short
from codegrid.pipelines.data.records import DataError, ImageRecord, ImageSource, ImageStream, content_hash
from codegrid.pipelines.data.workers import load
from codegrid.pipelines.system.randomness import SampleOrder, uniforms
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import BadImage, Preprocessing, open_picture, prepare, read_file, to_model, valid_box

# A bad image is replaced by another; so many bad ones in a row mean that the source holds no images worth training on.
_MOST_REPLACEMENTS = 100
# So many pictures in a row whose files are gone or cannot be opened mean that the disk is.
_MOST_UNREADABLE = 20
_LOOKED_AT = 8
# Pictures that a worker process hands over at once: one by one, the queue would take longer than the decoding.
_AT_ONCE = 16

Box = tuple[int, int, int, int]


class Variant(NamedTuple):
    """How a square is cut: "center", a place (y, x) in [0, 1], or a number of `TEN_CROP`, which mirrors by itself."""

    crop: Literal["center"] | tuple[float, float] | int = "center"
    flip: bool = False


CENTRE = (Variant(),)


class Picture(NamedTuple):
    """A record as the model will see it: pixels uint8 [V, H, W, C], or None and the reason.

    `label` is -1 where it is not known; `size` is (width, height) as loaded; `peak` the largest value of a picture
    of more than 8 bits, as a share of white; `content` the `content_hash` of its bytes where it was asked for;
    `condition` [V, H, W, C] and `text` what a prior of its codes is to follow (codes/conditions.py).
    """

    source_id: str
    label: int
    pixels: np.ndarray | None
    size: tuple[int, int] = (0, 0)
    reason: str = ""
    detail: str = ""
    peak: float | None = None
    content: str = ""
    condition: np.ndarray | None = None
    text: str | None = None


def read_picture(
    record: ImageRecord,
    preprocessing: Preprocessing,
    channels: int,
    variants: Sequence[Variant] = CENTRE,
    with_content: bool = False,
) -> Picture:
    """Decode a record once and cut it once for each variant; `with_content` adds the hash of its bytes.

    Raises:
        DataError: the picture's folder is gone.
    """
    label = -1 if record.label is None else record.label
    content = ""
    try:
        data = record.data if isinstance(record.data, bytes) else read_file(record.data)  # once, for both
        content = content_hash(data) if with_content else ""
        image = open_picture(data, preprocessing, channels)
        squares = [prepare(image, preprocessing, channels, crop=crop, flip=flip) for crop, flip in variants]
    except BadImage as error:
        return Picture(record.source_id, label, None, reason=error.reason, detail=str(error), content=content)
    except OSError as error:
        return Picture(
            record.source_id, label, None, reason=_disk_reason(record, error), detail=f"{error.strerror or error}."
        )
    return Picture(record.source_id, label, np.stack(squares), image.size, peak=image.info.get("peak"), content=content)


def _disk_reason(record: ImageRecord, error: OSError) -> str:
    """Why a picture's file was not read.

    Raises:
        DataError: its folder is gone, so that more than one picture is.
    """
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "unreadable"
    folder = Path(record.data).parent
    if not folder.is_dir():
        raise DataError(
            f"{shown(folder)} is gone, with {shown(record.source_id)} in it.",
            "Bring the folder back (a disk that is not mounted?), then run the same command again.",
        ) from error
    return "vanished"


def check_channels(source: ImageStream, preprocessing: Preprocessing, channels: int) -> None:
    """Look at a few pictures, spread over the source, before anything is claimed.

    Raises:
        DataError: none of them has these channels.
    """
    if not isinstance(source, ImageSource):
        return
    places = np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int))
    for place in places:
        picture = read_picture(source[int(place)], preprocessing, channels)
        if picture.reason not in ("wrong_channels", "needs_tifffile"):
            return
    raise DataError(
        f"None of {len(places)} pictures of {source.description} that were looked at can be read with {channels} "
        f"channels (backbone.in_channels). {picture.source_id}: {picture.detail.rstrip('.')}.",
        "Take other pictures, or another number of channels; docs/pictures.md says what is read.",
    )


def whole_disk(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """The same pictures.

    Raises:
        DataError: the files of many in a row are gone or cannot be opened.
    """
    row = 0
    for picture in pictures:
        row = row + 1 if picture.reason in ("vanished", "unreadable") and not picture.content else 0
        if row == _MOST_UNREADABLE:
            raise DataError(
                f"The files of {row} pictures in a row cannot be read, the last {picture.source_id}: "
                f"{picture.detail.rstrip('.')}.",
                "Look at the disk, then run the same command again.",
            )
        yield picture


def picture_reader(
    model: VQModel, variants: Sequence[Variant] = CENTRE, with_content: bool = False
) -> Callable[[ImageRecord], Picture]:
    """`read_picture` as the tokenizer's config says; picklable, so that worker processes can read."""
    config = model.config
    kinds = {"preprocessing": config.preprocessing_config, "channels": config.backbone_config.in_channels}
    return partial(read_picture, **kinds, variants=tuple(variants), with_content=with_content)


class Pictures(Dataset):
    """Item i is the i-th record of `source` as a `Picture`."""

    def __init__(self, source: ImageSource, read: Callable[[ImageRecord], Picture]) -> None:
        self.source, self.read = source, read

    def __getitem__(self, index: int) -> Picture:
        return self.read(self.source[index])

    def in_order(self, rows: Iterable[int], num_workers: int = 0) -> Iterator[Picture]:
        """The pictures of `rows`; one pool of workers reads them all.

        Raises:
            DataError: see `whole_disk`; or as the source raises it.
        """
        if not num_workers:
            return whole_disk(self[row] for row in rows)
        parts = load(self, num_workers, batch_sampler=_Batches(lambda: _parts(rows, _AT_ONCE)), collate_fn=list)
        return whole_disk(itertools.chain.from_iterable(parts))


@dataclass
class PixelBatch:
    """Pictures that could be used, and those that could not.

    Attributes:
        pixels: uint8 [B, H, W, C].
        boxes: of each, the part (left, top, right, bottom) that is no padding.
        records: what they were, without pixels.
        skipped: by source id, why a picture was left out.
    """

    pixels: Tensor
    boxes: list[Box]
    records: list[Picture]
    skipped: dict[str, str]

    @property
    def images(self) -> Tensor:
        """float32 [B, C, H, W] in [-1, 1]."""
        return to_model(self.pixels)


def prepared_batches(model: VQModel, records: Iterable[ImageRecord], batch_size: int) -> Iterator[PixelBatch]:
    """Centre-cropped images of `records`, in order, as the tokenizer's config says. Bad ones are left out and named."""
    return pixel_batches(whole_disk(map(picture_reader(model), records)), model, batch_size)


def pixel_batches(pictures: Iterable[Picture], model: VQModel, batch_size: int) -> Iterator[PixelBatch]:
    """Batches of pictures of one variant, in order; the last may be smaller, or hold nothing but what was left out."""
    preprocessing, channels = model.config.preprocessing_config, model.config.backbone_config.in_channels
    kept: list[Picture] = []
    skipped: dict[str, str] = {}

    def batch() -> PixelBatch:
        empty = np.empty((0, *preprocessing.size, channels), np.uint8)
        pixels = np.concatenate([picture.pixels for picture in kept]) if kept else empty
        boxes = [valid_box(picture.size, preprocessing) for picture in kept]
        return PixelBatch(torch.from_numpy(pixels), boxes, [picture._replace(pixels=None) for picture in kept], skipped)

    for picture in pictures:
        if picture.pixels is None:
            skipped[picture.source_id] = f"{picture.reason}: {picture.detail}"
            continue
        kept.append(picture)
        if len(kept) == batch_size:
            yield batch()
            kept, skipped = [], {}
    if kept or skipped:
        yield batch()


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
    """Args:
    pixels: uint8 [B, H, W, C].
    labels: int64 [B], -1 where there is none.
    source_ids: of the B pictures.
    skipped: the inputs that could not be used, with their reasons.
    peaks: of the pictures of more than 8 bits.
    rows, contents: int64 [B] each, the pictures' rows in the source, and the `contents.short` of their bytes.
    """

    pixels: Tensor
    labels: Tensor
    source_ids: list[str]
    skipped: dict[str, str] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    contents: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def pin_memory(self) -> ImageBatch:
        """In pinned memory, from which copies to a GPU do not wait; a DataLoader asks for it."""
        return replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())


class Augmented(NamedTuple):
    """A picture of a training batch, inputs that were skipped for it, and its content by its row in the source."""

    picture: Picture
    skipped: dict[str, str]
    contents: dict[int, int]


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

    def __getitem__(self, item: tuple[int, int]) -> Augmented:
        epoch, index = item
        top, left, mirror = uniforms(3, self.seed, "augmentation", epoch, index)
        crop = (top, left) if self.augmentation.random_crop else "center"
        variant = Variant(crop, mirror < 0.5 and self.augmentation.flip)
        skipped: dict[str, str] = {}
        for attempt in range(_MOST_REPLACEMENTS):
            picture = read_picture(self.source[index], self.preprocessing, self.channels, (variant,), with_content=True)
            if picture.pixels is not None:
                return Augmented(picture, skipped, {index: short(picture.content)})
            skipped[picture.source_id] = f"{picture.reason}: {picture.detail}"
            (other,) = uniforms(1, self.seed, "replacement", epoch, item[1], attempt)
            index = int(other * len(self.source))
        name, reason = list(skipped.items())[-1]
        raise DataError(
            f"{len(skipped)} images in a row could not be used; the last: {name} ({reason}).",
            "Check data.source and preprocessing.",
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

    pinned = torch.cuda.is_available()
    yield from load(images, num_workers, batch_sampler=_Batches(indices), collate_fn=_collate, pin_memory=pinned)


class _Batches:
    """A batch sampler: what `make` gives, anew each time it is asked."""

    def __init__(self, make: Callable[[], Iterator[list]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list]:
        return self._make()


def _parts(rows: Iterable[int], size: int) -> Iterator[list[int]]:
    rows = iter(rows)
    while part := list(itertools.islice(rows, size)):
        yield part


def _collate(items: list[Augmented]) -> ImageBatch:
    pictures, bad, read = zip(*items, strict=True)
    return ImageBatch(
        torch.from_numpy(np.concatenate([picture.pixels for picture in pictures])),
        torch.tensor([picture.label for picture in pictures]),
        [picture.source_id for picture in pictures],
        {name: reason for each in bad for name, reason in each.items()},
        [picture.peak for picture in pictures if picture.peak is not None],
        np.array([row for contents in read for row in contents], np.int64),
        np.array([content for contents in read for content in contents.values()], np.int64),
    )

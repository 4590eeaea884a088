"""Held-out pictures that stand in the training part again, identical or nearly so: scores on them are too good.

Two pictures are compared as the model sees them. They are identical if their pixels are. They are nearly so if
thumbnails of 16x16 pixels, each channel less its mean, correlate by 0.995 and the means are alike. A difference hash of
64 bits is too coarse: of 6,000 pictures of Fashion-MNIST, 7 % share one with another. docs/data.md has the figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from codegrid.names import encodable, shown
from codegrid.pipelines.data.batches import Picture, Pictures, read_picture
from codegrid.pipelines.data.records import ImageSource
from codegrid.pipelines.system.randomness import numpy_generator
from codegrid.tokenizer.images import Preprocessing

_MOST_HELD_OUT, _MOST_TRAINING = 500, 2_500
# What is decoded of each part, in pixels of the files: some seconds.
_MOST_PIXELS = 250_000_000
_SIDE = 16
_CORRELATION = 0.995
_MOST_SHIFT = 40.0  # between the means of a channel, of 255
# Thumbnails of less contrast (standard deviation, of 255) are blank: those are alike by chance.
_LEAST_CONTRAST = 2.0
_MOST_EXAMPLES = 2


@dataclass(frozen=True)
class Overlap:
    """What a comparison of a held-out part with a training part found.

    Attributes:
        identical: held-out pictures with the pixels of a training picture.
        similar: further ones that are nearly those of a training picture.
        held_out, training: pictures that were compared, of each part.
        num_held_out, num_training: pictures of each part.
        examples: names (held out, training), the identical ones first.
    """

    identical: int
    similar: int
    held_out: int
    training: int
    num_held_out: int
    num_training: int
    examples: tuple[tuple[str, str], ...]

    def record(self) -> dict[str, Any]:
        """For a JSON file; `Overlap(**record)` is the inverse, but for names that are not UTF-8, which are escaped."""
        return {**asdict(self), "examples": [[encodable(name) for name in pair] for pair in self.examples]}

    def sentence(self) -> str:
        """One line for people, with two examples and the remedy."""
        held_out = _some(self.held_out, self.num_held_out, "held-out")
        compared = f"{held_out}, compared with {_some(self.training, self.num_training, 'training')}"
        if not self.identical + self.similar:
            return f"Duplicates: none of {compared}."
        pairs = ", ".join(f"{shown(one)} and {shown(other)}" for one, other in self.examples)
        return (
            f"Duplicates: {self.identical:,} identical and {self.similar:,} nearly so of {compared} ({pairs}). Scores "
            "of the held-out part are too good by them: remove one of each pair, or keep pictures of one origin in one "
            "part (--data.validation-split)."
        )


def find_overlap(training: ImageSource, held_out: ImageSource, preprocessing: Preprocessing, channels: int) -> Overlap:
    """Compare a bounded share of two parts: evenly spread pictures, and of training those beside the held-out ones.

    Neighbours by name are where the frames of a video and the takes of one motif are.

    Raises:
        DataError: many pictures in a row cannot be read.
    """
    read = partial(read_picture, preprocessing=preprocessing, channels=channels)
    rows = _spread(len(held_out), _MOST_HELD_OUT)
    mine = _Thumbnails(Pictures(held_out, read).in_order(rows))
    beside = _neighbours(training, held_out, rows[: mine.tried])
    others = np.concatenate([beside, _spread(len(training), _MOST_TRAINING)])
    _, first = np.unique(others, return_index=True)
    theirs = _Thumbnails(Pictures(training, read).in_order(others[np.sort(first)]))
    pairs = _pairs(mine, theirs)
    identical = sum(same for _, _, same in pairs)
    pairs.sort(key=lambda pair: not pair[2])
    examples = tuple((mine.names[one], theirs.names[other]) for one, other, _ in pairs[:_MOST_EXAMPLES])
    sizes = (len(mine.names), len(theirs.names), len(held_out), len(training))
    return Overlap(identical, len(pairs) - identical, *sizes, examples)


class _Thumbnails:
    """Of the pictures that can be used, until the bound on pixels: names, pixels as bytes' hashes, and thumbnails.

    `tried` is the number of pictures that were read; `means` float32 [N, C]; `patterns` float32 [N, C * 256] of
    length 1, or 0 where the picture is blank.
    """

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.names: list[str] = []
        self.pixels: list[bytes] = []
        self.tried, decoded = 0, 0
        made = []
        for picture in pictures:
            self.tried += 1
            if picture.pixels is not None:
                self.names.append(picture.source_id)
                self.pixels.append(hashlib.blake2b(picture.pixels.tobytes(), digest_size=16).digest())
                made.append(_thumbnail(picture.pixels[0]))
            decoded += picture.size[0] * picture.size[1]
            if decoded >= _MOST_PIXELS:
                break
        stacked = np.stack(made) if made else np.zeros((0, 1, _SIDE * _SIDE), np.float32)  # [N, C, 256]
        self.means = stacked.mean(2)
        centred = stacked - self.means[..., None]
        flat = centred.reshape(len(centred), stacked.shape[1] * stacked.shape[2])
        contrast = flat.std(1, keepdims=True)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        self.patterns = np.where(contrast >= _LEAST_CONTRAST, flat / np.maximum(length, 1e-6), 0)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] -> block means, float32 [C, 256]."""
    size = (_SIDE, _SIDE)
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in pixels.transpose(2, 0, 1)]
    return np.stack([np.asarray(each.resize(size, Image.Resampling.BOX), np.float32).ravel() for each in channels])


def _pairs(mine: _Thumbnails, theirs: _Thumbnails) -> list[tuple[int, int, bool]]:
    """(held-out picture, training picture, whether their pixels are identical): at most one for a held-out picture."""
    if not mine.names or not theirs.names:
        return []
    places = {pixels: place for place, pixels in reversed(list(enumerate(theirs.pixels)))}
    found = []
    for number, pixels in enumerate(mine.pixels):
        if pixels in places:
            found.append((number, places[pixels], True))
            continue
        likeness = theirs.patterns @ mine.patterns[number]  # [N]
        shifts = np.abs(theirs.means - mine.means[number]).max(1)
        likeness[shifts > _MOST_SHIFT] = 0
        if likeness[best := int(likeness.argmax())] >= _CORRELATION:
            found.append((number, best, False))
    return found


def _spread(length: int, most: int) -> np.ndarray:
    """At most `most` rows, evenly spread, in an order that is spread as well, int64."""
    rows = np.unique(np.linspace(0, length - 1, min(most, length)).astype(np.int64))
    return numpy_generator(0, "duplicates").permutation(rows)


def _neighbours(training: ImageSource, held_out: ImageSource, rows: np.ndarray) -> np.ndarray:
    """The training rows before and after held-out rows of the same source, int64."""
    if training.reader is not held_out.reader or training.indices is None or held_out.indices is None:
        return np.zeros(0, np.int64)
    order = np.argsort(training.indices)
    after = np.searchsorted(training.indices, held_out.indices[rows], sorter=order)
    places = np.stack([after - 1, after], 1).ravel()  # of one held-out picture after the other
    return order[places.clip(0, len(order) - 1)]


def _some(number: int, total: int, what: str) -> str:
    of = "" if number == total else f" of {total:,}"
    return f"{number:,}{of} {what} pictures"

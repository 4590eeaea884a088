"""Arguments of sampling: what users give -> labels and random streams, an image each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from codegrid.errors import CodegridError, require
from codegrid.prior import SequenceConfig, resolve_labels
from codegrid.prior.sampling import image_generator


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """An int of any kind (numpy's, a tensor or array of one number) that is at least `least`.

    Raises:
        CodegridError: it is no whole number, a bool, or too small. The message has `name`.
    """
    try:
        require(not isinstance(value, (bool, np.bool_)), f"{name} is {value}.", "Give a whole number.")
        number = operator.index(value)
    except TypeError as error:
        raise CodegridError(f"{name} is {value!r}, a {type(value).__name__}.", "Give a whole number.") from error
    require(number >= least, f"{name} is {number}.", f"Give at least {least}.")
    return number


def as_labels(labels: Any) -> list[Any]:
    """One label or many, of any kind -> a list; numbers of numpy and torch are ints in it."""
    alone = isinstance(labels, str) or (not hasattr(labels, "__len__") and not hasattr(labels, "__iter__"))
    if alone or np.ndim(labels) == 0:
        labels = [labels]
    return [_plain(label) for label in labels]


def _plain(label: Any) -> Any:
    """A number of numpy or torch as an int; anything else (a name, another condition's input) as it is."""
    if isinstance(label, (np.generic, np.ndarray, torch.Tensor)) and np.ndim(label) == 0:
        return str(label) if isinstance(label, np.str_) else whole_number("A class label", label, -(2**62))
    return label


def labels_of_images(
    sequence: SequenceConfig, class_labels: Any, per_label: int, num_images: int | None
) -> list[Any] | None:
    """The label (or the value of another condition) of each image; None for an unconditional prior.

    Raises:
        CodegridError: labels are missing, unknown or not expected, or the numbers of images contradict each other.
    """
    require(
        num_images is None or per_label == 1,
        "num_images_per_label and num_images are both given.",
        "Give one of them, not both.",
    )
    condition = sequence.conditioning
    if condition.vocab_size == 0:
        require(class_labels is None, "This pipeline is unconditional: it takes no class_labels.", "Leave them out.")
        return None
    require(
        class_labels is not None or sequence.class_names is not None,
        f"This pipeline's images follow {condition.describe()}.",
        "Say what by class_labels, one for each image.",
    )
    if class_labels is None:
        if num_images is None:
            return [label for label in range(sequence.num_classes) for _ in range(per_label)]
        return [index % sequence.num_classes for index in range(num_images)]
    require(
        num_images is None,
        "class_labels and num_images are both given.",
        "Give class_labels with num_images_per_label, or num_images, not both.",
    )
    wanted = as_labels(class_labels)
    require(bool(wanted), "class_labels is empty.", "Name at least one class, or leave it out for all of them.")
    return [label for label in resolve_labels(wanted, sequence) for _ in range(per_label)]


def streams_of_images(
    seed: Any, generator: torch.Generator | Sequence[torch.Generator] | None, number: int
) -> list[torch.Generator]:
    """The random stream of each of `number` images.

    Raises:
        CodegridError: a seed and generators are given, their number is wrong, or a seed is no whole number.
    """
    require(seed is None or generator is None, "A seed and generators are both given.", "Give one of them, not both.")
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(2**63 - 1, (number,), generator=generator, device=generator.device).tolist()
        return [image_generator(seed, 0) for seed in seeds]
    if generator is not None:
        streams = list(generator)
        wrong = next((type(one).__name__ for one in streams if not isinstance(one, torch.Generator)), None)
        require(wrong is None, f"generator holds a {wrong}.", "Give torch.Generator objects, or seeds by seed.")
        _check_number("generators", len(streams), number)
        return streams
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    if np.ndim(seed) == 0:
        start = whole_number("seed", seed, -(2**63))
        return [image_generator(start, index) for index in range(number)]
    seeds = [whole_number("seed", one, -(2**63)) for one in seed]
    _check_number("seeds", len(seeds), number)
    return [image_generator(one, 0) for one in seeds]


def _check_number(what: str, given: int, wanted: int) -> None:
    require(given == wanted, f"There are {given} {what} for {wanted} images.", "Give one an image.")

"""The plain ways that a conditional prior is compared with: what anybody would do without one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from codegrid.pipelines.data.degradations import luma

# True pictures and their conditions, uint8 [N, H, W, C] each -> results [N, H, W, C].
Floor = Callable[[np.ndarray, np.ndarray], np.ndarray]
_AT_ONCE = 500  # training pictures that are compared at once


def floors_of(made_by: str | None) -> dict[str, Floor]:
    """The plain ways of a kind of condition by their names; empty if there is none but the nearest training pair."""
    kind, _, number = (made_by or "").partition(":")
    if kind == "downscale":
        factor = float(number)
        return {"bicubic": _given, "Lanczos": lambda true, given: np.stack([_lanczos(one, factor) for one in true])}
    if kind == "noise":
        sigma = float(number)
        return {"noisy": _given, "non-local means": lambda true, given: np.stack([_means(one, sigma) for one in given])}
    if kind == "grey":
        return {"grey": _given, "mean chroma": _mean_chroma}
    if kind == "jpeg":
        return {"the JPEG": _given, "non-local means": _means_of_errors}
    return {"condition itself": _given} if kind == "blur" else {}


def nearest_pairs(
    given: np.ndarray, known: np.ndarray, classes: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """For each condition [N, H, W, C] the row of the nearest of `known` [M, H, W, C], by the pixels: int64 [N].

    Args:
        classes: of the conditions [N] and of the known ones [M]: the nearest is looked for in a condition's own class,
            where there is one of it.
    """
    flat = given.reshape(len(given), -1).astype(np.float32)
    lone = np.zeros(len(flat), bool) if classes is None else ~np.isin(*classes)
    best, places = np.full(len(flat), np.inf, np.float32), np.zeros(len(flat), np.int64)
    for first in range(0, len(known), _AT_ONCE):
        others = known[first : first + _AT_ONCE].reshape(len(known[first : first + _AT_ONCE]), -1).astype(np.float32)
        # |a - b|^2 without |a|^2, which orders nothing
        distances = np.square(others).sum(1)[None] - 2 * flat @ others.T
        if classes is not None:
            same = classes[0][:, None] == classes[1][None, first : first + _AT_ONCE]
            distances = np.where(same | lone[:, None], distances, np.inf)
        found = distances.min(1)
        nearer = found < best
        best[nearer], places[nearer] = found[nearer], first + distances.argmin(1)[nearer]
    return places


def chroma(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 [..., 3] -> Cb and Cr, float64 [..., 2] (JPEG's, around 0)."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64), -1, 0)
    blueness = -0.168736 * red - 0.331264 * green + 0.5 * blue
    return np.stack([blueness, 0.5 * red - 0.418688 * green - 0.081312 * blue], -1)


def _given(true: np.ndarray, given: np.ndarray) -> np.ndarray:
    return given


def _lanczos(pixels: np.ndarray, factor: float) -> np.ndarray:
    """The small picture, scaled up by Lanczos' filter."""
    height, width = pixels.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, 2, 0)]
    up = [
        plane.resize(small, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.LANCZOS)
        for plane in planes
    ]
    return np.stack([np.asarray(plane) for plane in up], 2)


def _means_of_errors(true: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Non-local means that is told how far each picture is from the true one, more than anybody knows."""
    errors = np.sqrt(np.square(given.astype(np.float64) - true).reshape(len(given), -1).mean(1))
    return np.stack([_means(one, error) for one, error in zip(given, errors, strict=True)])


def _means(pixels: np.ndarray, sigma: float, patch: int = 5, reach: int = 7) -> np.ndarray:
    """Non-local means (Buades et al. 2005) that knows the noise: weights exp(-max(d^2 - 2 s^2, 0) / h^2), h = 0.6 s.

    d^2 is the mean squared difference of two patches of `patch` pixels a side; h is scikit-image's advice.
    """
    image, sigma = pixels.astype(np.float64), max(sigma, 1e-3)  # no noise changes nothing
    height, width, _ = image.shape
    half = patch // 2
    padded = np.pad(image, ((reach + half,) * 2, (reach + half,) * 2, (0, 0)), mode="reflect")
    centre = padded[reach : reach + height + 2 * half, reach : reach + width + 2 * half]
    total, weights = np.zeros_like(image), np.zeros((height, width, 1))
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            moved = padded[reach + down :, reach + across :][: height + 2 * half, : width + 2 * half]
            apart = _boxes(np.square(moved - centre).mean(2), patch)
            weight = np.exp(-np.maximum(apart - 2 * sigma**2, 0) / (0.6 * sigma) ** 2)[..., None]
            total += weight * moved[half : half + height, half : half + width]
            weights += weight
    return np.clip(np.round(total / weights), 0, 255).astype(np.uint8)


def _boxes(values: np.ndarray, side: int) -> np.ndarray:
    """Means over windows of `side` pixels: [H, W] -> [H - side + 1, W - side + 1]."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def _mean_chroma(true: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The luma with the mean colour of the true pictures: the best single colour, which nobody knows beforehand."""
    if true.shape[-1] != 3:
        return given
    blueness, redness = chroma(true).reshape(-1, 2).mean(0)
    grey = np.stack([luma(one) for one in given])
    red, blue = grey + 1.402 * redness, grey + 1.772 * blueness
    green = grey - 0.344136 * blueness - 0.714136 * redness
    return np.clip(np.round(np.stack([red, green, blue], -1)), 0, 255).astype(np.uint8)

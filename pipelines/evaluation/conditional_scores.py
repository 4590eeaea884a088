"""Scores of pictures that follow others: nearness to the true picture, and whether they follow their own condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.pipelines.data.degradations import Degradation, motif
from codegrid.pipelines.evaluation.distances import frechet_distance
from codegrid.pipelines.evaluation.features import FeatureCache
from codegrid.pipelines.evaluation.floors import chroma
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.metrics import psnr, ssim

_CHUNK = 250  # pictures per entry of the feature cache
_SSIM_WINDOW = 11


@dataclass(frozen=True)
class Pairs:
    """The pictures that are scored.

    Attributes:
        names: source ids.
        pixels: the true pictures, uint8 [N, H, W, C].
        given: their conditions, uint8 [N, H', W', C]; None where the condition is a text.
        texts: the texts; None where there are none.
        labels: the classes in the source, -1 where it is not known, [N].
    """

    names: list[str]
    pixels: np.ndarray
    given: np.ndarray | None
    texts: list[str] | None
    labels: np.ndarray


class Scorer:
    """Scores of results beside the true pictures.

    Args:
        made: how the conditions follow from pictures; None if that is not known.
    """

    def __init__(self, pairs: Pairs, cache: FeatureCache, made: Degradation | None) -> None:
        self.pairs, self.cache, self.made = pairs, cache, made
        self.real = self._features(pairs.pixels)
        self.others = others_of_class(pairs.labels)

    def row(self, results: np.ndarray) -> dict[str, float | int | None]:
        """Scores of results uint8 [N, samples, H, W, C].

        PSNR, SSIM and the feature distance (Euclidean, of features of length 1) are means over all results; the Frechet
        distance is of the first ones. Consistency is the PSNR between the condition and what it would be of the result.
        `own_condition` is the shuffle test: the share of results that are nearer to their own condition than to another
        picture's of the same class; of texts, nearer to their own true picture by features.
        """
        number, samples = results.shape[:2]
        true = np.repeat(self.pairs.pixels, samples, 0)
        flat = results.reshape(-1, *results.shape[2:])
        features = self._features(flat)
        apart = (F.normalize(features, dim=-1) - F.normalize(self.real, dim=-1).repeat_interleave(samples, 0)).norm(
            dim=-1
        )
        images = to_model(torch.from_numpy(true)), to_model(torch.from_numpy(flat))
        found: dict[str, float | int | None] = {
            "num_images": number,
            "psnr": psnr(*images).mean().item(),
            "ssim": ssim(*images).mean().item() if min(flat.shape[1:3]) >= _SSIM_WINDOW else None,
            "feature_distance": apart.mean().item(),
            self.cache.net.names[0]: frechet_distance(features.view(number, samples, -1)[:, 0], self.real),
        }
        found |= self._of_condition(flat, samples, features)
        return found | self._of_kind(flat, true)

    def _of_condition(self, flat: np.ndarray, samples: int, features: Tensor) -> dict[str, float | None]:
        given, others = self.pairs.given, np.repeat(self.others, samples)
        known = others >= 0
        if self.made is not None and given is not None:
            names = [name for name in self.pairs.names for _ in range(samples)]
            again = np.stack([self.made(pixels, name) for pixels, name in zip(flat, names, strict=True)])
            own, other = np.repeat(given, samples, 0), given[others]
            error, error_of_other = _squared(again, own), _squared(again, other)
            consistency = float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-6))))
        else:
            real, made = F.normalize(self.real, dim=-1), F.normalize(features, dim=-1)
            error = (made - real.repeat_interleave(samples, 0)).norm(dim=-1).numpy()
            error_of_other = (made - real[torch.from_numpy(others)]).norm(dim=-1).numpy()
            consistency = None
        share = float(np.mean((error < error_of_other)[known])) if known.any() else None
        return {"consistency": consistency, "own_condition": share}

    def _of_kind(self, flat: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """Scores of some kinds: the overlap of silhouettes, and the error of colours (of 255)."""
        kind = "" if self.made is None else self.made.name.partition(":")[0]
        if kind == "silhouette":
            both = [(motif(one), motif(other)) for one, other in zip(flat, true, strict=True)]
            return {"iou": float(np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in both]))}
        if kind == "grey" and flat.shape[-1] == 3:
            return {"chroma_error": float(np.abs(chroma(flat) - chroma(true)).mean())}
        return {}

    def _features(self, pixels: np.ndarray) -> Tensor:
        parts = torch.from_numpy(np.ascontiguousarray(pixels)).split(_CHUNK)
        return self.cache.load([self.cache.key(part) for part in parts])[0].float()


def others_of_class(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """For each picture the next one of its class, in a circle: int64 [N]; -1 where it is alone. Unknown is a class."""
    labels = np.asarray(labels)
    others = np.full(len(labels), -1, np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if len(places) > 1:
            others[places] = np.roll(places, -1)
    return others


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.square(one.astype(np.float64) - other).reshape(len(one), -1).mean(1)

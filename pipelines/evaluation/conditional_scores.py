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
from codegrid.pipelines.evaluation.probe import fit_probes
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.metrics import psnr, ssim

_CHUNK = 250  # pictures per entry of the feature cache
_SSIM_WINDOW = 11
_AMONG = 50  # real pictures among which a text's own is looked for


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
        labels, self.probes = torch.from_numpy(pairs.labels), None
        if (torch.bincount(labels[labels >= 0]) >= 2).sum() >= 2:
            self.probes = fit_probes(self.real, labels, int(labels.max()) + 1)

    def row(self, results: np.ndarray) -> dict[str, float | int | None]:
        """Scores of results uint8 [N, samples, H, W, C].

        PSNR, SSIM and the feature distance (Euclidean, of features of length 1) are means over all results; the Frechet
        distance is of the first ones. Consistency is the PSNR between the condition and what it would be of the result.
        `own_condition` is the shuffle test: the share of results that are nearer to their own condition than to another
        picture's of the same class; of texts, nearer to their own true picture by features. `class_agreement` is the
        share in which probes of the true pictures that were not fitted to a result's see its class (probe.py).
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
        if self.probes is not None:
            found["class_agreement"] = self._agreement(features, samples)
        if self.pairs.texts is not None:
            found[f"found_among_{_AMONG}"] = found_among(features, self.real, self.pairs.texts, _AMONG)
        return found | self._of_kind(flat, true, np.repeat(self.others, samples))

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

    def _agreement(self, features: Tensor, samples: int) -> float:
        labels = torch.from_numpy(self.pairs.labels)
        rows = torch.arange(len(labels)).repeat_interleave(samples)
        known = labels[rows] >= 0
        assert self.probes is not None
        return self.probes.agreement_of_versions(features[known], rows[known], labels).mean

    def _of_kind(self, flat: np.ndarray, true: np.ndarray, others: np.ndarray) -> dict[str, float]:
        """Scores of some kinds: the overlap of silhouettes, and the error of colours (of 255)."""
        kind = "" if self.made is None else self.made.name.partition(":")[0]
        if kind == "silhouette":
            made, wanted = [motif(one) for one in flat], [motif(one) for one in self.pairs.pixels]
            samples, known = len(flat) // len(wanted), np.flatnonzero(others >= 0)
            found = {"iou": _overlap(made, [wanted[place // samples] for place in range(len(made))])}
            with_others = _overlap([made[place] for place in known], [wanted[others[place]] for place in known])
            return {**found, "iou_of_others": with_others} if len(known) else found
        if kind == "grey" and flat.shape[-1] == 3:
            return {"chroma_error": float(np.abs(chroma(flat) - chroma(true)).mean())}
        return {}

    def _features(self, pixels: np.ndarray) -> Tensor:
        parts = torch.from_numpy(np.ascontiguousarray(pixels)).split(_CHUNK)
        return self.cache.load([self.cache.key(part) for part in parts])[0].float()


def found_among(features: Tensor, real: Tensor, texts: Sequence[str], number: int) -> float | None:
    """Share of results whose nearest of `number` real pictures is their own: one in `number` by chance.

    The others are the next pictures of other texts, in a circle. None where there are too few.

    Args:
        features: of the results, [N * samples, D]; `real` of the true pictures, [N, D].
        texts: of the true pictures.
    """
    made, real = F.normalize(features, dim=-1), F.normalize(real, dim=-1)
    samples, right = len(made) // len(real), []
    for row, text in enumerate(texts):
        around = [(row + step) % len(texts) for step in range(1, len(texts))]
        others = [place for place in around if texts[place] != text][: number - 1]
        if len(others) < number - 1:
            return None
        nearness = made[row * samples : (row + 1) * samples] @ real[[row, *others]].T  # [samples, number]
        right.append((nearness[:, 0] > nearness[:, 1:].amax(1)).float().mean())
    return float(torch.stack(right).mean())


def others_of_class(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """For each picture the next one of its class, in a circle: int64 [N]; -1 where it is alone. Unknown is a class."""
    labels = np.asarray(labels)
    others = np.full(len(labels), -1, np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if len(places) > 1:
            others[places] = np.roll(places, -1)
    return others


def _overlap(made: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Mean intersection over union of outlines bool [H, W]."""
    return float(np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(made, wanted, strict=True)]))


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.square(one.astype(np.float64) - other).reshape(len(one), -1).mean(1)

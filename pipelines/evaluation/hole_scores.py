"""The scores of filled holes: pictures in memory, results on the disk, features in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.names import printable
from codegrid.pipelines.data.records import DataError, ImageSource
from codegrid.pipelines.evaluation.distances import frechet_distance
from codegrid.pipelines.evaluation.features import FeatureCache
from codegrid.pipelines.evaluation.left_out import describe_left_out, left_out
from codegrid.pipelines.evaluation.picture_sets import Cut, FolderPictures, spread
from codegrid.pipelines.evaluation.probe import SEEDS, fit_probes
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import claim_images
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.files import write_atomically

_CHUNK = 20  # pictures a file of results
_READ = 250
_LEAST_ERROR = 1e-10  # of PSNR: 100 dB at most


@dataclass(frozen=True)
class Pictures:
    """The pictures that are scored.

    Attributes:
        pixels: uint8 [N, H, W, C].
        rows: of the pictures in their source.
        labels: their classes in the source, -1 where it is not known, int64 [N].
        conditions: their classes in the pipeline; None draws as the null class.
        names: of the source's classes.
        said: sentences for people.
        without: the record of what was left out.
    """

    pixels: Tensor
    rows: list[int]
    labels: Tensor
    conditions: list[int] | None
    names: tuple[str, ...] | None
    said: list[str]
    without: dict[str, Any]

    def conditions_of(self, some: slice) -> list[int] | None:
        return None if self.conditions is None else self.conditions[some]

    def name_of(self, place: int) -> str:
        label = int(self.labels[place])
        return "" if self.names is None or label < 0 else printable(self.names[label])


def read_pictures(
    pipe: ImageGenerationPipeline, source: ImageSource, most: int, least: int, labelled: bool
) -> Pictures:
    """At most `most` pictures of a source, spread evenly, as the tokenizer sees them.

    Args:
        labelled: they are drawn as their own classes, if the pipeline has these.

    Raises:
        DataError: fewer than `least` could be used.
        CodegridError: without a class, for a prior without a null class.
    """
    config = pipe.tokenizer.config
    reader = FolderPictures(source, Cut(config.preprocessing_config, config.backbone_config.in_channels))
    chosen = spread(len(source), most)
    parts, rows, labels, skipped = [], [], [], {}
    for chunk in reader.read([chosen[first : first + _READ] for first in range(0, len(chosen), _READ)]):
        parts += [chunk.pixels] if len(chunk.pixels) else []
        rows += chunk.rows
        labels += chunk.labels
        skipped |= chunk.skipped
    without = left_out(skipped)
    if len(rows) < least:
        raise DataError(
            " ".join(
                [
                    f"{len(rows)} of {len(chosen)} pictures could be used, and {least} are needed.",
                    *describe_left_out(without),
                ]
            ),
            "Give more pictures; `codegrid look` shows what is read.",
        )
    conditions, said = (None, []) if not labelled else _conditions(pipe, source, labels)
    names = None if source.class_names is None else tuple(source.class_names)
    return Pictures(torch.cat(parts), rows, torch.tensor(labels), conditions, names, said, without)


def _conditions(
    pipe: ImageGenerationPipeline, source: ImageSource, labels: Sequence[int]
) -> tuple[list[int] | None, list[str]]:
    own, names = pipe.class_names, source.class_names
    if own is None:
        return None, []
    if names is not None and set(names) <= set(own) and min(labels) >= 0:
        return [own.index(names[label]) for label in labels], []
    require(
        pipe.sequence.null_class,
        "The pictures do not all have one of the pipeline's classes, and its prior has no null class.",
        f"Give pictures of the classes {', '.join(map(printable, own[:10]))}.",
    )
    return None, ["The pictures do not all have one of the pipeline's classes: all are drawn as the null class."]


class HoleResults:
    """Results of the ways to fill, a file for some pictures each, under `folder`/results/: a stop loses one file."""

    def __init__(self, folder: Path, pictures: Pictures, made_with: dict[str, Any]) -> None:
        self.folder, self.pictures, self.made_with = folder, pictures, made_with

    @resumable()
    def of(
        self, hole: str, method: str, masks: np.ndarray | None, make: Callable[[slice], Tensor], samples: int
    ) -> Tensor:
        """All results of one way, uint8 [N, samples, H, W, C]; those that are on the disk are read.

        Raises:
            OutputError: the folder holds something else.
        """
        settings = {**self.made_with, "hole": hole, "method": method}
        if masks is not None:
            settings["masks"] = hashlib.sha256(masks.tobytes()).hexdigest()
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        place = self.folder / "results" / f"{hole}_{method}_{mark}".replace(" ", "-")
        claim_images(place, settings)
        shape = (samples, *self.pictures.pixels.shape[1:])
        parts, number = [], len(self.pictures.rows)
        with tqdm(total=number, desc=f"{hole}, {method}", unit="picture", dynamic_ncols=True) as bar:
            for first in range(0, number, _CHUNK):
                some = slice(first, min(first + _CHUNK, number))
                path = place / f"{first // _CHUNK:06d}.safetensors"
                found = _read(path, (some.stop - first, *shape))
                if found is None:
                    found = make(some).contiguous()
                    write_atomically(path, lambda aside, found=found: save_file({"images": found}, aside))
                parts.append(found)
                bar.update(len(found))
        return torch.cat(parts)


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Results on the disk; None if they are missing, damaged or of another shape."""
    try:
        found = load_file(path)["images"] if path.is_file() else None
    except (SafetensorError, KeyError):
        return None
    return found if found is not None and found.shape == shape and found.dtype == torch.uint8 else None


class Scorer:
    """Scores of results beside the true pictures.

    Attributes:
        real: features of the true pictures, float32 [N, D].
        said: why there is no class agreement, if there is none.
    """

    def __init__(self, pictures: Pictures, cache: FeatureCache, class_names: Sequence[str] | None) -> None:
        self.pictures, self.cache, self.said = pictures, cache, []
        self.real = self._features(pictures.pixels[:, None])[:, 0]
        self.probes = None
        if class_names is not None and (pictures.labels >= 0).any():
            try:
                self.probes = fit_probes(self.real, pictures.labels, len(class_names))
            except CodegridError as error:
                self.said.append(f"No class agreement: {error.what}")

    def judged(self) -> dict[str, Any] | None:
        """The record of the judge."""
        if self.probes is None:
            return None
        real = self.probes.of_real
        found = {"kind": "linear probe", "trained_on": len(self.real), "seeds": list(SEEDS)}
        return {**found, "class_agreement_of_real_images": real.mean, "class_agreement_of_real_images_std": real.spread}

    def row(self, results: Tensor, masks: np.ndarray | None) -> dict[str, float | int | None]:
        """Scores of results uint8 [N, samples, H, W, C].

        PSNR is over the pixels of the hole. The feature distance is the Euclidean one of features of length 1, of a
        result and the true picture, which differ in the hole alone; diversity is that of two results of a picture. The
        Frechet distance is of the first results to the same true pictures, so that all rows have as many.
        """
        number, samples = results.shape[:2]
        features = self._features(results)  # [N, samples, D]
        made, real = F.normalize(features, dim=-1), F.normalize(self.real, dim=-1)
        apart = torch.stack([F.pdist(one) for one in made]) if samples > 1 else None
        agreement = None
        if self.probes is not None:
            rows = torch.arange(number).repeat_interleave(samples)
            agreement = self.probes.agreement_of_versions(features.flatten(0, 1), rows, self.pictures.labels)
        return {
            "num_images": number,
            "psnr": None if masks is None else self._psnr(results, masks),
            "feature_distance": (made - real[:, None]).norm(dim=-1).mean().item(),
            self.cache.net.names[0]: frechet_distance(features[:, 0], self.real),
            "class_agreement": None if agreement is None else agreement.mean,
            "class_agreement_std": None if agreement is None else agreement.spread,
            "diversity": None if apart is None else apart.mean().item(),
        }

    def _psnr(self, results: Tensor, masks: np.ndarray) -> float:
        """In dB: the mean over results of that of the hole's pixels."""
        found = []
        for result, true, mask in zip(results, self.pictures.pixels, torch.from_numpy(masks), strict=True):
            errors = (result[:, mask].double() - true[mask].double()) / 255  # [samples, pixels, C]
            found.append(-10 * errors.square().mean((1, 2)).clamp(min=_LEAST_ERROR).log10())
        return torch.cat(found).mean().item()

    def _features(self, results: Tensor) -> Tensor:
        """uint8 [N, samples, H, W, C] -> float32 [N, samples, D]."""
        keys = [self.cache.key(part.flatten(0, 1)) for part in results.split(_CHUNK)]
        return self.cache.load(keys)[0].float().unflatten(0, results.shape[:2])

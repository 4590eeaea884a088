"""The judge of a pipeline's class agreement: linear probes on the reference's features, which blur does not fool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import CodegridError
from codegrid.pipelines.data.classes import decoder_classes
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.evaluation.features import FeatureCache
from codegrid.pipelines.evaluation.picture_sets import FolderPictures, spread
from codegrid.pipelines.evaluation.probe import SEEDS, Agreement, Probes, fit_probes
from codegrid.pipelines.evaluation.reference import Reference
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.devices import evaluating
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.moving import to_device

_MOST_RECONSTRUCTED = 2000
_CHUNK, _BATCH = 250, 32  # pictures per entry of the feature cache, and per batch of the tokenizer


@dataclass
class Judge:
    """Probes of the reference's features.

    Attributes:
        of_reconstructions: agreement on what the tokenizer makes of the real pictures: no sample can be clearer. None
            where there is no tokenizer.
        num_images, num_reconstructed: labelled reference pictures, and reconstructions among them.
    """

    probes: Probes
    of_reconstructions: Agreement | None
    num_images: int
    num_reconstructed: int

    def scores(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Scores of samples with these features [N, D] and requested classes [N]."""
        return _named("class_agreement", self.probes.agreement(features, labels))

    def identity(self) -> dict[str, Any]:
        """What tells the rows of one judge from those of another."""
        return {"kind": "linear probe", "trained_on": self.num_images, "seeds": list(SEEDS)}

    def describe(self) -> dict[str, Any]:
        found = self.identity() | _named("class_agreement_of_real_images", self.probes.of_real)
        if self.of_reconstructions is not None:
            found |= _named("class_agreement_of_reconstructions", self.of_reconstructions)
            found["num_reconstructed"] = self.num_reconstructed
        return found

    def say(self) -> str:
        """One line for people."""
        parts = [f"real pictures {_share(self.probes.of_real)}"]
        if self.of_reconstructions is not None:
            parts.append(f"their reconstructions {_share(self.of_reconstructions)}")
        return f"Class agreement by linear probes, mean over classes and {len(SEEDS)} splits: {', '.join(parts)}."


def train_judge(
    reference: Reference,
    class_names: tuple[str, ...] | None,
    most: int,
    cache: FeatureCache,
    accelerator: Accelerator,
    pipe: ImageGenerationPipeline | None = None,
) -> Judge | None:
    """A judge of at most `most` reference pictures on the main process; None if there is nothing to judge.

    Args:
        class_names: the samples' classes, None without any. The reference must have the same, in any order.
        pipe: its tokenizer's reconstructions of the reference are judged, too.
    """
    if not most or class_names is None or not accelerator.is_main_process:
        return None
    judge, reason = None, _why_not(reference, class_names)
    if not reason:
        assert reference.features is not None
        places = (reference.labels >= 0).nonzero().flatten()
        places = places[torch.from_numpy(spread(len(places), most))]
        labels = _as_the_samples(reference, class_names)[reference.labels[places]]
        try:
            probes = fit_probes(reference.features[places], labels, len(class_names))
            judge = _with_reconstructions(probes, reference, places, labels, cache, pipe)
        except CodegridError as error:
            reason = error.what.rstrip(".")
    tqdm.write(f"No class agreement: {reason}." if judge is None else judge.say())
    return judge


def _why_not(reference: Reference, class_names: tuple[str, ...]) -> str | None:
    pictures = reference.pictures
    if not isinstance(pictures, FolderPictures) or reference.features is None:
        return "the reference is no source with labels"
    known = pictures.source.class_names
    if known is None or sorted(known) != sorted(class_names):
        has = "no classes" if known is None else f"the classes {', '.join(known)}"
        return f"the reference has {has}, the samples {', '.join(class_names)}"
    return None if (reference.labels >= 0).any() else "no reference picture has a label"


def _as_the_samples(reference: Reference, class_names: tuple[str, ...]) -> Tensor:
    """The samples' label of each of the reference's, int64 [classes]: folders are in the order of the alphabet, a table
    has its own.
    """
    assert isinstance(reference.pictures, FolderPictures)
    return torch.tensor([class_names.index(name) for name in reference.pictures.source.class_names or ()])


def _with_reconstructions(
    probes: Probes,
    reference: Reference,
    places: Tensor,
    labels: Tensor,
    cache: FeatureCache,
    pipe: ImageGenerationPipeline | None,
) -> Judge:
    """A judge that knows the agreement of reconstructions, if there is a tokenizer.

    Args:
        places: the judge's pictures as rows of the reference's features, int64 [N].
        labels: their classes, int64 [N].
    """
    if pipe is None:
        return Judge(probes, None, len(labels), 0)
    chosen = torch.from_numpy(spread(len(places), _MOST_RECONSTRUCTED))
    features = _reconstructed(pipe, reference, places[chosen], cache)
    of_reconstructions = probes.agreement_of_versions(features, chosen, labels)
    return Judge(probes, of_reconstructions, len(labels), len(chosen))


@torch.no_grad()
def _reconstructed(pipe: ImageGenerationPipeline, reference: Reference, places: Tensor, cache: FeatureCache) -> Tensor:
    """Features of the reconstructions of the pictures at `places` of the reference: [M, D]."""
    assert isinstance(reference.pictures, FolderPictures)
    source, model = reference.pictures.source, pipe.tokenizer
    classes = decoder_classes(model.config, source.class_names, source.description)
    parts = places.split(_CHUNK)
    bar = tqdm(total=len(places), desc="reconstructions", unit="image", dynamic_ncols=True)
    keys = []
    with evaluating(model):
        for part, chunk in zip(
            parts, reference.pictures.read([reference.rows[p].tolist() for p in parts]), strict=True
        ):
            if chunk.skipped:
                name, reason = next(iter(chunk.skipped.items()))
                raise DataError(f"{name} was read before, and now: {reason}.", "Run the same command again.")
            conditions = None if classes is None else torch.tensor(classes)[torch.tensor(chunk.labels)]
            made = []
            for first in range(0, len(part), _BATCH):
                images = to_model(to_device(chunk.pixels[first : first + _BATCH], pipe.device))
                condition = None if conditions is None else conditions[first : first + _BATCH]
                made.append(to_uint8(model(images, condition).reconstruction).cpu())
            keys.append(cache.key(torch.cat(made)))
            bar.update(len(part))
    bar.close()
    return cache.load(keys)[0]


def _named(name: str, agreement: Agreement) -> dict[str, float]:
    return {name: agreement.mean, f"{name}_std": agreement.spread}


def _share(agreement: Agreement) -> str:
    return f"{agreement.mean:.1%} (± {agreement.spread:.1%})"

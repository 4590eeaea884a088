"""The judge of a pipeline's class agreement, trained on the reference images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from codegrid.pipelines.data.records import DataConfig, ImageSource
from codegrid.pipelines.data.sources import split_images
from codegrid.pipelines.evaluation.class_agreement import class_agreement, predicted_labels, train_classifier
from codegrid.pipelines.evaluation.reconstruction import all_pixels
from codegrid.pipelines.evaluation.samples import Samples
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

_HELD_OUT = 0.1  # share of the reference that is held out to test the judge
_SEED = 0
_LEAST_SIDE = 16  # of `SmallClassifier`


@dataclass
class Judge:
    """A classifier of real images, and its accuracy in [0, 1] on held-out ones."""

    classifier: nn.Module
    agreement_of_real_images: float
    num_images: int

    def agreement(self, samples: Samples) -> float:
        """Share of the samples for which the judge predicts the requested class."""
        right = [predicted_labels(self.classifier, samples.pixels(s)) == samples.labels(s) for s in samples.shards]
        return float(np.concatenate(right).mean())

    def describe(self) -> dict[str, Any]:
        return {
            "trained_on": self.num_images,
            "class_agreement_of_real_images": self.agreement_of_real_images,
            "seed": _SEED,
        }


def train_judge(
    pipe: ImageGenerationPipeline, reference: DataConfig | None, most: int, accelerator: Accelerator
) -> Judge | None:
    """A judge trained on at most `most` reference images on the main process; None if there is nothing to judge.

    `reference` is None if its pictures have no labels.
    """
    if not most or pipe.class_names is None or not accelerator.is_main_process:
        return None
    reason, judge = None, None
    if reference is None:
        reason = "the reference is no source with labels"
    elif min(pipe.tokenizer.config.preprocessing_config.size) < _LEAST_SIDE:
        reason = f"the judge needs pictures of {_LEAST_SIDE} pixels a side"
    else:
        judge, reason = _trained(pipe, pipe.class_names, reference, most)
    if reason:
        tqdm.write(f"No class agreement: {reason}.")
    return judge


def _trained(
    pipe: ImageGenerationPipeline, names: tuple[str, ...], reference: DataConfig, most: int
) -> tuple[Judge | None, str | None]:
    """(the judge, None), or (None, why there is none)."""
    train, held_out = split_images(replace(reference, validation_fraction=_HELD_OUT))
    if train.class_names is None or tuple(train.class_names) != names:
        known = "no classes" if train.class_names is None else f"the classes {', '.join(train.class_names)}"
        return None, f"the reference has {known}, the pipeline {', '.join(names)}"
    images, labels = _labelled(pipe, train, most)
    unseen, unseen_labels = _labelled(pipe, held_out, most)
    if len(images) < 2 or not len(unseen):
        return None, f"the reference has {len(images) + len(unseen)} labelled pictures"
    classifier = train_classifier(images, labels, len(names), seed=_SEED)
    return Judge(classifier, class_agreement(classifier, unseen, unseen_labels), len(images)), None


def _labelled(pipe: ImageGenerationPipeline, source: ImageSource, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` images, spread evenly over the source, without unlabelled ones: uint8 [N, H, W, C], [N]."""
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
    images, labels = all_pixels(pipe.tokenizer, source.subset(rows, "for the judge"))
    return images[labels >= 0], labels[labels >= 0]

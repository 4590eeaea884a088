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
    pipe: ImageGenerationPipeline, reference: DataConfig, most: int, accelerator: Accelerator
) -> Judge | None:
    """A judge trained on at most `most` reference images on the main process; None if there is nothing to judge."""
    if not most or pipe.class_names is None or not accelerator.is_main_process:
        return None
    train, held_out = split_images(replace(reference, validation_fraction=_HELD_OUT))
    if train.class_names is None or tuple(train.class_names) != pipe.class_names:
        known = "no classes" if train.class_names is None else f"the classes {', '.join(train.class_names)}"
        tqdm.write(f"No class agreement: the reference has {known}, the pipeline {', '.join(pipe.class_names)}.")
        return None
    images, labels = _labelled(pipe, train, most)
    unseen, unseen_labels = _labelled(pipe, held_out, most)
    classifier = train_classifier(images, labels, len(pipe.class_names), seed=_SEED)
    return Judge(classifier, class_agreement(classifier, unseen, unseen_labels), len(images))


def _labelled(pipe: ImageGenerationPipeline, source: ImageSource, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` images, spread evenly over the source, without unlabelled ones: uint8 [N, H, W, C], [N]."""
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
    images, labels = all_pixels(pipe.tokenizer, source.subset(rows, "for the judge"))
    return images[labels >= 0], labels[labels >= 0]

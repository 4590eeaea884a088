"""`codegrid evaluate classification`: which class makes a picture likeliest, and how often it is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.pipelines.evaluation.probe import balanced_accuracy
from codegrid.pipelines.evaluation.reconstruction import all_pixels
from codegrid.pipelines.evaluation.results import circumstances, describe_data, output_folder
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_json
from codegrid.prior.codes import open_codes
from codegrid.tokenizer.images import to_model

_AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class ClassificationScores:
    """How often the likeliest class is the right one.

    Attributes:
        class_prior: "uniform", or "codes": the classes' shares in a code data set.
        accuracy: share of all pictures.
        balanced_accuracy: mean over the classes that occur of the share of their pictures.
        nats: mean of -log p(right class | picture).
    """

    class_prior: str
    accuracy: float
    balanced_accuracy: float
    nats: float


def evaluate_classification(
    pipeline: str,
    data: DataConfig,
    output_dir: str | None = None,
    num_images: int = 2000,
    orders: int = 0,
    temperature: float = 1.0,
    codes: str | None = None,
    batch_size: int | None = None,
) -> Path:
    """Classify pictures by a pipeline's prior: the class that makes their codes likeliest, without any training.

    Args:
        pipeline: folder or Hub name; its prior follows classes.
        data: labelled pictures, none that the pipeline was trained on; their class names are the prior's.
        output_dir: folder for classification.json; by default a folder beside the pipeline's.
        num_images: at most so many pictures, spread evenly over the data.
        orders: of a prior of any order, the mean of so many random orders; 0 is raster order.
        temperature: divides log p(codes | class), above 0: a prior that was trained for long is too sure of its class.
        codes: a code data set whose shares of classes are a prior of classes, which adds a row; the pipeline's training
            codes, for example.
        batch_size: pictures at once; None: as many as fit.

    Raises:
        DataError: the pictures cannot be read, have no labels, or none of the prior's classes.
        LoadingError: the pipeline cannot be loaded.
        CodegridError: the prior has no classes, or a number is out of its range.
    """
    require(num_images >= 1, f"num_images is {num_images}.", "Give at least 1.")
    require(orders >= 0, f"orders is {orders}.", "Give at least 1, or 0 for raster order.")
    pipe = ImageGenerationPipeline.from_pretrained(pipeline)
    names = pipe.class_names
    require(names is not None, "This pipeline's prior has no classes to choose from.", "Take one trained with labels.")
    assert names is not None
    priors: dict[str, list[float] | None] = {"uniform": None}
    if codes is not None:
        priors["codes"] = _shares(codes, names)
    accelerator = make_accelerator()
    pipe.to(accelerator.device)
    source = open_images(data)
    print("\n".join(describe_source(source)))
    grids, labels = _labelled_codes(pipe, source, num_images)
    options = {"temperature": temperature, "orders": orders or None, "batch_size": batch_size}
    posterior = pipe.classify(grids, **options, progress=True)  # [N, C]
    results = [_scores(name, posterior, shares, labels) for name, shares in priors.items()]
    folder = output_folder(output_dir, pipeline)
    counts = torch.bincount(labels, minlength=len(names))
    record: dict[str, Any] = {
        "kind": "classification",
        "results": [asdict(one) for one in results],
        "num_images": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "constant": {
            "accuracy": float(counts.max() / counts.sum()),
            "balanced_accuracy": 1 / int((counts > 0).sum()),
        },
        "right_by_class": _by_class(posterior, labels, names),
        "orders": orders,
        "temperature": temperature,
        "pipeline": pipeline,
        "codes": codes,
        "prior_fingerprint": weights_fingerprint(pipe.prior),
        "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
        "data": describe_data(source, data.source, data.split, pipe.tokenizer),
        **circumstances(accelerator),
    }
    write_json(folder / "classification.json", record)
    for one in results:
        print(
            f"Classes {'all as likely' if one.class_prior == 'uniform' else 'by their shares in the codes'}: accuracy "
            f"{one.accuracy:.3f}, balanced {one.balanced_accuracy:.3f}, {one.nats:.3f} nats."
        )
    always = record["constant"]
    print(f"The most frequent class always: accuracy {always['accuracy']:.3f}, {always['balanced_accuracy']:.3f}.")
    print(f"The scores, by class as well, are in {shown(folder / 'classification.json')}.")
    return folder


def _labelled_codes(pipe: ImageGenerationPipeline, source: Any, most: int) -> tuple[Tensor, Tensor]:
    """Codes of at most `most` pictures with a known class, and the class in the pipeline, int64 [N]."""
    own, theirs = pipe.class_names or (), source.class_names or ()
    if not set(own) & set(theirs):
        raise DataError(
            f"The pictures' classes ({', '.join(theirs[:5]) or 'none'}) are none of the prior's "
            f"({', '.join(own[:5])}{', ...' if len(own) > 5 else ''}).",
            "Give pictures with the labels that the prior was trained with (`codegrid look` says what is read).",
        )
    if isinstance(source, ImageSource):
        rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
        source = source.subset(rows, "to classify")
    pixels, labels = all_pixels(pipe.tokenizer, source)
    known = [own.index(theirs[label]) if label >= 0 and theirs[label] in own else -1 for label in labels.tolist()]
    kept = np.array(known) >= 0
    if not kept.any():
        raise DataError("None of the pictures has a class of the prior.", "codegrid look says what is read of them.")
    if not kept.all():
        print(f"{int((~kept).sum()):,} pictures without a class of the prior are left out.")
    parts = torch.arange(int(kept.sum())).split(_AT_ONCE)
    codes = torch.cat([pipe.encode(to_model(pixels[kept][part.numpy()])) for part in parts])
    return codes, torch.tensor(known)[torch.from_numpy(kept)]


def _shares(codes: str, names: Sequence[str]) -> list[float]:
    """Share of each class in a code data set; a class that does not occur counts as one row."""
    data = open_codes(codes)
    if data.labels is None or data.manifest.class_names != tuple(names):
        raise DataError(
            f"The codes {shown(codes)} have other classes than the prior, or none.",
            "Give the codes that the prior was trained on.",
        )
    labels = np.asarray(data.labels)
    counts = np.bincount(labels[labels >= 0], minlength=len(names)).clip(min=1)
    return [float(count) for count in counts / counts.sum()]


def _scores(name: str, posterior: Tensor, shares: Sequence[float] | None, labels: Tensor) -> ClassificationScores:
    """`posterior` [N, C] is that of equally likely classes."""
    if shares is not None:
        posterior = (posterior + torch.tensor(shares, dtype=torch.float64).log()).log_softmax(1)
    chosen = posterior.argmax(1)
    return ClassificationScores(
        name,
        float((chosen == labels).double().mean()),
        balanced_accuracy(chosen, labels),
        float(-posterior.gather(1, labels[:, None]).mean()),
    )


def _by_class(posterior: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    right = (posterior.argmax(1) == labels).double()
    return {name: float(right[labels == label].mean()) for label, name in enumerate(names) if (labels == label).any()}

"""What samples are compared with: real pictures, statistics of their features from a file, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_reading
from codegrid.pipelines.evaluation.distances import (
    classifier_score,
    frechet_of_moments,
    kernel_distance,
    mean_and_covariance,
    precision_recall,
)
from codegrid.pipelines.evaluation.features import FeatureCache
from codegrid.pipelines.evaluation.left_out import describe_few, describe_left_out
from codegrid.pipelines.evaluation.npz_files import NpzFile, write_statistics
from codegrid.pipelines.evaluation.picture_sets import (
    ArrayPictures,
    Cut,
    FolderPictures,
    check_number,
    is_npz,
    set_features,
    spread,
)

_LEAST = 4  # precision and recall look at each picture's three nearest ones


@dataclass
class OpenReference:
    """A reference whose kind and sizes are checked, and of which nothing is computed.

    Attributes:
        data: how to read its pictures with labels; None of an .npz file.
        said: for people.
    """

    data: DataConfig | None
    pictures: FolderPictures | ArrayPictures | None
    file: NpzFile | None
    said: str
    record: dict[str, Any]


@dataclass
class Reference:
    """Features of the reference.

    Attributes:
        moments: mean [D] and covariance [D, D], float64.
        features: [N, D]; None of statistics alone, which then leave kernel distance, precision and recall out.
        pictures, rows, labels: whose features they are: a set, rows in it and classes (-1: not known), int64 [N].
        notes: sentences for people.
        record: for the results; `record["fingerprint"]` is its identity.
    """

    moments: tuple[Tensor, Tensor]
    features: Tensor | None
    pictures: FolderPictures | ArrayPictures | None
    rows: Tensor
    labels: Tensor
    notes: list[str]
    record: dict[str, Any]

    def scores(self, cache: FeatureCache, features: Tensor, logits: Tensor, device: torch.device) -> dict[str, float]:
        """The scores of samples with these features [N, D] and logits [N, classes]."""
        frechet, kernel, score, precision, recall = cache.net.names
        moments, real = self.moments, self.features
        if device.type == "cuda":  # other accelerators have no float64
            features, logits = features.to(device), logits.to(device)
            moments = (moments[0].to(device), moments[1].to(device))
            real = None if real is None else real.to(device)
        value, value_deviation = classifier_score(logits)
        found = {frechet: frechet_of_moments(mean_and_covariance(features), moments)}
        if real is not None:
            distance, distance_deviation = kernel_distance(features, real)
            found |= {kernel: distance, f"{kernel}_std": distance_deviation}
        found |= {score: value, f"{score}_std": value_deviation}
        if real is not None:
            share, coverage = precision_recall(features, real)
            found |= {precision: share, recall: coverage}
        return found

    def caution(self, number: int, dimensions: int, name: str) -> list[str]:
        """A sentence if there are few samples or few real pictures; see `describe_few`."""
        real = {} if self.features is None else {"reference pictures": len(self.features)}
        return describe_few({"samples": number, **real}, dimensions, name)


def open_reference(data: DataConfig, cut: Cut, num_workers: int = 0) -> OpenReference:
    """Open the reference, with pictures cut by `cut` and loaded by `num_workers` processes.

    Raises:
        DataError: it cannot be read as configured, or its pictures have another size and are cut already.
    """
    if not is_npz(data.source):
        source = open_images(data)
        check_number(len(source), "reference pictures", _LEAST)
        pictures = FolderPictures(source, cut, num_workers)
        record = {
            "source": data.source,
            "split": data.split,
            "description": source.description,
            "fingerprint": source.fingerprint,
        }
        said = f"Reference: {source.description}.\n{describe_reading(source)}".rstrip("\n")
        return OpenReference(data, pictures, None, said, {**record, **_cut_record(cut)})
    file = NpzFile(data.source)
    pictures = ArrayPictures(file, cut) if file.shape else None
    check_number(_LEAST if pictures is None else len(pictures), "reference pictures", _LEAST)
    kinds = ["statistics of features (mu, sigma)"] * file.has_statistics
    kinds += [f"{file.shape[0]:,} pictures of {file.shape[1]}x{file.shape[2]} (arr_0)"] if file.shape else []
    description = f"{file.name}: {' and '.join(kinds)}"
    record = {"source": data.source, "description": description, "fingerprint": file.fingerprint}
    said = f"Reference: {description}."
    if pictures is None:
        said += "\n  Without pictures there are no kernel distance, precision, recall and class agreement."
    elif file.has_statistics:
        said += "\n  The Frechet distance is to the statistics; kernel distance, precision and recall to the pictures."
    return OpenReference(None, pictures, file, said, {**record, **_cut_record(cut)})


def _cut_record(cut: Cut) -> dict[str, Any]:
    return {"preprocessing": cut.describe(), "resize_filter": "PIL bicubic, antialiased"}


def read_reference(
    opened: OpenReference, most: int, cache: FeatureCache, dimensions: int, accelerator: Accelerator
) -> Reference:
    """Read the statistics, and compute the features of at most `most` pictures (0: all).

    Raises:
        DataError: the statistics are of another net, or too few pictures could be used.
    """
    moments = features = None
    kept = labels = torch.empty(0, dtype=torch.int64)
    record, notes = dict(opened.record), []
    if opened.file is not None and opened.file.has_statistics:
        found = opened.file.read_statistics(dimensions, cache.net.describe())
        _check_noted(found.noted, record, opened.file.name)
        moments = found.mean, found.covariance
        record["statistics"] = found.noted
    if opened.pictures is not None:
        rows = spread(len(opened.pictures), most)
        computed = set_features(opened.pictures, rows, cache, accelerator, "reference pictures", _LEAST)
        features, kept, labels = computed.features, computed.rows, computed.labels
        record |= {"num_images": len(features), "asked_for": len(rows), "left_out": computed.without}
        notes = describe_left_out(computed.without, "reference pictures")
    if moments is None:
        assert features is not None  # an opened reference has one of them
        moments = mean_and_covariance(features)
    return Reference(moments, features, opened.pictures, kept, labels, notes, record)


def _check_noted(noted: dict[str, str], record: dict[str, Any], name: str) -> None:
    """Refuse statistics of ours whose pictures were cut otherwise."""
    now = str(record["preprocessing"]["image_size"])
    require(
        noted.get("image_size", now) == now,
        f"{name} was made of pictures of {noted.get('image_size')} pixels, and {now} is compared.",
        "Make the statistics again with --save-statistics, or give the pictures.",
    )


def save_statistics(path: str, reference: Reference, cache: FeatureCache) -> None:
    """Write the reference's statistics for later evaluations, with the net and the cut they are of."""
    record = reference.record
    noted = {f"net_{name}": value for name, value in cache.net.describe().items()}
    noted |= {"image_size": record["preprocessing"]["image_size"], "fingerprint": record["fingerprint"]}
    noted |= {"description": record["description"], "num_images": record.get("num_images", "not known")}
    write_statistics(Path(path), *reference.moments, noted)

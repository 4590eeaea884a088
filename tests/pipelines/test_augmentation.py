"""What samples are worth as training pictures: `codegrid evaluate augmentation`."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.comparison import augmentation
from codegrid.pipelines.comparison.augmentation import _chosen, evaluate_augmentation, table
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES
from codegrid.pipelines.evaluation.class_agreement import train_classifier
from codegrid.pipelines.system.files import OutputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fashion(tmp_path):
    """Two files of Fashion-MNIST's pictures, none of which is in both."""
    every = pq.read_table(EMBEDDED_IMAGES)
    for name, first in (("train", 0), ("test", 200)):
        pq.write_table(every.slice(first, 200), tmp_path / f"{name}.parquet")
    return DataConfig(str(tmp_path / "train.parquet")), str(tmp_path / "test.parquet")


def test_the_generator_sees_the_classifiers_pictures_alone(fashion, tmp_path, monkeypatch):
    options = {"tokenizer_steps": 2, "prior_steps": 2, "classifier_steps": 2, "samples_per_class": 3, "seeds": 2}
    folder = evaluate_augmentation(*fashion, str(tmp_path / "out"), per_class=(2,), **options)
    record = json.loads((folder / "augmentation.json").read_text())
    assert [(row["per_class"], row["seed"]) for row in record["results"]] == [(2, 0), (2, 1)]
    assert all(0 <= value <= 1 for row in record["results"] for value in row["accuracy"].values())
    known = [row["bytes"] for row in pq.read_table(fashion[0].source)["image"].to_pylist()]
    pictures = []
    for seed in (0, 1):
        rows = pq.read_table(folder / f"0002-{seed}" / "images.parquet").to_pylist()
        assert sorted(row["label"] for row in rows) == sorted([*range(10)] * 2)
        assert all(row["image"]["bytes"] in known for row in rows)
        pictures.append({row["image"]["bytes"] for row in rows})
        made = json.loads((folder / f"0002-{seed}" / "codes" / "manifest.json").read_text())
        assert made["source"].startswith(str(folder / f"0002-{seed}" / "images.parquet"))
        assert made["num_images"] == 20
    assert pictures[0] != pictures[1]
    monkeypatch.setattr(augmentation, "_trial", None)  # what is there is not made again
    before = (folder / "augmentation.md").read_text()
    evaluate_augmentation(*fashion, str(folder), per_class=(2,), **options)
    assert (folder / "augmentation.md").read_text() == before
    with pytest.raises(OutputError, match="different: prior_steps"):
        evaluate_augmentation(*fashion, str(folder), per_class=(2,), **{**options, "prior_steps": 3})


def test_what_is_refused(fashion, tmp_path):
    for wrong, message in [
        ({"seeds": 1}, "seeds is 1"),
        ({"per_class": ()}, "per_class is 0"),
        ({"per_class": (2, 500)}, "and 500 are needed"),
        ({"classifier_steps": 0}, "classifier_steps is 0"),
    ]:
        with pytest.raises(CodegridError, match=message):
            evaluate_augmentation(*fashion, str(tmp_path / "out"), **wrong)
    plain = DataConfig(fashion[0].source, label_column="none")
    with pytest.raises(DataError, match="has no classes"):
        evaluate_augmentation(plain, fashion[1], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_smaller_number_is_a_part_of_a_larger_one():
    rows = [list(range(10)), list(range(10, 15))]
    few, more = set(_chosen(rows, 2, 3)), set(_chosen(rows, 4, 3))
    assert len(few) == 4
    assert few < more
    assert few != set(_chosen(rows, 2, 4))


def test_intervals_are_students():
    scipy = pytest.importorskip("scipy.stats")
    for place, quantile in enumerate(augmentation._STUDENT):
        assert scipy.t.ppf(0.975, place + 1) == pytest.approx(quantile, abs=1e-3)
    results = [
        {
            "per_class": 20,
            "seed": seed,
            "accuracy": dict.fromkeys(augmentation._WAYS, base) | {"both, flips and crops": both},
        }
        for seed, (base, both) in enumerate([(0.5, 0.6), (0.6, 0.72), (0.7, 0.78)])
    ]
    said = table(results)
    half = 4.303 * np.std([10, 12, 8], ddof=1) / 3**0.5
    assert said.splitlines()[2].endswith(f"| +10.0 ± {half:.1f} |")
    assert "| 60.0 ± 24.8 |" in said


def test_a_classifier_without_shifts_sees_the_pictures_as_they_are(monkeypatch):
    pictures, labels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), dtype=np.uint8), np.arange(8) % 2
    seen = []
    forward = torch.nn.Module.__call__

    def call(module, inputs):
        if inputs.dtype == torch.uint8:
            seen.append(inputs)
        return forward(module, inputs)

    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    for shift, same in ((None, True), (3, False)):
        seen.clear()
        train_classifier(pictures, labels, 2, seed=0, steps=2, shift=shift)
        known = {one.tobytes() for one in pictures}
        assert all(one.numpy().tobytes() in known for batch in seen for one in batch) is same

"""`codegrid generate --output-format`: samples that `load_dataset` reads with their classes."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.generation import to_dataset
from codegrid.pipelines.generation.asked import Asked
from codegrid.pipelines.generation.to_dataset import files_by_class
from codegrid.pipelines.generation.to_folder import generate_images
from codegrid.pipelines.system.files import OutputError


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("output_format", ["imagefolder", "parquet"])
def test_load_dataset_reads_the_samples_with_their_classes(output_format, pipeline_folder, tmp_path, cached):
    options = {"num_images": 7, "seed": 3, "batch_size": 7}
    plain = generate_images(str(pipeline_folder), str(tmp_path / "plain"), **options)
    folder = generate_images(str(pipeline_folder), str(tmp_path / "data"), output_format=output_format, **options)
    assert Image.open(folder / "samples.png").size == Image.open(plain / "samples.png").size
    card = (folder / "README.md").read_text()
    assert json.loads((folder / "generation.json").read_text())["prior_fingerprint"] in card
    assert "none of them real" in card
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    expected = sorted(plain.glob("0*.png"))
    names = rows.features["label"].names
    assert names == ["gradient", "noise", "stripes"]
    found = {(np.asarray(row["image"]).tobytes(), names[row["label"]]) for row in rows}
    assert found == {(np.asarray(Image.open(path)).tobytes(), path.stem.split("-")[1]) for path in expected}
    images = open_images(DataConfig(str(folder / "data")))  # and so do this project's commands
    assert (len(images), images.class_names) == (7, names)
    with pytest.raises(OutputError, match="different: output_format"):
        generate_images(str(pipeline_folder), str(folder), **options)


def test_a_shard_that_is_missing_or_too_short_is_written(pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(to_dataset, "_IN_A_SHARD", 4)
    options = {"seed": 3, "batch_size": 4, "output_format": "parquet"}
    whole = generate_images(str(pipeline_folder), str(tmp_path / "whole"), num_images=9, **options)
    folder = generate_images(str(pipeline_folder), str(tmp_path / "grown"), num_images=6, **options)
    (folder / "data" / "samples-00000.parquet").unlink()
    generate_images(str(pipeline_folder), str(folder), num_images=9, **options)
    shards = [path.name for path in sorted((folder / "data").iterdir())]
    assert shards == [f"samples-0000{place}.parquet" for place in range(3)]
    for name in shards:
        assert pq.read_table(folder / "data" / name).equals(pq.read_table(whole / "data" / name))
    assert pq.read_table(whole / "data")["number"].to_pylist() == list(range(9))


def test_folders_of_classes_are_as_many_as_classes():
    asked = Asked(5, [0, 1, 2, 3, 4], None)
    folders = [name.split("/")[1] for name in files_by_class(asked, ("a/b", "a:b", "..", "Cat", "cat"))]
    assert folders == ["a_b", "a_b-1", "-2", "Cat", "cat-4"]
    with pytest.raises(CodegridError, match="a folder of classes, and these images have none"):
        files_by_class(Asked(5, None, None), ())


def test_images_without_classes_claim_no_folder(tokenizer_folder, tmp_path):
    from codegrid.pipelines.artifacts.loading import load_tokenizer
    from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
    from codegrid.prior import PriorConfig, SequenceConfig, make_prior
    from codegrid.prior.conditions import TextCondition

    model = load_tokenizer(tokenizer_folder)
    sequence = SequenceConfig(32, (4, 4), tokenizer_fingerprint=model.fingerprint(), condition=TextCondition(4))
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    pipe = str(ImageGenerationPipeline(model, prior, sequence).save_pretrained(tmp_path / "pipe"))
    with pytest.raises(CodegridError, match="these images have none"):
        generate_images(pipe, str(tmp_path / "out"), prompt=("a", "b"), output_format="imagefolder")
    assert not (tmp_path / "out").exists()
    folder = generate_images(pipe, str(tmp_path / "out"), num_images=3, prompt=("a", "b"), output_format="parquet")
    assert pq.read_table(folder / "data")["text"].to_pylist() == ["a", "b", "a"]

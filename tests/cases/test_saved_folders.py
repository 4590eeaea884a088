"""Row "folders of save_to_disk": what `datasets` saved is read as it lies.

More of it: tests/pipelines/data/test_tables.py.
"""

import random

import datasets
import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.tokenizer.images import load_image


def values_and_labels(path, **fields) -> list[tuple[int, str | None]]:
    source = open_images(DataConfig(str(path), **fields))
    return [
        (
            load_image(record.data).getpixel((0, 0))[0],
            None if record.label is None else source.class_names[record.label],
        )
        for record in source
    ]


def made(values: list[int], labels: list[str]) -> datasets.Dataset:
    names = sorted(set(labels))
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=names), "image": datasets.Image(), "note": datasets.Value("string")}
    )
    pictures = [Image.fromarray(np.full((3, 4, 3), value, np.uint8)) for value in values]
    rows = {"image": pictures, "label": [names.index(label) for label in labels], "note": ["x"] * len(values)}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("number", range(3))
def test_written_folders(tmp_path, number):
    """Shuffled (rows behind an index), of several files, and after a column was renamed."""
    data = made([10, 20, 30, 40], ["a", "b", "a", "b"])
    data, options = [(data.shuffle(seed=3), {}), (data, {"num_shards": 3}), (data.rename_column("image", "photo"), {})][
        number
    ]
    data.save_to_disk(tmp_path / "saved", **options)
    column = "photo" if number == 2 else "image"
    wanted = [(np.asarray(row[column])[0, 0, 0], data.features["label"].int2str(row["label"])) for row in data]
    assert values_and_labels(tmp_path / "saved") == wanted


@pytest.mark.parametrize("seed", [4, 44])
def test_drawn_folders(tmp_path, seed):
    draw = random.Random(seed)
    for number in range(3):
        splits = draw.sample(["train", "validation", "test", "extra"], draw.randrange(1, 4))
        parts, wanted = {}, {}
        for split in splits:
            values = [draw.randrange(256) for _ in range(draw.randrange(2, 6))]
            labels = [draw.choice(["dog", "cat"]) for _ in values[2:]] + ["cat", "dog"]
            parts[split], wanted[split] = made(values, labels), list(zip(values, labels, strict=True))
        folder = tmp_path / str(number)
        datasets.DatasetDict(parts).save_to_disk(folder)
        for split in splits:
            assert values_and_labels(folder, split=split) == wanted[split], f"seed {seed}: {splits}"
        with pytest.raises(DataError, match="Choose data"):
            open_images(DataConfig(str(folder), split="nowhere"))


def test_a_folder_without_pictures_says_so(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="no column of images"):
        open_images(DataConfig(str(tmp_path / "saved")))

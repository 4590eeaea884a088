"""Pictures smaller than the tokenizer's: counted and said before training, whatever becomes of them."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.pipelines.training.tokenizer.smaller import describe_smaller
from codegrid.tokenizer.images import Preprocessing


def pictures(folder, sizes):
    folder.mkdir()
    for index, size in enumerate(sizes):
        Image.new("RGB", size, (9, 9, 9)).save(folder / f"{index:03}.png")
    return open_images(DataConfig(str(folder)))


WRITTEN = [
    ([(32, 32), (64, 31), (100, 100)], 2),
    ([(63, 64), (64, 63), (64, 64)], 2),
    ([(64, 64), (65, 90)], 0),
]


@pytest.mark.parametrize("smaller", ["upscale", "skip"])
@pytest.mark.parametrize("case", [*WRITTEN, 7])
def test_they_are_counted(case, smaller, tmp_path):
    if isinstance(case, int):
        draw = random.Random(case)
        sizes = [(draw.randint(8, 120), draw.randint(8, 120)) for _ in range(20)] + [(64, 64)]
        case = sizes, sum(min(size) < 64 for size in sizes)
    sizes, number = case
    said = describe_smaller(pictures(tmp_path / "p", sizes), Preprocessing(image_size=64, smaller=smaller))
    if not number:
        assert said == ""
        return
    assert said.startswith(f"Smaller than 64x64 pixels: {number} of {len(sizes)} pictures, "), case
    assert ("scaled up" in said) == (smaller == "upscale")
    assert ("left out" in said.split(";")[0]) == (smaller == "skip")


def test_where_all_would_be_left_out_it_is_refused(tmp_path):
    source = pictures(tmp_path / "p", [(20, 30), (63, 63)])
    with pytest.raises(DataError, match=r"All 2 pictures are smaller than 64x64 .*largest is 63x63"):
        describe_smaller(source, Preprocessing(image_size=64))
    assert describe_smaller(source, Preprocessing(image_size=64, fit="pad")) == ""


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
def test_no_preset_leaves_small_pictures_out(preset):
    """As the README says."""
    preprocessing = TOKENIZER_PRESETS[preset]("source", "run").preprocessing
    assert preprocessing.fit == "pad" or preprocessing.smaller == "upscale"

"""Row "data read through a cache that does not know the files": each way of reading gives what lies on the disk.

Parquet folders of one name, files changed in place, grown code data sets: tests/pipelines/data/test_caches.py.
"""

import io
import os
import random
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_image_stream, open_images
from codegrid.prior.codes import CodesError, open_codes, read_manifest
from codegrid.tokenizer.images import load_image

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "BMP")  # of one size whatever the value
    return buffer.getvalue()


def two_splits(folder: Path, values: list[int]) -> Path:
    """Only the second split follows `values`: the first file is never written again."""
    for split, grey in (("train", [1, 2]), ("test", values)):
        file = folder / f"{split}-00000-of-00001.parquet"
        if split == "test" or not file.exists():
            pq.write_table(pa.table({"image": [picture(value) for value in grey]}), file, compression="none")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: 'train-*'}\n  - {split: test, path: 'test-*'}\n---\n"
    )
    return folder


def saved_to_disk(folder: Path, values: list[int]) -> Path:
    table = datasets.Dataset.from_dict({"image": [{"bytes": picture(value), "path": None} for value in values]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def tar(folder: Path, values: list[int]) -> Path:
    with tarfile.open(folder / "shard-000.tar", "w") as archive:
        for index, value in enumerate(values):
            member = tarfile.TarInfo(f"{index:03}.bmp")
            member.size = len(picture(value))
            archive.addfile(member, io.BytesIO(picture(value)))
    return folder


SOURCES = {
    "the second of two splits": (two_splits, {"split": "test"}),
    "the same as a stream": (two_splits, {"split": "test", "streaming": True}),
    "a folder of save_to_disk": (saved_to_disk, {}),
    "tar files": (tar, {}),
}


@pytest.mark.parametrize("case", SOURCES)
@pytest.mark.parametrize("seed", [5])
def test_pictures_that_change_in_place(tmp_path, case, seed):
    """The name, the number of rows, the size and the time are those of before."""
    write, options = SOURCES[case]
    draw, folder = random.Random(seed), tmp_path / "pets"
    folder.mkdir()
    for _ in range(3):
        values = draw.sample(range(256), 3)
        source = write(folder, values)
        for file in folder.rglob("*"):
            os.utime(file, (1_000_000, 1_000_000))
        config = DataConfig(str(source), **options)
        pictures = (open_image_stream if config.streaming else open_images)(config)
        records = pictures if config.streaming else (pictures[index] for index in range(len(pictures)))
        found = [load_image(record.data).getpixel((0, 0))[0] for record in records]
        assert found == values, (case, seed)


# Code data sets


def by_path(codes: Path) -> list[list[int]]:
    return datasets.load_dataset(str(codes), split="train")["codes"][:]


def by_stream(codes: Path) -> list[list[int]]:
    return [row["codes"] for row in datasets.load_dataset(str(codes), split="train", streaming=True)]


def by_snippet(codes: Path) -> list[list[int]]:
    code = (codes / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER_OR_REPO", str(codes)), names)
    return names["codes"]["codes"][:]


def by_open(codes: Path) -> list[list[int]]:
    data = open_codes(codes)
    return data.codes(np.arange(len(data))).tolist()


def by_shards_of_the_manifest(codes: Path) -> list[list[int]]:
    files = [str(codes / shard.file) for shard in read_manifest(codes).shards]
    return datasets.load_dataset("parquet", data_files=files, split="train")["codes"][:]


WAYS = (by_path, by_stream, by_snippet, by_open, by_shards_of_the_manifest)


def write_pictures(folder: Path, seed: int, number: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for index in range(number):
        coarse = Image.fromarray(draw.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        coarse.resize((20, 20)).save(folder / f"{index:03}.png")
    return folder


def tokenized(pictures: Path, codes: Path) -> Path:
    shutil.rmtree(codes, ignore_errors=True)
    config = TokenizationConfig(
        str(SAVED / "tokenizer"), DataConfig(str(pictures)), str(codes), device="cpu", images_per_shard=4
    )
    return tokenize_dataset(config)


def truth_of(codes: Path) -> list[list[int]]:
    return [
        row for shard in read_manifest(codes).shards for row in pq.read_table(codes / shard.file)["codes"].to_pylist()
    ]


def agree(codes: Path, what: object) -> list[list[int]]:
    truth = truth_of(codes)
    for way in WAYS:
        assert way(codes) == truth, (what, way.__name__)
    return truth


def test_other_pictures_of_the_same_names_and_number(tmp_path):
    first, second = (agree(tokenized(write_pictures(tmp_path / "p", seed, 5), tmp_path / "c"), seed) for seed in (1, 2))
    assert first != second
    assert len(first) == len(second)


def test_a_set_that_has_shrunk(tmp_path):
    lengths = [len(agree(tokenized(write_pictures(tmp_path / "p", 1, n), tmp_path / "c"), n)) for n in (6, 4)]
    assert lengths == [6, 4]


def test_a_copy_of_one_name_that_changed_places_with_the_original(tmp_path):
    here, there = tmp_path / "here" / "codes", tmp_path / "there" / "codes"
    tokenized(write_pictures(tmp_path / "p", 1, 3), here)
    tokenized(write_pictures(tmp_path / "p", 2, 3), there)
    first, second = agree(here, "before"), agree(there, "before")
    here.rename(tmp_path / "aside")
    there.rename(here)
    (tmp_path / "aside").rename(there)
    assert (agree(here, "after"), agree(there, "after")) == (second, first)


@pytest.mark.parametrize("seed", [17])
def test_a_life_of_codes(tmp_path, seed):
    """Drawn: made anew of others, moved, copied over, its card written on."""
    draw, codes = random.Random(seed), tmp_path / "codes"
    tokenized(write_pictures(tmp_path / "p", 0, 3), codes)
    for step in range(4):
        act = draw.choice(["anew", "copied over", "moved", "written on"])
        if act == "anew":
            tokenized(write_pictures(tmp_path / "p", draw.randrange(99), draw.randint(2, 6)), codes)
        elif act == "copied over":  # as `hf download` and `rsync` leave a newer version
            other = tokenized(write_pictures(tmp_path / "p", draw.randrange(99), draw.randint(2, 6)), tmp_path / "x")
            shutil.rmtree(codes / "data")
            shutil.copytree(other, codes, dirs_exist_ok=True)
        elif act == "moved":
            codes = codes.rename(tmp_path / f"codes{step}")
        else:
            with (codes / "README.md").open("a") as card:
                card.write("\nMine.\n")
        agree(codes, (seed, step, act))


def test_a_shard_that_is_not_the_manifests_is_refused(tmp_path):
    """Of the same rows and bytes: what `load_dataset` gives then is not this project's to say."""
    codes = tokenized(write_pictures(tmp_path / "p", 1, 3), tmp_path / "codes")
    shard = codes / read_manifest(codes).shards[0].file
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(CodesError, match="is not the one that the manifest describes"):
        by_open(codes)

"""`limit`, and the content of what was tokenized."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.codes.shards import read_records
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.records import DataConfig, DataError, PicturesConfig
from codegrid.pipelines.data.sources import open_image_stream, open_images, split_images
from codegrid.prior.codes import CodesError, read_manifest


def names_of(source) -> list[str]:
    return [record.source_id for record in source]


def test_a_limit_is_a_mixture_that_grows(image_folder, fashion_parquet):
    everything = names_of(open_images(DataConfig(str(image_folder))))
    before: set[str] = set()
    for limit in (1, 4, 9, 17, 18, 50):
        source = open_images(DataConfig(str(image_folder), limit=limit))
        names = names_of(source)
        assert len(source) == len(names) == min(limit, 18)
        assert before <= set(names)
        assert [name for name in everything if name in names] == names == source.names()
        before = set(names)
    few = open_images(DataConfig(str(fashion_parquet), limit=200))
    assert len({record.label for record in few}) == 10
    assert few.fingerprint != open_images(DataConfig(str(fashion_parquet))).fingerprint


def test_a_limit_and_what_is_held_out(image_folder):
    train, held_out = split_images(DataConfig(str(image_folder), limit=10, validation_fraction=0.3))
    assert (len(train), len(held_out)) == (7, 3)
    assert not set(names_of(train)) & set(names_of(held_out))


def test_a_limit_of_a_stream(fashion_parquet):
    stream = open_image_stream(DataConfig(str(fashion_parquet), streaming=True, limit=3))
    assert names_of(stream) == [f"{fashion_parquet.name}:{row}" for row in range(3)]
    with pytest.raises(DataError, match=r"data\.limit is 0"):
        DataConfig("x", limit=0)


@pytest.fixture
def tokenized(tokenizer_folder, pictures, tmp_path):
    source = shutil.copytree(pictures, tmp_path / "pictures")
    data = DataConfig(str(source), limit=11)
    config = TokenizationConfig(str(tokenizer_folder), data, str(tmp_path / "codes"), images_per_shard=4, device="cpu")
    tokenize_dataset(config)
    return config, source


def test_a_first_try_is_gone_on_with(tokenized):
    config, source = tokenized
    assert read_manifest(tokenize_dataset(config)).num_images == 11
    codes = tokenize_dataset(replace(config, data=DataConfig(str(source))))
    assert read_manifest(codes).num_images == 18
    verify_codes(VerificationConfig(str(codes), config.tokenizer, PicturesConfig(str(source)), num_samples=1))


def test_one_pixel_is_found(tokenized, capsys):
    """Of a file of the same size and time; drawn which."""
    config, source = tokenized
    verify = VerificationConfig(config.output_dir, config.tokenizer, PicturesConfig(str(source)), num_samples=1)
    verify_codes(verify)
    assert "The bytes of 11 images are those that were tokenized." in capsys.readouterr().out
    random.seed(4)
    file = source / random.choice(names_of(open_images(config.data)))
    before, status = file.read_bytes(), file.stat()
    for _ in range(1000):
        pixels = np.asarray(Image.open(file)).copy()
        pixels[random.randrange(20), random.randrange(24), random.randrange(3)] ^= random.randrange(1, 256)
        Image.fromarray(pixels).save(source / "other.png")
        other = (source / "other.png").read_bytes()
        (source / "other.png").unlink()
        if len(other) == len(before):
            break
    file.write_bytes(other)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_images(config.data).fingerprint == read_manifest(Path(config.output_dir)).source_fingerprint
    with pytest.raises(CodesError, match="are others than they were"):
        verify_codes(verify)


def test_a_set_without_contents_is_verified_as_before(tokenized):
    config, source = tokenized
    folder = Path(config.output_dir)
    assert all(len(record["content"]) == 64 for record in read_records(folder).values())
    shutil.rmtree(folder / ".shards")
    verify_codes(VerificationConfig(config.output_dir, config.tokenizer, PicturesConfig(str(source)), num_samples=0))

"""Row "errors of workers": with any number of workers an error is one sentence, a vanished picture is left out by name
and many in a row end the reading. More of it: tests/pipelines/test_loader.py.
"""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.batches import (
    AugmentationConfig,
    AugmentedImages,
    Pictures,
    image_batches,
    picture_reader,
    prepared_batches,
)
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, PicturesConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.prior.codes import read_manifest
from codegrid.tokenizer.images import Preprocessing

# Starting a process that imports torch takes seconds: one test does it here, the others in `make test-slow`.
WORKERS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def folder(root: Path, number: int) -> Path:
    random = np.random.default_rng(3)
    root.mkdir()
    for index in range(number):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"{index:03}.png")
    return root


def vanish(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_circle(path: Path) -> None:
    """Opening it is an error of the disk that says neither that it is gone nor that one may not."""
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = {
    vanish: "vanished",
    truncate: "truncated",
    empty: "empty_file",
    become_a_folder: "unreadable",
    become_a_circle: "unreadable",
}


@pytest.mark.parametrize("num_workers", [0, 1, WORKERS[2]])
@pytest.mark.parametrize("seed", [8])
def test_pictures_that_change_while_they_are_read_are_left_out_by_name(tmp_path, tiny_vqmodel, num_workers, seed):
    """Every damage that is written above, at drawn places."""
    root = folder(tmp_path / "pictures", 40)
    source = open_images(DataConfig(str(root)))
    draw = random.Random(seed)
    damaged = {f"{index:03}.png": draw.choice(list(DAMAGES)) for index in draw.sample(range(40), 12)}
    damaged |= dict(zip(list(damaged)[:5], DAMAGES, strict=True))
    for name, damage in damaged.items():
        damage(root / name)
    read = list(Pictures(source, picture_reader(tiny_vqmodel, with_content=True)).in_order(range(40), num_workers))
    assert [picture.source_id for picture in read] == source.names()
    reasons = {picture.source_id: picture.reason for picture in read if picture.reason}
    assert reasons == {name: DAMAGES[damage] for name, damage in damaged.items()}, f"seed {seed}"
    assert all(picture.detail.endswith(".") for picture in read if picture.reason)
    skipped = {name for batch in prepared_batches(tiny_vqmodel, iter(source), 8) for name in batch.skipped}
    assert skipped == set(damaged)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_many_in_a_row_end_the_reading(tmp_path, tiny_vqmodel, num_workers):
    root = folder(tmp_path / "pictures", 60)
    source = open_images(DataConfig(str(root)))
    for index in range(30, 60):
        (root / f"{index:03}.png").unlink()
    pictures = Pictures(source, picture_reader(tiny_vqmodel)).in_order(range(60), num_workers)
    with pytest.raises(DataError, match=r"20 pictures in a row cannot be read, the last 049\.png") as caught:
        list(pictures)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_folder_or_a_tar_that_is_gone_ends_it_at_once(tmp_path, tiny_vqmodel, num_workers, kind):
    root = folder(tmp_path / "pictures", 5)
    if kind == "tar":
        shutil.make_archive(str(tmp_path / "all"), "tar", root)
        root = tmp_path / "all.tar"
    source = open_images(DataConfig(str(root)))
    shutil.rmtree(root) if kind == "folder" else root.unlink()
    with pytest.raises(DataError) as caught:
        list(Pictures(source, picture_reader(tiny_vqmodel)).in_order(range(5), num_workers))
    assert str(root) in str(caught.value)
    assert "then run the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_training_takes_another_picture_and_ends_without_any(tmp_path, num_workers):
    root = folder(tmp_path / "pictures", 12)
    source = open_images(DataConfig(str(root)))
    images = AugmentedImages(source, Preprocessing(image_size=16), 3, AugmentationConfig(), seed=1)
    for index in range(4):
        (root / f"{index:03}.png").unlink()
    batches = list(image_batches(images, 0, 3, 4, 0, 1, num_workers))
    assert [tuple(batch.pixels.shape) for batch in batches] == [(4, 16, 16, 3)] * 3
    assert {name: reason[:8] for batch in batches for name, reason in batch.skipped.items()} == {
        f"{index:03}.png": "vanished" for index in range(4)
    }
    for index in range(4, 12):
        (root / f"{index:03}.png").unlink()
    with pytest.raises(DataError, match=r"12 images in a row could not be used"):
        list(image_batches(images, 0, 1, 4, 0, 1, num_workers))


def test_a_picture_that_vanishes_while_it_is_tokenized(tmp_path, tiny_vqmodel, monkeypatch, capsys):
    """It is left out by name, and the codes are verified without it."""
    root = folder(tmp_path / "pictures", 6)
    tiny_vqmodel.save_pretrained(tmp_path / "tokenizer")
    data = DataConfig(str(root))

    def vanishing(config: DataConfig) -> ImageSource:
        source = open_images(config)
        (root / "002.png").unlink()
        return source

    monkeypatch.setattr("codegrid.pipelines.codes.tokenize.open_image_stream", vanishing)
    codes = tokenize_dataset(
        TokenizationConfig(str(tmp_path / "tokenizer"), data, str(tmp_path / "codes"), device="cpu", images_per_shard=4)
    )
    assert read_manifest(codes).skipped_reasons == {"vanished": 1}
    assert "002.png" in (codes / "skipped.jsonl").read_text()
    verify_codes(VerificationConfig(str(codes), str(tmp_path / "tokenizer"), PicturesConfig(str(root)), num_samples=0))
    assert "The bytes of 5 images are those" in capsys.readouterr().out

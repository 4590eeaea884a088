"""A run finds pictures that have other bytes than when it first read them, though size and time are the same."""

import os
import random
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.data.contents import Contents, short
from codegrid.pipelines.data.records import DataConfig, DataError, content_hash
from codegrid.pipelines.data.sources import open_images, split_images
from codegrid.pipelines.training.checkpoint import load_newest_checkpoint
from codegrid.pipelines.training.tokenizer.train import train_tokenizer


def folder(pictures: Path, root: Path) -> tuple[Path, dict[str, tuple[Path, int]]]:
    """(the source, of each picture its file and a place in its pixels). Nothing is compressed."""
    places = {}
    root.mkdir()
    for index, file in enumerate(sorted(pictures.rglob("*.png"))):
        Image.open(file).save(root / f"{index:02}.bmp")
        places[f"{index:02}.bmp"] = (root / f"{index:02}.bmp", 400)
    return root, places


def tar(pictures: Path, root: Path) -> tuple[Path, dict[str, tuple[Path, int]]]:
    """Its edges, by which a table is known, hold no pictures."""
    loose, _ = folder(pictures, root)
    path, places = root.with_suffix(".tar"), {}
    (root / "filler").write_bytes(bytes(200_000))
    with tarfile.open(path, "w") as archive:
        for name in ("first.bin", *sorted(file.name for file in loose.glob("*.bmp")), "last.bin"):
            archive.add(loose / ("filler" if name.endswith("bin") else name), name)
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            places[f"pictures.tar:{len(places)}:{member.name[:2]}"] = (path, member.offset_data + 400)
    return path, places


@pytest.mark.parametrize("kind", [folder, tar])
@pytest.mark.parametrize("seed", [1, 2])
def test_one_pixel_is_found_by_going_on(tokenizer_config, pictures, tmp_path, kind, seed):
    """Of a drawn picture; size and times of its file stay."""
    source, places = kind(pictures, tmp_path / "pictures")
    config = tokenizer_config(tmp_path / "run", data=DataConfig(str(source)), max_steps=8, save_every=8, log_every=4)
    train_tokenizer(config)
    known = load_newest_checkpoint(tmp_path / "run" / "checkpoints").groups["contents"]
    train, _ = split_images(config.data)
    assert sorted(known["contents"].tolist()) == sorted(short(content_hash(record.data)) for record in train)
    train_tokenizer(replace(config, max_steps=10))  # nothing has changed
    name = random.Random(seed).choice(train.names())
    file, place = places[name]
    data, status = bytearray(file.read_bytes()), file.stat()
    data[place] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=rf"^{re.escape(name)} has other bytes .* Put the old file back"):
        train_tokenizer(replace(config, max_steps=24))
    data[place] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    train_tokenizer(replace(config, max_steps=24))


def test_two_ranks_know_the_same(image_folder):
    source = open_images(DataConfig(str(image_folder)))
    first, second = Contents(source), Contents(source)
    first.add(np.array([1, 2, 2]), np.array([11, 12, 12]))
    second.add(np.array([2, 3]), np.array([12, 13]))
    both = [first.take_new(), second.take_new()]
    for contents in (first, second):
        for rows, values in both:
            contents.add(rows, values)
        assert contents.tensors()["contents"].tolist() == [11, 12, 13]
    for contents in (first, second):
        with pytest.raises(DataError, match=source.names()[3]):
            contents.add(np.array([3]), np.array([14]))
    again = Contents(source)
    again.load(first.tensors())
    assert {name: values.tolist() for name, values in again.tensors().items()} == {
        name: values.tolist() for name, values in first.tensors().items()
    }
    with pytest.raises(DataError):
        again.add(np.array([1]), np.array([12]))
    part = source.subset(np.array([3, 17]), "a part")
    few = Contents(part)
    few.load(first.tensors())
    assert few.tensors()["contents"].tolist() == [13]
    Contents(source).load({})

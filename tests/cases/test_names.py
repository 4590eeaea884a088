"""Row "names: any bytes, any script, any control or separator character, links".

Here they are read, announced and found again; that they are tokenized: tests/pipelines/data/test_layouts.py.
"""

import io
import os
import pickle
import random
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from codegrid.names import hidden, shown
from codegrid.pipelines.data.batches import read_picture
from codegrid.pipelines.data.records import DataConfig, content_hash
from codegrid.pipelines.data.sources import open_images, split_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.tokenizer.images import Preprocessing

BUFFER = io.BytesIO()
Image.new("RGB", (8, 8), (9, 99, 200)).save(BUFFER, "PNG")
WRITTEN = [
    [b"tab\there.png", b"a\x1b[2Jb.png", b"nul-like \\x00.png"],
    ["e\u0301.png".encode(), "\u00e9.png".encode(), b"\xe9.png"],  # one letter in three spellings
    ["\u2028line.png".encode(), "\u200d\U0001f468\u200d\U0001f469.png".encode(), b"-rf.png"],
]


def drawn(seed: int) -> list[bytes]:
    draw = random.Random(seed)
    letters = [byte for byte in range(1, 256) if byte != ord("/")]
    names = [bytes(draw.choices(letters, k=draw.randrange(1, 12))) for _ in range(8)]
    names += ["".join(chr(draw.randrange(0x100, 0xD800)) for _ in range(6)).encode() for _ in range(4)]
    return [b"n" + name + b".png" for name in names]


@pytest.mark.parametrize("names", [*WRITTEN, drawn(2026), drawn(31)], ids=["w1", "w2", "w3", "seed 2026", "seed 31"])
def test_names_of_pictures_and_classes(tmp_path, names):
    root = os.path.join(os.fsencode(tmp_path), b"root \xff\n")
    folders = [b"one", names[0].removesuffix(b".png").replace(b".", b"") or b"two"]
    for folder in folders:
        os.makedirs(os.path.join(root, folder))
        for name in names:
            with open(os.path.join(root, folder, name), "wb") as file:
                file.write(BUFFER.getvalue())
    source = open_images(DataConfig(os.fsdecode(root)))
    ids = source.names()
    paths = {os.path.relpath(record.data, os.fsdecode(root)) for record in source}
    assert len(ids) == len(set(ids)) == 2 * len(set(names)), ids
    assert {hidden(name) for name in ids} == paths, ids
    for text in [*ids, *source.class_names, *describe_source(source)]:
        text.encode("utf-8")
        assert not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text), repr(text)
    record = pickle.loads(pickle.dumps(source))[1]
    assert read_picture(record, Preprocessing(image_size=8), 3).pixels is not None
    assert len(content_hash(record.data)) == 64
    train, held_out = split_images(DataConfig(os.fsdecode(root), validation_fraction=0.3))
    assert {*train.names(), *held_out.names()} == set(ids)


@pytest.mark.parametrize("seed", [3, 4])
def test_drawn_links(tmp_path, seed):
    """A picture is read once for each way in, and a link that is left out is counted."""
    draw = random.Random(seed)
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root, other, root / "real"):
        folder.mkdir()
        (folder / "p.png").write_bytes(BUFFER.getvalue())
    inside, outside = 0, 0
    for number in range(12):
        target = draw.choice([root / "p.png", root / "real" / "p.png", other / "p.png"])
        Path(root / f"link{number}.png").symlink_to(target)
        inside, outside = inside + (target != other / "p.png"), outside + (target == other / "p.png")
    source = open_images(DataConfig(str(root), label_column="none"))
    assert (len(source), source.understood.links) == (2 + inside, outside), f"seed {seed}"
    followed = open_images(DataConfig(str(root), label_column="none", follow_links=True))
    assert (len(followed), followed.understood.links) == (2 + inside + outside, 0), f"seed {seed}"
    assert not outside or any("--data.follow-links" in line for line in describe_source(source))
    assert shown("link0.png") == "link0.png"

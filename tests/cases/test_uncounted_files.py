"""Row "files that nobody counts": what is not read is counted by suffix, and pictures without one are found.

More of it: tests/pipelines/data/test_layouts.py.
"""

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.data import folders
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.tokenizer.images import BadImage, load_image


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (200, 30, 60)).save(buffer, kind)
    return buffer.getvalue()


def unread(folder: Path) -> tuple[int, dict[str, int], str]:
    """(pictures, files that are not read by suffix, what is said)."""
    source = open_images(DataConfig(str(folder)))
    return len(source), source.understood.unread, "\n".join(describe_source(source))


@pytest.mark.parametrize(
    ("name", "suffix"), [("scan.CR2", ".cr2"), ("movie.final.mp4", ".mp4"), ("labels_v2", "no suffix")]
)
def test_written_files(tmp_path, name, suffix):
    (tmp_path / "1.png").write_bytes(picture("PNG"))
    (tmp_path / name).write_bytes(b"no picture, but twenty bytes and more")
    count, others, said = unread(tmp_path)
    assert (count, others) == (1, {suffix: 1})
    assert f"1 {suffix}" in said


@pytest.mark.parametrize("seed", [5, 6, 77])
def test_drawn_files(tmp_path, seed):
    """Every file of a tree is a picture, or counted by its suffix."""
    draw = random.Random(seed)
    kinds = {".png": "PNG", ".JPG": "JPEG", ".webp": "WEBP", ".Gif": "GIF", ".tiff": "TIFF", "": "PNG", ".007": "JPEG"}
    expected, pictures = Counter(), 0
    for number in range(60):
        folder = tmp_path / draw.choice(["", "a", "b/c", "a/.d"])
        folder.mkdir(parents=True, exist_ok=True)
        hidden = ".d" in folder.parts
        if draw.random() < 0.5:
            suffix = draw.choice(list(kinds))
            (folder / f"p{number}{suffix}").write_bytes(picture(kinds[suffix]))
            pictures += not hidden
        else:
            suffix = draw.choice([".dat", ".MOV", ".xyz~", ".", "", ".backup.old", ".sqlite3"])
            (folder / f"f{number}{suffix}").write_bytes(draw.randbytes(draw.randrange(40)))
            known = "." + suffix.rpartition(".")[2].lower() if suffix.strip(".") else "no suffix"
            expected[known] += not hidden
    source = open_images(DataConfig(str(tmp_path), label_column="none"))
    told = f"seed {seed}: {source.understood}"
    assert len(source) == pictures, told
    assert source.understood.unread == {name: count for name, count in expected.items() if count}, told


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "QOI", "HEIF", "AVIF", "BMP"])
def test_known_formats_are_read(tmp_path, kind):
    """By their suffix, and (but for TGA, which has no first bytes of its own) without one."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    suffixes = {"JPEG2000": ["jp2", "j2k"], "HEIF": ["heic", "HEIF", "hif"]}.get(kind, [kind.lower()])
    data = picture(kind)
    names = {f"{index}.{suffix}" for index, suffix in enumerate(suffixes)} | ({"nothing"} if kind != "TGA" else set())
    for name in names:
        (tmp_path / name).write_bytes(data)
    source = open_images(DataConfig(str(tmp_path)))
    assert set(source.names()) == names
    assert source.understood.unread == {}
    for record in source:
        found = np.asarray(load_image(record.data)).mean((0, 1))
        assert np.abs(found - (200, 30, 60)).max() < 9, record.source_id
        with pytest.raises(BadImage):
            load_image(data[: len(data) // 2])


def test_heic_without_its_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "IMAGE_EXTENSIONS", (".png",))
    monkeypatch.setattr(folders, "HAS_HEIF", False)
    (tmp_path / "1.png").write_bytes(picture("PNG"))
    (tmp_path / "2.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(30))
    (tmp_path / "3").write_bytes(b"\0\0\0\x18ftypheic" + bytes(30))
    count, others, said = unread(tmp_path)
    assert (count, others) == (1, {".heic": 1, "no suffix": 1})
    assert 'pip install "codegrid[heif]" reads them' in said


def test_nothing_but_unread_files_is_an_error_that_counts_them(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.raw").write_bytes(b"x" * 30)
    with pytest.raises(DataError, match=r"3 \.raw"):
        open_images(DataConfig(str(tmp_path)))

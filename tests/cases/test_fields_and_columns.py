"""Row "WebDataset and tables: which field is the picture, which the label": the one that was meant, or asked for.

More of it: tests/pipelines/data/test_tables.py.
"""

import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.tokenizer.images import load_image


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, kind)
    return buffer.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def read(path: Path, **fields) -> list[tuple[int, str | None]]:
    source = open_images(DataConfig(str(path), **fields))
    names = source.class_names
    return [
        (load_image(record.data).getpixel((0, 0))[0], None if record.label is None else names[record.label])
        for record in source
    ]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["./a.png", "./a.txt", "./b.png", "./b.txt"], [(0, None), (2, None)]),
        (["x/1.thumb.png", "x/1.png", "x/2.png"], [(1, None), (2, None)]),
        (["1.img.png", "1.mask.png", "2.img.png", "2.mask.png"], [(0, None), (2, None)]),
    ],
)
def test_written_samples(tmp_path, members, expected):
    body = {"png": picture, "txt": lambda value: b"a caption"}
    path = tar(tmp_path / "x.tar", [(name, body[name[-3:]](place)) for place, name in enumerate(members)])
    assert read(path) == expected


@pytest.mark.parametrize("seed", [1, 2, 3, 404])
def test_drawn_samples(tmp_path, seed):
    """Fields in any order, labels in cls, label or json, pictures of any kind; a stem of one's own or none."""
    draw = random.Random(seed)
    members, expected = [], []
    where = draw.choice(["cls", "label", "json", None])
    stem = draw.choice(["", "image.", "rgb."])
    for number in range(9):
        kind = draw.choice(["png", "PNG", "tif", "bmp"])
        label = draw.choice(["ape", "bee", "cow"])
        fields = [(f"{stem}{kind}", picture(number * 20, {"tif": "TIFF", "bmp": "BMP"}.get(kind, "PNG")))]
        if where:
            text = json.dumps({"label": label, "id": number}) if where == "json" else label
            fields.append((where, text.encode()))
        fields.append(("txt", b"caption"))
        draw.shuffle(fields)
        members += [(f"d.ir/{number:03}.{name}".replace("d.ir", "dir"), body) for name, body in fields]
        expected.append((number * 20, label if where else None))
    found = read(tar(tmp_path / "x.tar", members))
    assert found == expected, f"seed {seed}: {[name for name, _ in members]}"


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_drawn_tables(tmp_path, seed):
    """Columns in any order: the one called image is the picture, the one called label the class."""
    draw = random.Random(seed)
    images = {"image": [picture(number) for number in range(5)]}
    others = {name: [picture(200)] * 5 for name in draw.sample(["mask", "depth", "edges"], draw.randrange(3))}
    labels = {"label": [draw.choice(["x", "y"]) for _ in range(5)]}
    noise = {"score": [0.5] * 5, "id": list(range(5)), "caption": ["words"] * 5}
    columns = list({**images, **others, **labels, **noise}.items())
    draw.shuffle(columns)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(dict(columns)), path)
    told = f"seed {seed}: {[name for name, _ in columns]}"
    assert read(path) == list(zip(range(5), labels["label"], strict=True)), told
    if others:  # without that name it is one of several
        pq.write_table(pa.table({name if name != "image" else "first": values for name, values in columns}), path)
        with pytest.raises(DataError, match=r"data\.image_column"):
            read(path)
        assert [value for value, _ in read(path, image_column="first")] == list(range(5)), told

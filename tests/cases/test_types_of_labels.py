"""Row "labels of every type": values of any type are the same classes in a table, a metadata file and a tar.

More of it: tests/pipelines/data/test_tables.py.
"""

import io
import json
import math
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source

BUFFER = io.BytesIO()
Image.new("RGB", (4, 4)).save(BUFFER, "PNG")


def table(root: Path, values: list) -> Path:
    pq.write_table(pa.table({"image": [BUFFER.getvalue()] * len(values), "label": values}), root / "x.parquet")
    return root / "x.parquet"


def metadata(root: Path, values: list) -> Path:
    folder = root / "pictures"
    folder.mkdir()
    lines = []
    for number, value in enumerate(values):
        (folder / f"{number:03}.png").write_bytes(BUFFER.getvalue())
        lines.append(json.dumps({"file_name": f"{number:03}.png", "label": value}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def tar(root: Path, values: list) -> Path:
    with tarfile.open(root / "x.tar", "w") as archive:
        for number, value in enumerate(values):
            for suffix, body in (("png", BUFFER.getvalue()), ("json", json.dumps({"label": value}).encode())):
                info = tarfile.TarInfo(f"{number:03}.{suffix}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    return root / "x.tar"


def classes(path: Path) -> list[str | None]:
    source = open_images(DataConfig(str(path)))
    return [None if record.label is None else source.class_names[record.label] for record in source]


WRITTEN = [
    ([2.0, None, 0.0, 1.0], ["2", None, "0", "1"]),
    ([True, None, False], ["True", None, "False"]),
    (["7", None, "10", "ä"], ["7", None, "10", "ä"]),
]


@pytest.mark.parametrize("kind", [table, metadata, tar])
@pytest.mark.parametrize(("values", "expected"), WRITTEN)
def test_written_values(tmp_path, kind, values, expected):
    assert classes(kind(tmp_path, values)) == expected


@pytest.mark.parametrize("kind", [table, metadata, tar])
@pytest.mark.parametrize("seed", [1, 20, 300])
def test_drawn_values(tmp_path, kind, seed):
    draw = random.Random(seed)
    make = draw.choice(
        [lambda: draw.randrange(6), lambda: float(draw.randrange(6)), lambda: draw.choice(["ant", "bee", "Ω"])]
    )
    unknown = [None, math.nan] if isinstance(make(), float) else [None]
    values = [draw.choice([*unknown, make(), make(), make()]) for _ in range(15)] + [make()]
    is_unknown = [value is None or value != value for value in values]
    expected = [
        None if missing else value if isinstance(value, str) else str(int(value))
        for value, missing in zip(values, is_unknown, strict=True)
    ]
    assert classes(kind(tmp_path, values)) == expected, f"seed {seed}: {values}"


@pytest.mark.parametrize("kind", [table, metadata, tar])
def test_what_cannot_be_a_class_is_said(tmp_path, kind):
    """Of a metadata file it is refused, as nothing else says what the labels are."""
    path = kind(tmp_path, [0.25, 1.5, 2.0])
    try:
        said = "\n".join(describe_source(open_images(DataConfig(str(path)))))
    except ValueError as error:
        said = str(error)
    assert "0.25 is no class" in said

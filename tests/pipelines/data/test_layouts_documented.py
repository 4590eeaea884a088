"""Every layout of docs/data.md is built, and what is read of it is what the document says."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data.md"
BLOCKS = re.findall(r"```layout\n(.*?)\n=>(.*?)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
FORMATS = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG", "tif": "TIFF", "tga": "TGA", "jp2": "JPEG2000"}


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, np.zeros((4, 4, 3), np.uint8))
        return buffer.getvalue()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


def tar_of(words: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for word in words:
            name, _, text = word.partition("=")
            body = text.encode() or picture(FORMATS[name.rpartition(".")[2]])
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def table_of(words: list[str]) -> bytes:
    columns = dict(word.partition("=")[::2] for word in words)
    values = {name: json.loads(text) for name, text in columns.items() if text}
    size = len(next(iter(values.values())))
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: values.get(name, [picture()] * size) for name in columns}), buffer)
    return buffer.getvalue()


def build(root: Path, line: str) -> None:
    name, _, content = line.partition(": ")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".tar"):
        path.write_bytes(tar_of(content.split()))
    elif name.endswith(".parquet"):
        path.write_bytes(table_of(content.split()))
    elif content:
        path.write_text("\n".join(content.split(" | ")))
    else:
        path.write_bytes(picture(FORMATS.get(suffix := name.rpartition(".")[2], suffix)))


@pytest.mark.parametrize("block", BLOCKS, ids=[files.splitlines()[0].partition(":")[0] for files, *_ in BLOCKS])
def test_a_layout(tmp_path, block):
    files, options, result = block
    for line in files.splitlines():
        build(tmp_path, line)
    given = dict(option.split("=") for option in options.split())
    config = DataConfig(str(tmp_path / given.pop("source", "")), **given)
    if result.startswith("refused: "):
        with pytest.raises(DataError, match=re.escape(result.removeprefix("refused: ").strip())):
            open_images(config)
        return
    source = open_images(config)
    names = source.class_names
    found = [f"{record.source_id} {'-' if record.label is None else names[record.label]}" for record in source]
    assert found == [" ".join(line.split()) for line in result.splitlines()]


def test_the_document_has_layouts():
    assert len(BLOCKS) >= 15

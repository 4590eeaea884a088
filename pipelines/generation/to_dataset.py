"""Samples as a labelled data set that `load_dataset` reads: a folder of classes, or Parquet with a row an image."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from PIL import Image

from codegrid.errors import require
from codegrid.pipelines.artifacts.cards import samples_card
from codegrid.pipelines.generation.asked import Asked
from codegrid.pipelines.system.files import write_atomically, write_text

OutputFormat = Literal["pictures", "imagefolder", "parquet"]
DATA = "data"  # the folder of the rows or pictures
_IN_A_SHARD = 1000
_MOST_BYTES = 180  # of a class's name in a folder's


def files_by_class(asked: Asked, classes: Sequence[str]) -> list[str]:
    """The file of each image: data/CLASS/000000.png.

    Raises:
        CodegridError: the images have no classes.
    """
    require(
        asked.labels is not None and bool(classes),
        "output_format is 'imagefolder', a folder of classes, and these images have none.",
        "Take --output-format parquet, whose rows have the text and the picture that an image follows.",
    )
    folders, taken = [], set()
    for label, name in enumerate(classes):
        plain = "".join("_" if letter in "/\\:\0" else letter for letter in name).lstrip(".")
        plain = plain.encode("utf-8", "replace")[:_MOST_BYTES].decode("utf-8", "ignore").strip()
        while not plain or plain.casefold() in taken:  # some disks fold cases
            plain = f"{plain}-{label}"
        taken.add(plain.casefold())
        folders.append(plain)
    return [f"{DATA}/{folders[label]}/{index:06d}.png" for index, label in enumerate(asked.labels or ())]


def write_shards(
    folder: Path,
    asked: Asked,
    classes: Sequence[str],
    seed: int,
    draw: Callable[[Sequence[int]], Iterator[Image.Image]],
    mine: slice = slice(None),
) -> None:
    """Write the Parquet files that are missing, or have fewer rows than they should.

    Args:
        draw: images by their numbers.
        mine: which of the files this rank writes.
    """
    from datasets import Dataset

    features = _features(asked, classes)
    (folder / DATA).mkdir(exist_ok=True)
    for first in list(range(0, asked.number, _IN_A_SHARD))[mine]:
        path = shard_of(folder, first)
        images = range(first, min(first + _IN_A_SHARD, asked.number))
        if path.is_file() and pq.ParquetFile(path).metadata.num_rows == len(images):
            continue
        rows = [_row(asked, index, seed, image) for index, image in zip(images, draw(images), strict=True)]
        table = Dataset.from_list(rows, features=features)
        write_atomically(path, lambda aside, table=table: table.to_parquet(str(aside)))


def shard_of(folder: Path, image: int) -> Path:
    """The Parquet file that has an image."""
    return folder / DATA / f"samples-{image // _IN_A_SHARD:05d}.parquet"


def first_pictures(folder: Path, number: int) -> list[Image.Image]:
    """The first images of a data set of Parquet files."""
    rows = pq.read_table(shard_of(folder, 0), columns=["image"])["image"].to_pylist()
    return [Image.open(io.BytesIO(row["bytes"])) for row in rows[:number]]


def write_card(folder: Path, output_format: OutputFormat, settings: dict[str, Any], classes: Sequence[str]) -> None:
    """README.md: where the rows are, for `load_dataset`, and what drew them."""
    path = f"{DATA}/*.parquet" if output_format == "parquet" else f"{DATA}/**/*.png"
    write_text(folder / "README.md", samples_card(path, settings, classes))


def _features(asked: Asked, classes: Sequence[str]) -> Any:
    from datasets import ClassLabel, Features, Value
    from datasets import Image as ImageFeature

    columns: dict[str, Any] = {"image": ImageFeature(), "number": Value("int64"), "seed": Value("int64")}
    columns |= {"label": ClassLabel(names=list(classes))} if asked.labels is not None and classes else {}
    columns |= {"text": Value("string")} if asked.prompts else {}
    return Features(columns | ({"condition": Value("string")} if asked.names else {}))


def _row(asked: Asked, index: int, seed: int, image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, format="PNG")
    row = {"image": {"bytes": file.getvalue(), "path": f"{index:06d}.png"}, "number": index, "seed": seed}
    row |= {"label": asked.labels[index]} if asked.labels is not None else {}
    row |= {"text": asked.prompts[index % len(asked.prompts)]} if asked.prompts else {}
    return row | ({"condition": asked.names[index % len(asked.names)]} if asked.names else {})

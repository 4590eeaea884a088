"""The results of a comparison of codecs for people: table, curves, sentences, and pictures side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from codegrid.pipelines.codec.file_format import MODELS
from codegrid.pipelines.compression.others import CODED, OTHERS
from codegrid.pipelines.pictures.charts import Chart, Series
from codegrid.pipelines.pictures.grids import labelled_rows
from codegrid.pipelines.system.numbers import number
from codegrid.tokenizer.images import to_model, to_pil

NAME, WHOLE_NAME = "compression", "compression_whole"  # of the files; of pictures in their own size
_CHARTED = 12  # curves end at so many times the fewest bytes: far beyond, nothing is compared
_COLUMNS: dict[str, Callable[[Any], str]] = {
    "codec": str,
    "setting": str,
    "bytes": number,
    "bytes_of_a_file": number,
    "bytes_without_headers": number,
    "bits_a_pixel": number,
    "psnr": number,
    "ssim": number,
    "feature_distance": number,
    "encoded_a_second": number,
    "decoded_a_second": number,
    "written_a_second": number,
    "read_a_second": number,
}
# What a chart is of, what stands below it, and the field of a row.
_CHARTS = (
    ("psnr", "bytes a picture", "bytes"),
    ("ssim", "bytes a picture", "bytes"),
    ("psnr", "bytes a picture without headers", "bytes_without_headers"),
    ("ssim", "bytes a picture without headers", "bytes_without_headers"),
    ("feature_distance", "bytes a picture without headers", "bytes_without_headers"),
)


def sheet_name(name: str) -> str:
    """The file of the pictures side by side, beside `name`.json."""
    return f"{name}_pictures.png"


@dataclass(frozen=True)
class Example:
    """Some pictures as a codec gives them back: uint8 [n, H, W, C], and the bytes of their files."""

    codec: str
    setting: str
    pictures: np.ndarray
    sizes: Sequence[int]

    @property
    def mean(self) -> float:
        return sum(self.sizes) / len(self.sizes)


def markdown(rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The table: a row per codec and setting; bytes are means of a picture. The notes stand below it."""
    names = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    lines += [
        "| " + " | ".join("" if row.get(name) is None else _COLUMNS[name](row[name]) for name in names) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes)


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A chart per score and kind of bytes, with a curve per codec."""
    charts = []
    for score, below, name in _CHARTS:
        kept = [row for row in rows if row.get(score) is not None and row.get(name) is not None and _is_drawn(row)]
        most = _CHARTED * min((row[name] for row in kept), default=0)
        series = []
        for codec in dict.fromkeys(row["codec"] for row in kept):
            points = sorted((row[name], row[score]) for row in kept if row["codec"] == codec)
            near = [point for point in points if point[0] <= most]
            series.append(Series(codec, near or points[:1]))
        if series:
            charts.append(Chart(score.replace("_", " "), below, series))
    return charts


def _is_drawn(row: Mapping[str, Any]) -> bool:
    return row["codec"] in MODELS or row["codec"] in OTHERS


def notes(rows: Sequence[Mapping[str, Any]], receiver: Mapping[str, int]) -> list[str]:
    """Sentences below the table.

    Args:
        receiver: bytes of the pipeline's parts, by name.
    """
    own = [row for row in rows if row["codec"] in MODELS]
    sizes = ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in receiver.items())
    found = [f"Whoever reads files of the pipeline needs it, once for all of them: {sizes}. fixed needs the tokenizer."]
    by_name = {row["codec"]: row for row in rows}
    for row in own:
        if row.get("information"):
            above = row["bytes_without_headers"] / row["information"] - 1
            found.append(
                f"Without headers {row['codec']} takes {number(row['bytes_without_headers'])} bytes, {above:.1%} above "
                f"the codes' information under it, {number(row['information'])} bytes."
            )
    if {"context", "fixed", "zstd"} <= by_name.keys():
        context, fixed = (by_name[name]["bytes_without_headers"] for name in ("context", "fixed"))
        zstd = by_name["zstd"]["bytes_without_headers"]
        text = f"Without headers context is {1 - context / fixed:.1%} below fixed, and takes {context / zstd:.3f} times"
        text += " what zstd makes of all fixed codes together"
        if "prior" in by_name:
            text += f", and {context / by_name['prior']['bytes_without_headers']:.3f} times what prior takes"
        found.append(f"{text}.")
    fewest = min((row["bytes"] for row in own), default=0.0)
    for codec in OTHERS:
        smallest = min((row for row in rows if row["codec"] == codec), key=lambda row: row["bytes"], default=None)
        if smallest is not None and own and smallest["bytes"] > fewest:
            found.append(
                f"{codec} does not go below {number(smallest['bytes'])} bytes a picture ({number(smallest['psnr'])} "
                f"dB), and stands at its smallest files. Its bytes without headers are {CODED[codec]}."
            )
    return found


def side_by_side(pixels: np.ndarray, examples: Sequence[Example]) -> Image.Image:
    """Pictures uint8 [n, H, W, C], and below them each codec's at the setting nearest to our files' bytes.

    A codec that cannot go as low is there with its smallest files: the bytes stand beside it.
    """
    own = sorted((example for example in examples if example.codec in MODELS), key=lambda example: example.mean)
    target = own[0].mean if own else 0.0
    rows = [("original", _pictures(pixels))]
    for codec in dict.fromkeys(example.codec for example in [*own[:1], *examples]):
        if own and codec in MODELS and codec != own[0].codec:  # all models give the same pictures
            continue
        of_codec = [example for example in examples if example.codec == codec]
        nearest = min(of_codec, key=lambda example: abs(example.mean - target))
        name = f"ours, {codec}" if codec in MODELS else f"{codec} {nearest.setting}"
        rows.append((f"{name}: {nearest.mean:.0f} bytes", _pictures(nearest.pictures)))
    return labelled_rows(rows, least_side=88)


def _pictures(pixels: np.ndarray) -> list[Image.Image]:
    return to_pil(to_model(torch.from_numpy(np.ascontiguousarray(pixels))))

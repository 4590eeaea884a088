"""`codegrid evaluate compression`: bytes against quality, beside JPEG, WebP, AVIF and JPEG 2000 on the same images."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.codec.file_format import unpack
from codegrid.pipelines.compression.codec import ImageCodec, ModelName
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.pipelines.evaluation.reconstruction import all_pixels
from codegrid.pipelines.evaluation.results import circumstances, describe_data
from codegrid.pipelines.pictures.charts import Chart, Series, png
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_atomically, write_json, write_text
from codegrid.pipelines.system.numbers import number
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.losses import FeatureDistance, FeatureDistanceConfig
from codegrid.tokenizer.metrics import psnr, ssim

_BATCH = 64
_SIDE_OF_SSIM = 11


@dataclass(frozen=True)
class _Other:
    """Another codec: Pillow's format, the options of each setting, and the feature of Pillow that it needs."""

    format: str
    feature: str
    settings: tuple[tuple[str, dict[str, Any]], ...]


_OTHERS = {
    "jpeg": _Other("JPEG", "jpg", tuple((f"q{q}", {"quality": q, "optimize": True}) for q in (1, 5, 15, 30, 60, 90))),
    "webp": _Other("WEBP", "webp", tuple((f"q{q}", {"quality": q, "method": 6}) for q in (0, 10, 25, 50, 75, 95))),
    "avif": _Other("AVIF", "avif", tuple((f"q{q}", {"quality": q, "speed": 4}) for q in (0, 10, 25, 50, 75, 90))),
    "jpeg2000": _Other(
        "JPEG2000",
        "jpg_2000",
        tuple(
            (f"{rate}:1", {"quality_mode": "rates", "quality_layers": [rate]}) for rate in (400, 200, 100, 50, 20, 8)
        ),
    ),
}


def evaluate_compression(
    pipeline: str,
    data: DataConfig,
    output_dir: str,
    models: tuple[ModelName, ...] = ("prior", "context", "fixed"),
    others: tuple[str, ...] = tuple(_OTHERS),
    num_images: int = 2000,
    feature_net: str | None = None,
    feature_weights: str | None = None,
) -> Path:
    """Compress pictures by a pipeline and by other codecs: bytes of whole files, PSNR, SSIM, images a second.

    All codecs get the same pictures: those that the tokenizer sees, as 8-bit RGB or grey.

    Args:
        pipeline: folder or Hub name.
        data: the pictures; they should be none that the pipeline was trained on.
        output_dir: folder for compression.json, compression.md and compression.png, the curves.
        models: models of the pipeline; "context" is left out if it has none.
        others: other codecs, each at several settings: jpeg, webp, avif, jpeg2000.
        num_images: at most so many pictures, spread evenly over the data.
        feature_net: adds the distance in this net's features: objective.feature_distance.net.
        feature_weights: local file of the net's weights.

    Raises:
        DataError: the pictures cannot be read as configured, or none could be used.
        LoadingError: the pipeline cannot be loaded.
        CodegridError: a number is out of its range, or a codec is unknown.
    """
    require(num_images >= 1, f"num_images is {num_images}.", "Give at least 1.")
    unknown = [name for name in others if name not in _OTHERS]
    require(not unknown, f"others names {', '.join(unknown)}.", f"Choose of {', '.join(_OTHERS)}.")
    distance = FeatureDistance(FeatureDistanceConfig(feature_net, feature_weights)) if feature_net else None
    codec = ImageCodec.from_pretrained(pipeline)
    accelerator = make_accelerator()
    codec.pipe.to(accelerator.device)
    source = open_images(data)
    print("\n".join(describe_source(source)))
    pixels, labels = _pictures(codec, source, num_images)
    score = _Scorer(pixels, distance)
    rows = [_own(codec, name, pixels, labels, score) for name in models if name != "context" or codec.pipe.context]
    for name in others:
        rows += _others(name, pixels, score)
    folder = Path(output_dir)
    record = {
        "kind": "compression",
        "results": rows,
        "pipeline": pipeline,
        "fingerprints": codec.fingerprints,
        "parameters": {part: _parameters(module) for part, module in _parts(codec).items()},
        "data": {**describe_data(source, data.source, data.split, codec.pipe.tokenizer), "num_images": len(pixels)},
        **circumstances(accelerator),
    }
    write_json(folder / "compression.json", record)
    table = markdown(rows)
    write_text(folder / "compression.md", table)
    picture = png(curves(rows))
    write_atomically(folder / "compression.png", lambda aside: picture.save(aside, format="PNG"))
    print(f"{table}\nThe table, its numbers and the curves are in {folder}.")
    return folder


def _pictures(codec: ImageCodec, source: Any, most: int) -> tuple[np.ndarray, list[int] | None]:
    """At most `most` pictures, uint8 [N, H, W, C], and their classes in the pipeline, or None."""
    if isinstance(source, ImageSource):
        rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
        source = source.subset(rows, "to compress")
    pixels, labels = all_pixels(codec.pipe.tokenizer, source)
    if not len(pixels):
        raise DataError("None of the pictures could be used.", "codegrid look says what is read of them.")
    own, names = codec.pipe.class_names or (), source.class_names or ()
    if not names or not set(names) <= set(own) or (labels < 0).any():
        return pixels, None
    return pixels, [own.index(names[label]) for label in labels.tolist()]


class _Scorer:
    """Means of PSNR, SSIM and the feature distance of pictures that come back: uint8 [N, H, W, C]."""

    def __init__(self, pixels: np.ndarray, distance: FeatureDistance | None) -> None:
        self.pixels, self.distance = pixels, distance

    @torch.inference_mode()
    def __call__(self, returned: np.ndarray) -> dict[str, float]:
        sums: dict[str, float] = {}
        for first in range(0, len(returned), _BATCH):
            pair = [to_model(torch.from_numpy(a[first : first + _BATCH])) for a in (self.pixels, returned)]
            found = {"psnr": psnr(*pair)}
            if min(pair[0].shape[-2:]) >= _SIDE_OF_SSIM:
                found["ssim"] = ssim(*pair)
            if self.distance is not None:
                found["feature_distance"] = self.distance(*pair)
            for name, values in found.items():
                sums[name] = sums.get(name, 0.0) + values.double().sum().item()
        return {name: total / len(returned) for name, total in sums.items()}


def _own(
    codec: ImageCodec, model: ModelName, pixels: np.ndarray, labels: list[int] | None, score: _Scorer
) -> dict[str, Any]:
    """A row of one of the pipeline's models, with the archive's bytes and those of a file a picture."""
    start = time.perf_counter()
    codes = torch.cat([codec.pipe.tokenizer.encode(part).cpu() for part in _batches(codec, pixels)])
    blobs = codec.compress_codes(codes, labels, model)
    written = time.perf_counter()
    archive = codec.archive(codes, labels, model)
    read = unpack(archive)
    begun = time.perf_counter()
    images = torch.cat(
        [codec.decoded(read, range(f, min(f + _BATCH, len(codes)))) for f in range(0, len(codes), _BATCH)]
    )
    ended = time.perf_counter()
    size = len(pixels)
    return {
        "codec": model,
        "setting": "archive",
        "bytes": len(archive) / size,
        "bytes_of_a_file": sum(map(len, blobs)) / size,
        "bytes_without_headers": sum(len(entry.payload) for entry in read.entries) / size,
        "bits_a_pixel": 8 * len(archive) / pixels[..., 0].size,
        **score(to_uint8(images).numpy()),
        "encoded_a_second": size / (written - start),
        "decoded_a_second": size / (ended - begun),
    }


def _batches(codec: ImageCodec, pixels: np.ndarray) -> Iterator[Tensor]:
    for first in range(0, len(pixels), _BATCH):
        yield to_model(torch.from_numpy(pixels[first : first + _BATCH])).to(codec.pipe.tokenizer.device)


def _others(name: str, pixels: np.ndarray, score: _Scorer) -> list[dict[str, Any]]:
    """Rows of another codec, one a setting; none if this Pillow lacks it."""
    other = _OTHERS[name]
    if not features.check(other.feature):
        print(f"Without {name}: this Pillow was built without it.")
        return []
    images = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]
    rows = []
    for setting, options in tqdm(other.settings, desc=name, leave=False, dynamic_ncols=True):
        start = time.perf_counter()
        files = [_saved(image, other.format, options) for image in images]
        written = time.perf_counter()
        returned = [np.asarray(Image.open(io.BytesIO(file)).convert(images[0].mode)) for file in files]
        ended = time.perf_counter()
        size = sum(map(len, files)) / len(files)
        rows.append(
            {
                "codec": name,
                "setting": setting,
                "bytes": size,
                "bytes_of_a_file": size,
                "bytes_without_headers": None,
                "bits_a_pixel": 8 * size * len(files) / pixels[..., 0].size,
                **score(np.stack(returned).reshape(pixels.shape)),
                "encoded_a_second": len(files) / (written - start),
                "decoded_a_second": len(files) / (ended - written),
            }
        )
    return rows


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


_COLUMNS: dict[str, Callable[[Any], str]] = {
    "codec": str,
    "setting": str,
    "bytes": number,
    "bytes_of_a_file": number,
    "bits_a_pixel": number,
    "psnr": number,
    "ssim": number,
    "feature_distance": number,
    "encoded_a_second": number,
    "decoded_a_second": number,
}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table: a row per codec and setting; bytes are means of a picture."""
    names = [name for name in _COLUMNS if any(name in row for row in rows)]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_COLUMNS[name](row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def curves(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """A chart per score over the bytes of a picture."""
    charts = []
    for name in ("psnr", "ssim", "feature_distance"):
        series = [
            Series(codec, sorted((row["bytes"], row[name]) for row in rows if row["codec"] == codec))
            for codec in dict.fromkeys(row["codec"] for row in rows)
            if any(name in row for row in rows)
        ]
        if series:
            charts.append(Chart(name, "bytes a picture", series))
    return charts


def _parts(codec: ImageCodec) -> dict[str, torch.nn.Module]:
    return {"tokenizer": codec.pipe.tokenizer, "prior": codec.pipe.prior}


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


__all__ = ["evaluate_compression"]

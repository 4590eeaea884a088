"""`codegrid evaluate compression`: bytes against quality, beside JPEG, WebP, AVIF and JPEG 2000 on the same images."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.codec.decisions import bits_of
from codegrid.pipelines.codec.file_format import unpack
from codegrid.pipelines.compression.beside import (
    NAME,
    WHOLE_NAME,
    Example,
    curves,
    markdown,
    notes,
    sheet_name,
    side_by_side,
)
from codegrid.pipelines.compression.codec import ImageCodec, ModelName
from codegrid.pipelines.compression.others import OTHERS, coded_bytes
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, ImageStream
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.pipelines.evaluation.left_out import check_usable, describe_left_out, left_out
from codegrid.pipelines.evaluation.reconstruction import all_pixels
from codegrid.pipelines.evaluation.results import FOLDER_NAME, circumstances, describe_data, output_folder
from codegrid.pipelines.pictures.charts import png
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.pipelines.system.files import write_atomically, write_json, write_text
from codegrid.prior import log_likelihood
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import BadImage, to_model, to_uint8, to_whole
from codegrid.tokenizer.images.whole import padded
from codegrid.tokenizer.losses import FeatureDistance, FeatureDistanceConfig
from codegrid.tokenizer.metrics import psnr, ssim

_BATCH = 64
_SIDE_OF_SSIM = 11
_SHOWN = 8  # pictures side by side
_ZSTD_LEVEL = 19


def evaluate_compression(
    pipeline: str,
    data: DataConfig,
    output_dir: str | None = None,
    models: tuple[ModelName, ...] = ("prior", "context", "fixed"),
    others: tuple[str, ...] = tuple(OTHERS),
    num_images: int = 2000,
    feature_net: str | None = None,
    feature_weights: str | None = None,
    whole: bool = False,
) -> Path:
    """Compress pictures by a pipeline and by other codecs: bytes of whole files, PSNR, SSIM, images a second.

    All codecs get the same pictures: those that the tokenizer sees, as 8-bit RGB or grey.

    Args:
        pipeline: folder or Hub name.
        data: the pictures; they should be none that the pipeline was trained on.
        output_dir: folder for compression.json, compression.md, compression.png (the curves) and
            compression_pictures.png (some pictures by each codec, at the bytes nearest to ours); with whole they are
            named compression_whole. None is a folder beside the pipeline's. A pipeline of this machine gets them, too,
            for its report.
        models: models of the pipeline; "context" is left out if it has none.
        others: other codecs, each at several settings: jpeg, webp, avif, jpeg2000.
        num_images: at most so many pictures, spread evenly over the data.
        feature_net: adds the distance in this net's features: objective.feature_distance.net.
        feature_weights: local file of the net's weights.
        whole: compare the pictures in their own size, not cut to the tokenizer's: files as of `compress --whole`. All
            must have one size.

    Raises:
        DataError: the pictures cannot be read as configured, none could be used, or they have several sizes.
        LoadingError: the pipeline cannot be loaded.
        CodegridError: a number is out of its range, or a codec is unknown.
    """
    require(num_images >= 1, f"num_images is {num_images}.", "Give at least 1.")
    unknown = [name for name in others if name not in OTHERS]
    require(not unknown, f"others names {', '.join(unknown)}.", f"Choose of {', '.join(OTHERS)}.")
    distance = FeatureDistance(FeatureDistanceConfig(feature_net, feature_weights)) if feature_net else None
    codec = ImageCodec.from_pretrained(pipeline)
    accelerator = make_accelerator()
    codec.pictures.to(accelerator.device)
    source = open_images(data)
    print("\n".join(describe_source(source)))
    skipped: dict[str, str] = {}
    pixels, labels = _pictures(codec, source, num_images, whole, skipped)
    trial = _Trial(pixels, labels, distance, whole)
    rows = [_own(codec, name, trial) for name in models if name != "context" or codec.pipe.context]
    rows += [_zstd(codec, trial, rows[0])] if rows else []
    for name in others:
        rows += _others(name, trial)
    receiver = _receiver(codec)
    out = left_out(skipped)
    said = [*notes(rows, receiver), *describe_left_out(out)]
    record = {
        "kind": NAME,
        "results": rows,
        "notes": said,
        "pipeline": pipeline,
        "fingerprints": codec.fingerprints,
        "bytes_of_the_pipeline": receiver,
        "parameters": {part: _parameters(module) for part, module in _parts(codec).items()},
        "whole": whole,
        "data": {
            **describe_data(source, data.source, data.split, codec.pictures.tokenizer),
            "num_images": len(pixels),
            "left_out": out,
        },
        **circumstances(accelerator),
    }
    folder = output_folder(output_dir, pipeline)
    sheet = side_by_side(pixels[trial.shown], trial.examples)
    _write(folder, record, sheet)
    inside = Path(pipeline)
    if (inside / "README.md").is_file():  # the report shows what lies in the pipeline's folder
        _write(inside / FOLDER_NAME, record, sheet)
    print(f"{markdown(rows, said)}\nThe table, its numbers, the curves and the pictures are in {folder}.")
    return folder


def _write(folder: Path, record: dict[str, Any], sheet: Image.Image) -> None:
    rows, name = record["results"], WHOLE_NAME if record["whole"] else NAME
    pictures = {f"{name}.png": png(curves(rows)), sheet_name(name): sheet}
    write_json(folder / f"{name}.json", record)
    write_text(folder / f"{name}.md", markdown(rows, record["notes"]))
    for file, picture in pictures.items():
        write_atomically(folder / file, lambda aside, picture=picture: picture.save(aside, format="PNG"))


def _pictures(
    codec: ImageCodec, source: Any, most: int, whole: bool, skipped: dict[str, str]
) -> tuple[np.ndarray, list[int] | None]:
    """At most `most` pictures, uint8 [N, H, W, C], and their classes in the pipeline, or None.

    `skipped` gets the names of those that cannot be used, with the reasons.
    """
    if isinstance(source, ImageSource):
        rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
        source = source.subset(rows, "to compress")
    tokenizer = codec.pictures.tokenizer
    pixels, labels = (_whole_pixels if whole else all_pixels)(tokenizer, source, skipped)
    check_usable(len(pixels), len(skipped), source.description, left_out(skipped))
    own, names = codec.pipe.sequence.class_names or (), source.class_names or ()
    if not names or not set(names) <= set(own) or (labels < 0).any():
        return pixels, None
    return pixels, [own.index(names[label]) for label in labels.tolist()]


def _whole_pixels(tokenizer: VQModel, source: ImageStream, skipped: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """As `all_pixels`, in the pictures' own size."""
    found, labels, config = [], [], tokenizer.config
    for record in source:
        try:
            found.append(to_whole(record.data, config.preprocessing_config, 1, config.backbone_config.in_channels))
            labels.append(-1 if record.label is None else record.label)
        except BadImage as error:
            skipped[record.source_id] = f"{error.reason}: {error}"
        except FileNotFoundError as error:
            skipped[record.source_id] = f"vanished: {error.strerror}."
    sizes = sorted({picture.size for picture in found})
    if len(sizes) > 1:
        raise DataError(
            "The pictures have {} sizes, such as {}x{} and {}x{}.".format(len(sizes), *sizes[0][::-1], *sizes[1][::-1]),
            "Give pictures of one size, or leave --whole out: then they are cut to the tokenizer's.",
        )
    return np.array([picture.pixels for picture in found]), np.array(labels, dtype=np.int64)


class _Trial:
    """The pictures that all codecs get, and how what comes back is scored.

    Attributes:
        pixels: uint8 [N, H, W, C]; labels: the pipeline's classes, or None.
        whole: they have their own size, and files keep it.
        shown: places of the pictures that are shown side by side; `examples` collects what the codecs make of them.
    """

    def __init__(
        self, pixels: np.ndarray, labels: list[int] | None, distance: FeatureDistance | None, whole: bool = False
    ) -> None:
        self.pixels, self.labels, self.distance, self.whole = pixels, labels, distance, whole
        self.shown = np.unique(np.linspace(0, len(pixels) - 1, _SHOWN).round().astype(np.int64))
        self.examples: list[Example] = []

    def show(self, codec: str, setting: str, returned: np.ndarray, files: Sequence[bytes]) -> None:
        sizes = [len(files[place]) for place in self.shown]
        self.examples.append(Example(codec, setting, returned[self.shown], sizes))

    @torch.inference_mode()
    def score(self, returned: np.ndarray) -> dict[str, float]:
        """Means of PSNR, SSIM and the feature distance of pictures that come back: uint8 [N, H, W, C]."""
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


def _own(codec: ImageCodec, model: ModelName, trial: _Trial) -> dict[str, Any]:
    """A row of one of the pipeline's models, with the archive's bytes and those of a file a picture.

    Whole pictures are in no archive. Pictures are encoded and decoded a second by nets and coder; codes are written
    and read by the coder alone.
    """
    size, labels = len(trial.pixels), trial.labels
    start = time.perf_counter()
    codes, added = _encoded(codec, trial)
    encoded = time.perf_counter()
    blobs = codec.compress_codes(codes, labels, model, added=added)
    written = time.perf_counter()
    files = blobs if trial.whole else [codec.archive(codes, labels, model)]
    begun = time.perf_counter()
    found = torch.cat([codec.codes(file).view(-1, *codes.shape[1:]) for file in files])
    read = time.perf_counter()
    at_once = 1 if trial.whole else _BATCH
    images = torch.cat(
        [
            codec.pixels(found[first : first + at_once], labels and labels[first : first + at_once], added)
            for first in range(0, size, at_once)
        ]
    )
    ended = time.perf_counter()
    require(torch.equal(found, codes), f"The codes of {model} came back changed.", "Report it: this is an error.")
    returned = to_uint8(images).numpy()
    trial.show(model, "", returned, blobs)
    row = {
        "codec": model,
        "setting": "files" if trial.whole else "archive",
        "bytes": sum(map(len, files)) / size,
        "bytes_of_a_file": sum(map(len, blobs)) / size,
        "bytes_without_headers": sum(len(entry.payload) for file in files for entry in unpack(file).entries) / size,
        "bits_a_pixel": 8 * sum(map(len, files)) / trial.pixels[..., 0].size,
        **trial.score(returned),
        "encoded_a_second": size / (written - start),
        "decoded_a_second": size / (ended - begun),
        "written_a_second": size / (written - encoded),
        "read_a_second": size / (read - begun),
    }
    if model == "prior" and tuple(codes.shape[1:3]) == codec.pipe.sequence.grid_shape:
        nats = log_likelihood(codec.pipe.prior, codec.pipe.sequence, codes, labels).mean().item()
        row["information"] = -nats / math.log(2) / 8
    return row


def _encoded(codec: ImageCodec, trial: _Trial) -> tuple[Tensor, tuple[int, int] | None]:
    """Codes int64 [N, h, w(, depth)] on the CPU, and what was added to whole pictures."""
    tokenizer, parts, pixels = codec.pictures.tokenizer, [], trial.pixels
    if trial.whole:
        several = [padded(one, tokenizer.config.pixels_per_position) for one in pixels]
        return torch.cat([codec.encode_whole(one) for one in several]), several[0].added
    with evaluating(tokenizer), torch.inference_mode():
        for first in range(0, len(pixels), _BATCH):
            images = to_model(torch.from_numpy(pixels[first : first + _BATCH])).to(tokenizer.device)
            parts.append(tokenizer.encode(images).cpu())
    return torch.cat(parts), None


def _zstd(codec: ImageCodec, trial: _Trial, own: dict[str, Any]) -> dict[str, Any]:
    """A row of zstd over the fixed codes of all pictures together, each code in whole bytes or in its bits alone."""
    codes = _encoded(codec, trial)[0].numpy().ravel()
    bits = bits_of(codec.pipe.sequence.codebook_size)
    packed = np.packbits(codes[:, None] >> np.arange(bits)[::-1] & 1).tobytes()
    zstd = pyarrow.Codec("zstd", compression_level=_ZSTD_LEVEL)
    texts = (codes.astype("<u4" if bits > 16 else "<u2" if bits > 8 else "u1").tobytes(), packed)
    size = min(len(zstd.compress(text, asbytes=True)) for text in texts) / len(trial.pixels)
    scores = {name: own[name] for name in ("psnr", "ssim", "feature_distance") if name in own}
    row = {"codec": "zstd", "setting": "fixed codes of all", "bytes": size, "bytes_without_headers": size}
    return {**row, "bits_a_pixel": 8 * size * len(trial.pixels) / trial.pixels[..., 0].size, **scores}


def _others(name: str, trial: _Trial) -> list[dict[str, Any]]:
    """Rows of another codec, one a setting; none if this Pillow lacks it."""
    other, pixels = OTHERS[name], trial.pixels
    if not other.is_there:
        print(f"Without {name}: this Pillow was built without it.")
        return []
    images = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]
    rows = []
    for setting, options in tqdm(other.settings, desc=name, leave=False, dynamic_ncols=True):
        start = time.perf_counter()
        files = [other.saved(image, options) for image in images]
        written = time.perf_counter()
        read = [np.asarray(Image.open(io.BytesIO(file)).convert(images[0].mode)) for file in files]
        ended = time.perf_counter()
        returned = np.stack(read).reshape(pixels.shape)
        trial.show(name, setting, returned, files)
        size = sum(map(len, files)) / len(files)
        rows.append(
            {
                "codec": name,
                "setting": setting,
                "bytes": size,
                "bytes_of_a_file": size,
                "bytes_without_headers": sum(coded_bytes(name, file) for file in files) / len(files),
                "bits_a_pixel": 8 * size * len(files) / pixels[..., 0].size,
                **trial.score(returned),
                "encoded_a_second": len(files) / (written - start),
                "decoded_a_second": len(files) / (ended - written),
            }
        )
    return rows


def _receiver(codec: ImageCodec) -> dict[str, int]:
    """Bytes of what reads the files: the weights of the pipeline's parts and the tables of its context."""
    sizes = {
        part: sum(value.numel() * value.element_size() for value in module.state_dict().values())
        for part, module in _parts(codec).items()
    }
    return sizes | ({} if codec.pipe.context is None else {"context": codec.pipe.context.num_bytes})


def _parts(codec: ImageCodec) -> dict[str, torch.nn.Module]:
    return {"tokenizer": codec.pictures.tokenizer, "prior": codec.pipe.prior}


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


__all__ = ["evaluate_compression"]

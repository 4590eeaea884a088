"""Images -> a code data set on disk, shard by shard; a run that was stopped goes on with the next shard."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, List, Value
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipelines.cards import codes_card
from pipelines.classes import decoder_classes
from pipelines.data import DataConfig, DataError, ImageRecord, ImageSource, ImageStream, open_image_stream
from pipelines.devices import evaluating, make_accelerator
from pipelines.files import OutputError, sha256, write_atomically, write_json, write_text
from pipelines.loading import load_tokenizer
from prior.codes import MANIFEST_NAME, CodesManifest, Shard
from tokenizer import Preprocessing, VQModel
from tokenizer.fields import require
from tokenizer.images import TEN_CROP, BadImage, load_image, prepare, to_model

_PLAN_NAME = ".plan.json"


@dataclass(frozen=True)
class TokenizationConfig:
    """Args:
    tokenizer: folder or Hub name of the tokenizer.
    data: the images.
    output_dir: the code data set's folder. To go on after a stop, run the same command again.
    flip: add the mirrored image as a variant.
    ten_crop: instead of the central square take ADM's and LlamaGen's ten crops (their mirror images are among them).
    batch_size: images (variants) a forward pass.
    images_per_shard: source images a Parquet file; a stop loses at most one.
    mixed_precision: "bf16" is faster where the device computes in it and changes some of the codes; it is recorded.
    device: "auto" is what Accelerate finds.
    num_workers: processes that load images; 0 loads in the main one. Not for streaming.
    """

    tokenizer: str
    data: DataConfig
    output_dir: str
    flip: bool = False
    ten_crop: bool = False
    batch_size: int = 64
    images_per_shard: int = 10_000
    mixed_precision: Literal["no", "bf16"] = "no"
    device: Literal["auto", "cpu"] = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "images_per_shard"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: it must be at least 1.")
        require(not (self.flip and self.ten_crop), "ten_crop has the mirrored crops already: leave flip out.")


class Variant(NamedTuple):
    """crop: 0 for the central square or the index of `TEN_CROP`; flip: whether the image is mirrored."""

    crop: int
    flip: bool


class Prepared(NamedTuple):
    """An image's variants as pixels uint8 [V, S, S, C], or the reason why it is left out."""

    record: ImageRecord
    pixels: np.ndarray | None
    reason: str = ""
    detail: str = ""


def tokenize_dataset(config: TokenizationConfig) -> Path:
    """Encode all images of `config.data`; gives the code data set's folder.

    Raises:
        DataError: the images cannot be read as asked, or none of them could be used; or the tokenizer's decoder is
            class-conditional, and they have no classes, or others.
        OutputError: the folder holds something else, or the disk is full.
    """
    accelerator = make_accelerator(config.device, config.mixed_precision)
    model = load_tokenizer(config.tokenizer).to(accelerator.device)
    images = open_image_stream(config.data)
    # Codes of pictures without the decoder's classes could never be decoded.
    decoder_classes(model.config, images.class_names, images.description)
    folder = Path(config.output_dir)
    plan = _plan(config, model, images)
    _claim(folder, plan, accelerator)
    if (folder / MANIFEST_NAME).exists():
        _say(accelerator, f"{folder} is finished already: nothing to do.")
        return folder
    _say(accelerator, f"Tokenizing {images.description} with {config.tokenizer} into {folder}.")
    with evaluating(model):
        _write_shards(config, model, images, folder, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = _finish(config, model, images, folder)
        _say(
            accelerator,
            f"{manifest.num_rows} rows of {math.prod(model.config.codes_shape)} codes from {manifest.num_images} "
            f"images are in {folder}"
            + (f"; {manifest.num_skipped} left out, see skipped.jsonl." if manifest.num_skipped else "."),
        )
    accelerator.wait_for_everyone()
    return folder


def code_features(codebook_size: int, length: int, class_names: list[str] | None) -> Features:
    """Columns of a code data set: flat fixed-size lists are what both Arrow and torch read fastest."""
    features = {"codes": List(Value(code_dtype(codebook_size)), length=length)}
    if class_names is not None:
        features["label"] = ClassLabel(names=class_names)
    return Features({**features, "source_id": Value("string"), "crop": Value("uint8"), "flip": Value("bool")})


def code_dtype(codebook_size: int) -> str:
    return "uint16" if codebook_size <= 65_536 else "uint32"


def variants(config: TokenizationConfig) -> list[Variant]:
    if config.ten_crop:
        return [Variant(index, TEN_CROP[index].flip) for index in range(len(TEN_CROP))]
    return [Variant(0, False), Variant(0, True)] if config.flip else [Variant(0, False)]


class _PreparedImages(Dataset):
    """Item i -> `Prepared`; picklable, so that worker processes can load."""

    def __init__(self, source: ImageStream, preprocessing: Preprocessing, channels: int, config: TokenizationConfig):
        self.source, self.preprocessing, self.channels = source, preprocessing, channels
        self.variants, self.ten_crop = variants(config), config.ten_crop

    def __getitem__(self, index: int) -> Prepared:
        return self.prepare(self.source[index])

    def prepare(self, record: ImageRecord) -> Prepared:
        try:
            image = load_image(record.data, self.preprocessing.max_pixels)
            pixels = []
            for crop, flip in self.variants:
                # a TEN_CROP variant mirrors by itself
                chosen = {"crop": crop} if self.ten_crop else {"flip": flip}
                pixels.append(prepare(image, self.preprocessing, self.channels, **chosen))
            return Prepared(record, np.stack(pixels))
        except BadImage as error:
            return Prepared(record, None, error.reason, str(error))


def _write_shards(
    config: TokenizationConfig, model: VQModel, images: ImageStream, folder: Path, accelerator: Accelerator
) -> None:
    """Shard k holds the images k * images_per_shard and on, and is written by rank k modulo the ranks."""
    dataset = _PreparedImages(
        images, model.config.preprocessing_config, model.config.backbone_config.in_channels, config
    )
    total = len(images) if isinstance(images, ImageSource) else None
    bar = tqdm(total=total, unit="image", disable=not accelerator.is_main_process, dynamic_ncols=True, mininterval=1.0)
    for shard, prepared in _shards(dataset, total, config, accelerator, folder, bar):
        rows, skipped, size = _encode(model, prepared, dataset.variants, config.batch_size, accelerator, bar)
        _write_shard(folder, shard, rows, skipped, size, model, images)
    bar.close()


def _shards(
    dataset: _PreparedImages,
    total: int | None,
    config: TokenizationConfig,
    accelerator: Accelerator,
    folder: Path,
    bar: tqdm,
) -> Iterator[tuple[int, Iterator[Prepared]]]:
    """This rank's shards that are not there yet, each with its images in order."""
    rank, ranks, size = accelerator.process_index, accelerator.num_processes, config.images_per_shard
    if total is None:
        stream = iter(dataset.source)
        for shard in itertools.count():
            records = list(itertools.islice(stream, size))  # undecoded
            if not records:
                return
            if shard % ranks == rank and not _is_done(folder, shard):
                yield shard, map(dataset.prepare, records)
            else:
                bar.update(len(records))
    for shard in range(math.ceil(total / size)):
        rows = range(shard * size, min(total, (shard + 1) * size))
        if shard % ranks == rank and not _is_done(folder, shard):
            workers = (
                {"num_workers": config.num_workers, "multiprocessing_context": "spawn"} if config.num_workers else {}
            )
            yield shard, iter(DataLoader(dataset, batch_size=None, sampler=rows, **workers))
        else:
            bar.update(len(rows))


def _encode(
    model: VQModel,
    images: Iterator[Prepared],
    kinds: list[Variant],
    batch_size: int,
    accelerator: Accelerator,
    bar: tqdm,
) -> tuple[dict[str, list], list[dict[str, str]], int]:
    """Rows of a shard by column, what was skipped, and how many images were read."""
    rows: dict[str, list] = {"codes": [], "label": [], "source_id": [], "crop": [], "flip": []}
    skipped, number = [], 0
    waiting: list[np.ndarray] = []

    def encode(most: int) -> None:
        while len(waiting) >= most:
            pixels = torch.from_numpy(np.stack(waiting[:batch_size]))
            del waiting[:batch_size]
            with accelerator.autocast():
                codes = model.encode(to_model(pixels).to(accelerator.device))  # [B, h, w] or [B, h, w, depth]
            rows["codes"].append(codes.flatten(1).cpu().numpy())

    for image in images:
        number += 1
        bar.update()
        if image.pixels is None:
            skipped.append({"source_id": image.record.source_id, "reason": image.reason, "detail": image.detail})
            continue
        for pixels, kind in zip(image.pixels, kinds, strict=True):
            waiting.append(pixels)
            rows["label"].append(image.record.label)
            rows["source_id"].append(image.record.source_id)
            rows["crop"].append(kind.crop)
            rows["flip"].append(kind.flip)
        encode(batch_size)
    encode(1)
    return rows, skipped, number


def _write_shard(
    folder: Path,
    shard: int,
    rows: dict[str, list],
    skipped: list[dict[str, str]],
    num_images: int,
    model: VQModel,
    images: ImageStream,
) -> None:
    """The Parquet file, then its record; a shard without its record is not done.

    Where none of its images could be used there is a record only: datasets cannot read a file of no rows.
    """
    length, size = math.prod(model.config.codes_shape), model.config.quantizer_config.codebook_size
    schema = code_features(size, length, images.class_names).arrow_schema
    codes = np.concatenate(rows["codes"]) if rows["codes"] else np.empty((0, length))
    flat = pa.array(codes.astype(code_dtype(size)).ravel())
    columns = {**rows, "codes": pa.FixedSizeListArray.from_arrays(flat, length)}
    # An unlabelled image among labelled ones is -1, as datasets has it.
    columns["label"] = [-1 if label is None else label for label in rows["label"]]
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    path = _shard_path(folder, shard)
    record = {"num_rows": len(table), "num_images": num_images - len(skipped), "skipped": skipped}
    if len(table):
        write_atomically(path, lambda aside: pq.write_table(table, aside, compression="zstd"))
        name = path.relative_to(folder).as_posix()
        record.update(file=name, num_bytes=path.stat().st_size, sha256=sha256(path))
    write_json(_record_path(folder, shard), record)


def _finish(config: TokenizationConfig, model: VQModel, images: ImageStream, folder: Path) -> CodesManifest:
    """Gather the shards' records into the manifest, which makes the folder a code data set."""
    records = [json.loads(path.read_text()) for path in sorted((folder / ".shards").glob("*.json"))]
    skipped = [entry for record in records for entry in record["skipped"]]
    num_rows = sum(record["num_rows"] for record in records)
    if not num_rows:
        first = f" The first: {skipped[0]['source_id']}, {skipped[0]['detail']}" if skipped else ""
        raise DataError(f"None of the {len(skipped)} inputs could be tokenized.{first}")
    quantizer = model.config.quantizer_config
    manifest = CodesManifest(
        tokenizer=config.tokenizer,
        tokenizer_fingerprint=model.fingerprint(),
        codebook_size=quantizer.codebook_size,
        grid_shape=model.config.grid_shape,
        depth=quantizer.depth,
        order="grids" if quantizer.stride > 1 else "positions",
        class_names=None if images.class_names is None else tuple(images.class_names),
        source=images.description,
        source_fingerprint=images.fingerprint,
        num_rows=num_rows,
        num_images=sum(record["num_images"] for record in records),
        shards=tuple(
            Shard(*(record[name] for name in ("file", "num_rows", "num_bytes", "sha256")))
            for record in records
            if record["num_rows"]
        ),
        code_dtype=code_dtype(quantizer.codebook_size),
        preprocessing=model.config.preprocessing,
        precision="bfloat16" if config.mixed_precision == "bf16" else "float32",
        flip=config.flip,
        ten_crop=config.ten_crop,
        num_skipped=len(skipped),
        skipped_reasons=dict(sorted(Counter(entry["reason"] for entry in skipped).items())),
    )
    write_text(folder / "skipped.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped))
    write_text(folder / "README.md", codes_card(manifest))
    write_json(folder / MANIFEST_NAME, asdict(manifest))
    return manifest


def _plan(config: TokenizationConfig, model: VQModel, images: ImageStream) -> dict[str, Any]:
    """All that the rows depend on: a folder goes on only with the same."""
    return {
        "tokenizer_fingerprint": model.fingerprint(),
        "preprocessing": model.config.preprocessing,
        "source": images.description,
        "source_fingerprint": images.fingerprint,
        "flip": config.flip,
        "ten_crop": config.ten_crop,
        "images_per_shard": config.images_per_shard,
        "mixed_precision": config.mixed_precision,
    }


def _claim(folder: Path, plan: dict[str, Any], accelerator: Accelerator) -> None:
    """Make the folder this job's own, or find that it is already."""
    path = folder / _PLAN_NAME
    if accelerator.is_main_process and not folder.exists():
        write_json(path, plan)
    accelerator.wait_for_everyone()
    if not path.is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise OutputError(f"{folder} is not empty and holds no code data set: choose another --output-dir.")
        write_json(path, plan)
    before = json.loads(path.read_text())
    different = [name for name in plan if before.get(name) != json.loads(json.dumps(plan[name]))]
    if different:
        raise OutputError(
            f"{folder} holds codes of another job (different: {', '.join(different)}): choose another --output-dir."
        )


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / "data" / f"codes-{shard:05d}.parquet"


def _record_path(folder: Path, shard: int) -> Path:
    return folder / ".shards" / f"{shard:05d}.json"


def _is_done(folder: Path, shard: int) -> bool:
    path = _record_path(folder, shard)
    if not path.is_file():
        return False
    record, file = json.loads(path.read_text()), _shard_path(folder, shard)
    if not record["num_rows"]:
        return True
    return file.is_file() and file.stat().st_size == record["num_bytes"] and sha256(file) == record["sha256"]


def _say(accelerator: Accelerator, message: str) -> None:
    if accelerator.is_main_process:
        tqdm.write(message)

"""Images -> a code data set on disk, shard by shard. A stopped run resumes with the next shard.

A second run on a folder of images that has grown writes the new images to new shards."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.artifacts.cards import codes_card
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.conditions import Conditions, open_conditions
from codegrid.pipelines.codes.job import Job, claimed
from codegrid.pipelines.codes.shards import EncodedShard, code_dtype, is_done, read_records, write_shard
from codegrid.pipelines.data.batches import (
    Picture,
    Pictures,
    Variant,
    check_channels,
    picture_reader,
    whole_disk,
)
from codegrid.pipelines.data.classes import decoder_classes
from codegrid.pipelines.data.depth import DepthWatch
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, ImageStream, sha256
from codegrid.pipelines.data.sources import open_image_stream
from codegrid.pipelines.data.understood import describe_channels, describe_reading
from codegrid.pipelines.system.devices import Policy, evaluating, make_accelerator, patient_barrier
from codegrid.pipelines.system.files import write_json, write_text
from codegrid.prior.codes import MANIFEST_NAME, CodesManifest, Shard, read_manifest
from codegrid.prior.conditioning import condition_to_dict
from codegrid.prior.conditions import TextCondition
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.fields import established
from codegrid.tokenizer.images import TEN_CROP, to_model
from codegrid.tokenizer.moving import to_device


@dataclass(frozen=True)
class TokenizationConfig:
    """The images to tokenize, the tokenizer, and the output folder.

    Args:
        tokenizer: folder or Hub name of the tokenizer.
        data: the images.
        output_dir: the code data set's folder. To resume after a stop, run the same command again.
        flip: add the mirrored image as a variant.
        ten_crop: use ADM's and LlamaGen's ten crops, which include mirror images, instead of the central square.
        batch_size: images (variants) per forward pass.
        images_per_shard: source images per Parquet file; a stop loses at most one file.
        mixed_precision: "bf16" is faster on devices that compute in it, and changes some of the codes. The run counts,
            prints and records how many change in the first batch of each shard.
        device: "auto" is the device that Accelerate finds.
        num_workers: processes that load images; 0 loads in the main process. Not for streaming.
        condition: a picture that a prior of these codes is to follow, made of each picture: downscale:4, noise:25,
            jpeg:5, blur:2, grey, edges, silhouette, or MODULE:FUNCTION of Python; or another picture that belongs to
            it: column:NAME, or folder:PATH with files of the same names (docs/conditions.md).
        condition_tokenizer: folder or Hub name of the tokenizer of those pictures; by default `tokenizer`.
        captions: a text that a prior of these codes is to follow: column:NAME, txt (a .txt file beside each picture, or
            a field of a WebDataset), or class (the name of its class).
        text_tokenizer: how texts become tokens: bytes, or the folder or Hub name of a tokenizer of transformers.
        text_length: tokens of a text; longer ones are cut.
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
    condition: str | None = None
    condition_tokenizer: str | None = None
    captions: str | None = None
    text_tokenizer: str = "bytes"
    text_length: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "images_per_shard"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}.", "Give at least 1.")
        require(
            not (self.flip and self.ten_crop),
            "ten_crop and flip are both set.",
            "Leave flip out: ten_crop has mirrored crops.",
        )


def tokenize_dataset(config: TokenizationConfig) -> Path:
    """Encode all images of `config.data` and return the code data set's folder.

    Raises:
        DataError: the images cannot be read as configured, or none of them could be used; or the tokenizer's decoder is
            class-conditional and the images have no classes, or other classes.
        OutputError: the folder holds something else, or the disk is full.
    """
    accelerator = make_accelerator(config.device, config.mixed_precision)
    everyone = patient_barrier(accelerator)
    model = load_tokenizer(config.tokenizer).to(accelerator.device)
    images = open_image_stream(config.data)
    # Without the decoder's classes, the codes could never be decoded.
    decoder_classes(model.config, images.class_names, images.description)
    check_channels(images, model.config.preprocessing_config, model.config.backbone_config.in_channels)
    conditions = conditions_of(config, images, model)
    if conditions.model is not None:
        conditions.model.to(accelerator.device)
    folder = Path(config.output_dir)
    with claimed(folder, _plan(config, model, images, conditions), images, accelerator) as job:
        if job.finished:
            if accelerator.is_main_process:
                _renew_card(folder)
            _say(accelerator, f"{folder} is finished already: nothing to do.")
            return folder
        new = f" ({len(job.images):,} of them new)" if job.first_shard else ""
        _say(accelerator, f"Tokenizing {images.description}{new} with {config.tokenizer} into {folder}.")
        channels = describe_channels(model.config.backbone_config.in_channels)
        _say(accelerator, f"{describe_reading(images)}{channels}".rstrip("\n"))
        if conditions.condition is not None:
            _say(accelerator, f"With each picture goes {conditions.condition.describe()}, for a prior to follow.")
        if model.dtype != torch.float32:
            _say(
                accelerator,
                f"The tokenizer's weights are {weights_dtype(model)}: where rounding decides, its codes are others "
                "than those of the tokenizer that it was cast from. The manifest says so.",
            )
        with evaluating(model):
            _write_shards(config, model, job, folder, accelerator, conditions)
        everyone()
        if accelerator.is_main_process:
            manifest = _finish(config, model, images, folder, accelerator.policy, conditions)
            _say(
                accelerator,
                f"{manifest.num_rows} rows of {math.prod(model.config.codes_shape)} codes from {manifest.num_images} "
                f"images are in {folder}"
                + (f"; {manifest.num_skipped} left out, see skipped.jsonl." if manifest.num_skipped else "."),
            )
            if manifest.num_compared:
                _say(
                    accelerator,
                    f"In {manifest.precision} {manifest.num_changed / manifest.num_compared:.1%} of the codes are "
                    f"others than in float32 (of {manifest.num_compared:,} computed in both).",
                )
        everyone()
    return folder


def variants(config: TokenizationConfig) -> list[Variant]:
    if config.ten_crop:
        return [Variant(index) for index in range(len(TEN_CROP))]
    return [Variant(), Variant(flip=True)] if config.flip else [Variant()]


def conditions_of(config: TokenizationConfig, images: ImageStream, model: VQModel) -> Conditions:
    text = None if config.captions is None else TextCondition.of(config.text_tokenizer, config.text_length)
    return open_conditions(
        config.condition, config.captions, images, config.data, model, tokenizer=config.condition_tokenizer, text=text
    )


def _write_shards(
    config: TokenizationConfig,
    model: VQModel,
    job: Job,
    folder: Path,
    accelerator: Accelerator,
    conditions: Conditions,
) -> None:
    """Write the shards. Shard k of a round starts at its image k * images_per_shard; ranks take shards in turn."""
    kinds = variants(config)
    pictures = Pictures(job.images, conditions.reader(model, picture_reader(model, kinds, with_content=True), kinds))
    total = len(job.images) if isinstance(job.images, ImageSource) else None
    bar = tqdm(total=total, unit="image", disable=not accelerator.is_main_process, dynamic_ncols=True, mininterval=1.0)
    parts = _streamed_shards if job.shards is None else _shards
    watch = DepthWatch(model.config.preprocessing_config)
    for shard, part in parts(pictures, job, config, accelerator, folder, bar):
        encoded = _encode(model, watch.of(part), kinds, config.batch_size, accelerator, bar, conditions)
        write_shard(folder, shard, encoded, model, job.images, conditions.features())
        if sentence := watch.sentence():
            _say(accelerator, sentence)
    bar.close()
    if sentence := watch.sentence(last=True):
        _say(accelerator, sentence)


def _shards(
    pictures: Pictures, job: Job, config: TokenizationConfig, accelerator: Accelerator, folder: Path, bar: tqdm
) -> Iterator[tuple[int, Iterator[Picture]]]:
    """This rank's unfinished shards, each with its images in order. One pool of workers reads them all."""
    size, total = config.images_per_shard, len(job.images)
    assert job.shards is not None  # of a source, whose images are counted
    mine = job.shards[accelerator.process_index :: accelerator.num_processes]
    firsts = [(shard - job.first_shard) * size for shard in mine]
    rows = [range(first, min(total, first + size)) for first in firsts]
    bar.total = sum(map(len, rows))
    read = pictures.in_order(itertools.chain.from_iterable(rows), config.num_workers)
    for shard, part in zip(mine, rows, strict=True):
        yield shard, itertools.islice(read, len(part))


def _streamed_shards(
    pictures: Pictures, job: Job, config: TokenizationConfig, accelerator: Accelerator, folder: Path, bar: tqdm
) -> Iterator[tuple[int, Iterator[Picture]]]:
    """This rank's unfinished shards of a stream. The number of shards is unknown until the stream ends."""
    stream = iter(pictures.source)
    for shard in itertools.count():
        records = list(itertools.islice(stream, config.images_per_shard))  # not decoded yet
        if not records:
            return
        if shard % accelerator.num_processes == accelerator.process_index and not is_done(folder, shard):
            yield shard, whole_disk(map(pictures.read, records))
        else:
            bar.update(len(records))


def _encode(
    model: VQModel,
    pictures: Iterator[Picture],
    kinds: Sequence[Variant],
    batch_size: int,
    accelerator: Accelerator,
    bar: tqdm,
    conditions: Conditions,
) -> EncodedShard:
    """Encode a shard's images. In another precision than float32, the first batch is encoded in both."""
    shard, rounded = EncodedShard(), accelerator.mixed_precision != "no"
    rows = shard.rows
    waiting: list[np.ndarray] = []
    of_condition: list[np.ndarray] = []

    def encode(most: int) -> None:
        while len(waiting) >= most:
            pixels = to_model(to_device(torch.from_numpy(np.stack(waiting[:batch_size])), accelerator.device))
            del waiting[:batch_size]
            with accelerator.autocast():
                codes = model.encode(pixels)  # [B, h, w] or [B, h, w, depth]
                if of_condition:
                    conditions.encode(shard, model, of_condition[:batch_size], accelerator.device)
                    del of_condition[:batch_size]
            if rounded and not rows["codes"]:
                shard.num_compared = codes.numel()
                shard.num_changed = int((codes != model.encode(pixels)).sum())
            rows["codes"].append(codes.flatten(1).cpu().numpy())

    for picture in pictures:
        shard.num_images += 1
        shard.contents[picture.source_id] = picture.content
        bar.update()
        if picture.pixels is None:
            shard.skipped.append({"source_id": picture.source_id, "reason": picture.reason, "detail": picture.detail})
            continue
        of_condition.extend(() if picture.condition is None else picture.condition)
        if picture.text is not None:
            conditions.add_text(shard, picture.text, len(kinds))
        for pixels, (crop, flip) in zip(picture.pixels, kinds, strict=True):
            waiting.append(pixels)
            rows["label"].append(picture.label)
            rows["source_id"].append(picture.source_id)
            rows["crop"].append(crop if isinstance(crop, int) else 0)
            rows["flip"].append(TEN_CROP[crop].flip if isinstance(crop, int) else flip)
        encode(batch_size)
    encode(1)
    return shard


def _finish(
    config: TokenizationConfig,
    model: VQModel,
    images: ImageStream,
    folder: Path,
    policy: Policy,
    conditions: Conditions,
) -> CodesManifest:
    """Gather the shards' records into the manifest, which completes the code data set."""
    records = list(read_records(folder).values())
    skipped = [entry for record in records for entry in record["skipped"]]
    num_rows = sum(record["num_rows"] for record in records)
    if not num_rows:
        which = f". The first: {skipped[0]['source_id']}, {skipped[0]['detail'].rstrip('.')}" if skipped else ""
        raise DataError(
            f"None of the {len(skipped)} inputs could be tokenized{which}.",
            "`codegrid look` shows what is read, and why pictures are left out.",
        )
    quantizer = model.config.quantizer_config
    manifest = CodesManifest(
        tokenizer=config.tokenizer,
        tokenizer_fingerprint=model.codes_fingerprint(),
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
        precision=policy.precision if model.dtype == torch.float32 else weights_dtype(model),
        policy=asdict(policy) | ({} if model.dtype == torch.float32 else {"weights": weights_dtype(model)}),
        num_compared=sum(record.get("num_compared", 0) for record in records),
        num_changed=sum(record.get("num_changed", 0) for record in records),
        flip=config.flip,
        ten_crop=config.ten_crop,
        num_skipped=len(skipped),
        skipped_reasons=dict(sorted(Counter(entry["reason"] for entry in skipped).items())),
        condition=None if conditions.condition is None else condition_to_dict(conditions.condition),
    )
    write_text(folder / "skipped.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped))
    write_text(folder / "README.md", codes_card(manifest))
    write_json(folder / MANIFEST_NAME, manifest.to_dict())
    return manifest


def _renew_card(folder: Path) -> None:
    """Rewrite a card of 0.1.0: it does not identify its codes, so `load_dataset(folder)` could return older ones."""
    manifest, card = read_manifest(folder), folder / "README.md"
    if not card.is_file() or manifest.fingerprint() not in card.read_text(encoding="utf-8"):
        write_text(card, codes_card(manifest))


def _plan(config: TokenizationConfig, model: VQModel, images: ImageStream, conditions: Conditions) -> dict[str, Any]:
    """Everything that the rows depend on. A folder is resumed only with the same plan."""
    return {
        "tokenizer_fingerprint": model.codes_fingerprint(),
        "preprocessing": established(model.config.preprocessing_config),
        "source": images.description,
        "source_fingerprint": images.fingerprint,
        "names": sha256(images.names()) if hasattr(images.reader, "file_marks") else None,
        "class_names": images.class_names,
        "flip": config.flip,
        "ten_crop": config.ten_crop,
        "images_per_shard": config.images_per_shard,
        "mixed_precision": config.mixed_precision,
        "condition": conditions.plan(),
        "weights": weights_dtype(model),  # a cast tokenizer has the fingerprint of the one that it was cast from
    }


def weights_dtype(model: VQModel) -> str:
    """Such as "float32": codes of a cast tokenizer are others."""
    return str(model.dtype).removeprefix("torch.")


def _say(accelerator: Accelerator, message: str) -> None:
    if accelerator.is_main_process:
        tqdm.write(message)

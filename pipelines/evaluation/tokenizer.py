"""`codegrid evaluate reconstruction`: a tokenizer's reconstruction quality, in one JSON."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.duplicates import Overlap
from codegrid.pipelines.data.records import DataConfig, ImageSource
from codegrid.pipelines.evaluation.distances import frechet_distance
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNetName, load_feature_net
from codegrid.pipelines.evaluation.ledger import Ledger
from codegrid.pipelines.evaluation.left_out import check_usable, describe_few, describe_left_out, left_out
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction
from codegrid.pipelines.evaluation.results import circumstances, describe_data, output_folder, save_rows
from codegrid.pipelines.evaluation.run_pictures import (
    Chosen,
    Part,
    announce_pictures,
    choose_pictures,
    describe_overlap,
)
from codegrid.pipelines.system.devices import evaluating, make_accelerator, wait_patiently
from codegrid.pipelines.system.numbers import number
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.feature_nets.weights import WeightsError
from codegrid.tokenizer.images import check_colours
from codegrid.tokenizer.losses.perceptual import LPIPS, PerceptualNet

NAME = "reconstruction"
_REPEATS = 5  # repetitions of a batch, for the throughput


def evaluate_tokenizer(
    tokenizer: str,
    data: DataConfig,
    output_dir: str | None = None,
    feature_net: FeatureNetName | Literal["none"] = "inception",
    feature_weights: str | None = None,
    lpips: PerceptualNet | Literal["none"] = "vgg",
    lpips_weights: str | None = None,
    batch_size: int = 32,
    mixed_precision: Literal["no", "bf16"] = "no",
    cache_dir: str | None = None,
    part: Part = "auto",
    num_workers: int = 0,
) -> Path:
    """Score a tokenizer's reconstructions: PSNR, SSIM, LPIPS, rFID, codes in use, perplexity, bits a pixel, throughput.

    Of the pictures that the tokenizer was trained on, those are scored that the training held out.

    Args:
        tokenizer: folder or Hub name.
        data: the images.
        output_dir: folder for reconstruction.json; by default a folder beside the tokenizer's. The tokenizer's card
            gets the table. Earlier results on other images, or of other weights, are kept apart there.
        feature_net: net of the Frechet distance between originals and reconstructions. With inception it is rFID, else
            it carries the net's name; "none" skips it.
        feature_weights: the net's weights file; by default it is looked for in torch hub's downloads.
        lpips: trunk of LPIPS; "none" skips LPIPS. It is also skipped if the weights are not available.
        lpips_weights: the trunk's weights file; by default it is looked for in torch hub's downloads.
        batch_size: images per batch.
        mixed_precision: precision of the tokenizer's forward pass. Training evaluates in its own, so that scores differ
            slightly if that is bf16.
        cache_dir: cache folder for features, keyed by image content; by default ~/.cache/codegrid/features.
        part: which of the images: what was held out, what was trained on, or all of the split. "auto" is what the
            tokenizer's own run held out if these are its images, else all.
        num_workers: processes that load images; 0 loads in the main process.

    Raises:
        DataError: the images cannot be read as configured, none of them could be used, or nothing is held out.
        LoadingError: the tokenizer or the feature net cannot be loaded.
        OutputError: the output folder's reconstruction.json is something else.
    """
    require(batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    require(num_workers >= 0, f"num_workers is {num_workers}.", "Give at least 0.")
    accelerator = make_accelerator(mixed_precision=mixed_precision)
    folder = output_folder(output_dir, tokenizer)
    Ledger(NAME, {}).check(folder)
    model = load_tokenizer(tokenizer).to(accelerator.device)
    chosen = choose_pictures(data, tokenizer, part)
    cache = _cache(feature_net, feature_weights, cache_dir, model, len(chosen.source), accelerator)
    distances = _lpips(lpips, lpips_weights, model, accelerator)
    overlap = announce_pictures(chosen, model, accelerator)
    sizes = (batch_size, num_workers)
    row, notes, without = _score(model, chosen.source, data.source, accelerator, sizes, distances, cache)
    if accelerator.is_main_process:
        record = {
            **_made_with(tokenizer, model, chosen, data, overlap),
            "left_out": without,
            "notes": [*describe_left_out(without), *describe_overlap(overlap), *notes],
            "feature_net": None if cache is None else cache.net.describe(),
            "lpips_net": lpips if distances else None,
            "batch_size": batch_size,
            **circumstances(accelerator),
        }
        _save(row, record, model, folder, accelerator.device.type)
    wait_patiently(accelerator)
    return folder


def _score(
    model: VQModel,
    source: ImageSource,
    name: str,
    accelerator: Accelerator,
    sizes: tuple[int, int],
    distances: dict[str, LPIPS],
    cache: FeatureCache | None,
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """(scores, sentences of caution, record of what was left out), of all ranks; the distance on the main process.

    `sizes` are batch_size and num_workers.
    """
    (batch_size, num_workers), keys, skipped = sizes, [], {}
    remember = None if cache is None else lambda images, made: keys.append((cache.key(images), cache.key(made)))
    scores = asdict(
        evaluate_reconstruction(
            model,
            source,
            accelerator,
            batch_size,
            distances,
            remember,
            skipped=skipped,
            progress=True,
            num_workers=num_workers,
        )
    )
    without = left_out(dict(gather_object(list(skipped.items()))))
    check_usable(scores["num_images"], len(source), name, without)
    wait_patiently(accelerator)  # now all ranks' features are in the cache
    keys = gather_object(keys)
    row = {**scores, "bits_per_pixel": bits_per_pixel(model), **_throughput(model, source, accelerator, batch_size)}
    return row, _add_distance(row, cache, keys) if cache is not None and accelerator.is_main_process else [], without


def _made_with(
    tokenizer: str, model: VQModel, chosen: Chosen, data: DataConfig, overlap: Overlap | None
) -> dict[str, Any]:
    """The record of the tokenizer and the pictures."""
    pictures = describe_data(chosen.source, data.source, data.split, model)
    return {
        "tokenizer": tokenizer,
        "tokenizer_fingerprint": model.fingerprint(),
        "data": {**pictures, "part": chosen.part, "seen": chosen.seen},
        "duplicates": None if overlap is None else overlap.record(),
    }


def _add_distance(row: dict[str, Any], cache: FeatureCache, keys: list[tuple[str, str]]) -> list[str]:
    """Put the Frechet distance into the row, if there are pictures enough; return sentences of caution."""
    if not keys:
        return []
    if row["num_images"] < 2:
        return ["The Frechet distance is left out: it needs at least two pictures."]
    real, made = (cache.load(list(side))[0] for side in zip(*keys, strict=True))
    name = "r" + cache.net.names[0]
    row[name] = frechet_distance(made, real)
    return describe_few({"pictures": len(real)}, real.shape[1], name)


def _save(row: dict[str, Any], record: dict[str, Any], model: VQModel, folder: Path, device: str) -> None:
    """Write the row and print it."""
    identity = {name: record[name] for name in ("tokenizer_fingerprint", "feature_net", "lpips_net", "precision")}
    data = record["data"]
    ledger = Ledger(NAME, {**identity, "data": data["fingerprint"], "part": data["part"], "device": device})
    save_rows(ledger, [row], record, folder, record["tokenizer"], record["notes"])
    size = model.config.preprocessing_config.size_text
    lines = [f"Scores of {row['num_images']:,} images, {size} pixels, in {record['precision']} on {record['device']}:"]
    lines += [f"{name:28} {number(value, 5)}" for name, value in row.items() if value is not None]
    lines += [*record["notes"], *ledger.said]
    tqdm.write("\n".join([*lines, f"The scores, and with what they were made, are in {folder / f'{NAME}.json'}."]))


def _cache(
    name: FeatureNetName | Literal["none"],
    weights: str | None,
    cache_dir: str | None,
    model: VQModel,
    pictures: int,
    accelerator: Accelerator,
) -> FeatureCache | None:
    """The net of the Frechet distance; None if it is not wanted, or cannot be had of these pictures."""
    if name == "none":
        return None
    check_colours(model.config.backbone_config.in_channels, "The Frechet distance (--feature-net none skips it)")
    if pictures < 2:
        if accelerator.is_main_process:
            tqdm.write(f"The Frechet distance is left out: it needs at least two pictures, and there is {pictures}.")
        return None
    return FeatureCache(load_feature_net(name, weights, accelerator.device), cache_dir)


def bits_per_pixel(model: VQModel) -> float:
    """Bits of an image's codes, log2(codebook_size) each, per pixel (height times width)."""
    config = model.config
    codes = math.prod(config.codes_shape) * math.log2(config.quantizer_config.codebook_size)
    return codes / math.prod(config.preprocessing_config.size)


def _lpips(
    net: PerceptualNet | Literal["none"], weights: str | None, model: VQModel, accelerator: Accelerator
) -> dict[str, LPIPS]:
    if net == "none":
        return {}
    channels = model.config.backbone_config.in_channels
    try:
        if channels not in (1, 3):
            raise WeightsError(f"it is not defined on images of {channels} channels.", "It sees grey and colour.")
        if min(model.config.preprocessing_config.size) < 32:
            size = model.config.preprocessing_config.size_text
            raise WeightsError(f"it is not defined on images of {size} pixels.", "It needs 32 pixels a side.")
        return {"perceptual": LPIPS(net, weights).to(accelerator.device)}
    except WeightsError as error:  # a missing or wrong file that the user named raises other errors
        if accelerator.is_main_process:
            tqdm.write(f"LPIPS is left out (--lpips-weights FILE, --lpips none): {error}")
        return {}


def _throughput(model: VQModel, source: Any, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
    """Images per second of one process for encoding and decoding a full batch: median of a few runs after the first."""
    batch = next(b for b in prepared_batches(model, iter(source), batch_size) if b.records)
    labels = record_labels(batch.records, decoder_classes(model.config, source.class_names, source.description))
    images, copies = batch.images, math.ceil(batch_size / len(batch.images))
    images = images.repeat(copies, 1, 1, 1)[:batch_size].to(accelerator.device)
    labels = None if labels is None else labels.repeat(copies)[:batch_size]
    with evaluating(model), accelerator.autocast():
        codes = model.encode(images)
        encode = _seconds(lambda: model.encode(images))
        decode = _seconds(lambda: model.decode(codes, labels))
    return {"encoded_images_per_second": batch_size / encode, "decoded_images_per_second": batch_size / decode}


def _seconds(run: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        run()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])

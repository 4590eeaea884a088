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

from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_reading
from codegrid.pipelines.evaluation.distances import frechet_distance
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNetName, load_feature_net
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction
from codegrid.pipelines.evaluation.results import circumstances, describe_data, output_folder, save_result
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.feature_nets.weights import WeightsError
from codegrid.tokenizer.images import check_colours
from codegrid.tokenizer.losses.perceptual import LPIPS, PerceptualNet

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
) -> Path:
    """Score a tokenizer's reconstructions: PSNR, SSIM, LPIPS, rFID, codes in use, perplexity, bits a pixel, throughput.

    Args:
        tokenizer: folder or Hub name.
        data: the images.
        output_dir: folder for reconstruction.json; by default a folder beside the tokenizer's. The tokenizer's card
            gets the table.
        feature_net: net of the Frechet distance between originals and reconstructions. With inception it is rFID, else
            it carries the net's name; "none" skips it.
        feature_weights: the net's weights file; by default it is looked for in torch hub's downloads.
        lpips: trunk of LPIPS; "none" skips LPIPS. It is also skipped if the weights are not available.
        lpips_weights: the trunk's weights file; by default it is looked for in torch hub's downloads.
        batch_size: images per batch.
        mixed_precision: precision of the tokenizer's forward pass.
        cache_dir: cache folder for features, keyed by image content; by default ~/.cache/codegrid/features.

    Raises:
        DataError: the images cannot be read as configured, or none of them could be used.
        LoadingError: the tokenizer or the feature net cannot be loaded.
    """
    accelerator = make_accelerator(mixed_precision=mixed_precision)
    model = load_tokenizer(tokenizer).to(accelerator.device)
    cache = None
    if feature_net != "none":
        check_colours(model.config.backbone_config.in_channels, "The Frechet distance (--feature-net none skips it)")
        cache = FeatureCache(load_feature_net(feature_net, feature_weights, accelerator.device), cache_dir)
    distances = _lpips(lpips, lpips_weights, model, accelerator)
    source = open_images(data)
    if accelerator.is_main_process:
        tqdm.write(f"Reconstructing {source.description}.\n{describe_reading(source)}".rstrip("\n"))
    keys: list[tuple[str, str]] = []
    remember = None if cache is None else lambda images, made: keys.append((cache.key(images), cache.key(made)))
    scores = asdict(evaluate_reconstruction(model, source, accelerator, batch_size, distances, remember))
    if not scores["num_images"]:
        raise DataError(f"None of the {len(source)} images of {data.source} could be used.")
    accelerator.wait_for_everyone()  # now all ranks' features are in the cache
    keys = gather_object(keys)
    row = {**scores, "bits_per_pixel": bits_per_pixel(model), **_throughput(model, source, accelerator, batch_size)}
    folder = output_folder(output_dir, tokenizer)
    if accelerator.is_main_process:
        if cache is not None:
            real, made = (cache.load(list(side))[0] for side in zip(*keys, strict=True))
            row["r" + cache.net.names[0]] = frechet_distance(made, real)
        record = {
            "tokenizer": tokenizer,
            "tokenizer_fingerprint": model.fingerprint(),
            "data": describe_data(source, data.source, data.split, model),
            "feature_net": None if cache is None else cache.net.describe(),
            "lpips_net": lpips if distances else None,
            "batch_size": batch_size,
            **circumstances(accelerator),
        }
        path = save_result("reconstruction", [row], record, folder, tokenizer)
        tqdm.write("\n".join(f"{name:28} {value:.6g}" for name, value in row.items() if value is not None))
        tqdm.write(f"The scores, and with what they were made, are in {path}.")
    accelerator.wait_for_everyone()
    return folder


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
            raise WeightsError(f"it is not defined on images of {channels} channels.")
        if min(model.config.preprocessing_config.size) < 32:
            size = model.config.preprocessing_config.size_text
            raise WeightsError(f"it is not defined on images of {size} pixels.")
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

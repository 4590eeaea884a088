"""A tokenizer's reconstruction quality: PSNR, SSIM, LPIPS, and the usage of its codebook."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from codegrid.pipelines.data.batches import (
    Box,
    Picture,
    Pictures,
    picture_reader,
    pixel_batches,
    prepared_batches,
)
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.records import ImageSource, ImageStream
from codegrid.pipelines.system.devices import evaluating
from codegrid.pipelines.system.ranks import counts_of_all_ranks, sum_over_ranks
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.metrics import add_counts, code_counts, psnr, ssim, usage_and_perplexity
from codegrid.tokenizer.moving import to_device

# Side of SSIM's window. SSIM is not defined on a smaller picture.
_SSIM_WINDOW = 11


def all_pixels(
    model: VQModel, source: ImageStream, skipped: dict[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All images as the tokenizer sees them, uint8 [N, H, W, C], and their labels [N], -1 without a label.

    `skipped` gets the names of the others, with the reasons.
    """
    every = list(prepared_batches(model, iter(source), 500))
    if skipped is not None:
        skipped.update({name: why for batch in every for name, why in batch.skipped.items()})
    batches = [batch for batch in every if batch.records]
    channels = model.config.backbone_config.in_channels
    empty = np.empty((0, *model.config.preprocessing_config.size, channels), np.uint8)
    pixels = np.concatenate([empty, *(batch.pixels.numpy() for batch in batches)])
    labels = [record.label for batch in batches for record in batch.records]
    return pixels, np.array(labels, dtype=np.int64)


@dataclass
class ReconstructionScores:
    """Means over the images. PSNR (in dB) and SSIM are over the original pixels, without padding.

    Usage and perplexity of the codes are means over the levels if a position has several codes.
    A mean over nothing is None: without images or, for SSIM, without an image of at least 11 pixels a side.
    """

    num_images: int
    num_skipped: int
    psnr: float | None
    ssim: float | None
    lpips: float | None
    feature_distance: float | None
    code_usage: float
    code_perplexity: float


def evaluate_reconstruction(
    model: VQModel,
    source: ImageStream,
    accelerator: Accelerator,
    batch_size: int,
    distances: Mapping[str, nn.Module] | None = None,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
    num_workers: int = 0,
    skipped: dict[str, str] | None = None,
    progress: bool = False,
    tiles: tuple[int, int | None] | None = None,
) -> ReconstructionScores:
    """Score `model` on all images of `source`. The ranks share the images, and all get the same result.

    Args:
        distances: nets that compare images [B, C, H, W] in [-1, 1] -> [B], from `tokenizer.losses.make_distances`;
            "perceptual" is LPIPS.
        on_batch: called with each of this rank's batches: images and reconstructions, uint8 [B, H, W, C].
        num_workers: processes that load images; 0 loads in the main process.
        skipped: gets the images that this rank left out, by name, with the reasons.
        progress: show a bar on the main process.
        tiles: tile and overlap in pixels, as in `VQModel.encode`; None: whole pictures.

    Raises:
        DataError: the decoder is class-conditional and the data has no labels, or classes that it does not know.
    """
    sums = _Sums(model, distances or {}, accelerator)
    classes = decoder_classes(model.config, source.class_names, source.description)
    mine = _pictures_of_rank(model, source, accelerator, num_workers, progress)
    with evaluating(model):
        for batch in pixel_batches(mine, model, batch_size):
            sums.num_skipped += len(batch.skipped)
            if skipped is not None:
                skipped.update(batch.skipped)
            if not batch.records:
                continue
            images = to_model(to_device(batch.pixels, accelerator.device))
            with accelerator.autocast():
                codes, reconstruction = there_and_back(model, images, record_labels(batch.records, classes), tiles)
            saved = to_uint8(reconstruction)
            if on_batch is not None:
                on_batch(batch.pixels, saved)
            sums.add(images, saved, codes, batch.boxes)
    return sums.scores()


def there_and_back(
    model: VQModel, images: Tensor, labels: Tensor | None, tiles: tuple[int, int | None] | None = None
) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] -> their codes and reconstructions, in tiles if they are given (tile and overlap)."""
    if tiles is None:
        output = model(images, labels)
        return output.codes, output.reconstruction
    codes = model.encode(images, *tiles)
    return codes, model.decode(codes, labels, *tiles)


class _Sums:
    """Sums over this rank's pictures, on the device, so that no batch is waited for; `scores` adds the ranks' up."""

    def __init__(
        self,
        model: VQModel,
        distances: Mapping[str, nn.Module],
        accelerator: Accelerator,
    ) -> None:
        self.accelerator, self.quantizer = accelerator, model.config.quantizer_config
        self.nets = list(distances.items())
        self.num_images = self.num_skipped = 0
        # PSNR, SSIM, images with SSIM, then each net's distance
        device = accelerator.device
        self.sums = torch.zeros(3 + len(self.nets), dtype=torch.float64, device=_sums_device(device))
        self.counts = self._counted(torch.empty(0, dtype=torch.int64, device=device))

    def add(self, images: Tensor, saved: Tensor, codes: Tensor, boxes: list[Box]) -> None:
        """Add a batch: images [B, C, H, W] in [-1, 1], reconstructions as in a saved file, uint8 [B, H, W, C]."""
        self.num_images += len(images)
        self.counts = add_counts(self.counts, self._counted(codes))
        reconstruction = to_model(saved).to(self.accelerator.device)
        self.sums[:3] += pixel_scores(images, reconstruction, boxes)
        for place, (_, net) in enumerate(self.nets, start=3):
            self.sums[place] += _total(net(images, reconstruction))

    def scores(self) -> ReconstructionScores:
        """The scores of all ranks' pictures."""
        tried = torch.tensor([self.num_images, self.num_skipped], dtype=torch.float64)
        sums = sum_over_ranks(torch.cat([tried, self.sums.cpu()]), self.accelerator)
        counts = counts_of_all_ranks(self.counts, self.accelerator)
        usage, perplexity = usage_and_perplexity(counts, self.quantizer.depth, self.quantizer.codebook_size)
        number, skipped, psnr_sum, ssim_sum, number_ssim, *distance_sums = sums.tolist()
        means = {name: total / number for (name, _), total in zip(self.nets, distance_sums, strict=True) if number}
        return ReconstructionScores(
            int(number),
            int(skipped),
            psnr_sum / number if number else None,
            ssim_sum / number_ssim if number_ssim else None,
            means.get("perceptual"),
            means.get("feature_distance"),
            usage,
            perplexity,
        )

    def _counted(self, codes: Tensor) -> Tensor:
        return code_counts(codes, self.quantizer.codebook_size, self.quantizer.depth)


def _pictures_of_rank(
    model: VQModel, source: ImageStream, accelerator: Accelerator, num_workers: int, progress: bool
) -> Iterable[Picture]:
    """This rank's pictures, with a bar on the main process if `progress`."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    read, total = picture_reader(model), None
    if isinstance(source, ImageSource):
        mine = Pictures(source, read).in_order(range(rank, len(source), ranks), num_workers)
        total = len(range(rank, len(source), ranks))
    else:
        mine = map(read, itertools.islice(source, rank, None, ranks))
    hidden = not (progress and accelerator.is_main_process)
    return tqdm(mine, total=total, unit="image", disable=hidden, dynamic_ncols=True)


def pixel_scores(images: Tensor, reconstruction: Tensor, boxes: list[Box]) -> Tensor:
    """Sums over a batch, each image cropped to its box: PSNR, SSIM, images with SSIM -> [3] float64.

    They are on the images' device, or on the CPU if that is no NVIDIA GPU.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=_sums_device(images.device))
    for box in sorted(set(boxes)):
        left, top, right, bottom = box
        chosen = [index for index, other in enumerate(boxes) if other == box]
        cut = [batch[:, :, top:bottom, left:right] for batch in (images, reconstruction)]
        if len(chosen) < len(boxes):
            rows = to_device(torch.tensor(chosen), images.device)
            cut = [batch[rows] for batch in cut]
        sums[0] += _total(psnr(*cut))
        if min(bottom - top, right - left) >= _SSIM_WINDOW:
            sums[1] += _total(ssim(*cut))
            sums[2] += len(chosen)
    return sums


def _sums_device(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")  # Apple's GPUs have no float64


def _total(values: Tensor) -> Tensor:
    """The sum of values [B] in float64, on `_sums_device`."""
    return (values if values.device.type == "cuda" else values.cpu()).double().sum()

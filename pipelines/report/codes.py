"""Views of a tokenizer's codes: maps of example images, and an atlas of the codes that they use most."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.records import ImageStream
from codegrid.pipelines.pictures.grids import differences, labelled_rows
from codegrid.pipelines.system.devices import evaluating
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_pil
from codegrid.tokenizer.metrics import code_counts, counts_of_levels

_BATCH = 32
_CONTEXT, _FRAME = 96, "#dc2626"  # longest side of a picture in the atlas, and the colour of the frame in it
_GOLDEN = 0.618033988749895  # steps of the golden ratio spread any number of hues evenly


@dataclass
class CodedImages:
    """Example images [N, C, H, W] in [-1, 1], their codes [N, h, w, depth] and reconstructions, on the CPU."""

    images: Tensor
    codes: Tensor
    reconstructions: Tensor


def coded_images(model: VQModel, source: ImageStream, most: int) -> CodedImages | None:
    """The first `most` usable images of a source; None if there are none."""
    classes = decoder_classes(model.config, source.class_names, source.description)
    images, codes, made = [], [], []
    with evaluating(model):
        for batch in prepared_batches(model, iter(source), _BATCH):
            if not batch.records:
                continue
            images.append(batch.images)
            codes.append(model.encode(batch.images.to(model.device)))
            made.append(model.decode(codes[-1], record_labels(batch.records, classes)).clamp(-1, 1).cpu())
            if sum(map(len, images)) >= most:
                break
    if not images:
        return None
    depth = model.config.quantizer_config.depth
    grids = torch.cat(codes).cpu()
    grids = grids if depth > 1 else grids.unsqueeze(-1)
    return CodedImages(torch.cat(images)[:most], grids[:most], torch.cat(made)[:most])


def code_sheet(coded: CodedImages, number: int = 10) -> Image.Image:
    """Images, maps of their codes (one per level), reconstructions and differences."""
    images, made = coded.images[:number], coded.reconstructions[:number]
    height, width = images.shape[-2:]
    rows = [("image", to_pil(images))]
    depth = coded.codes.shape[-1]
    for level in range(depth):
        maps = [Image.fromarray(colours(grid[..., level].numpy())) for grid in coded.codes[:number]]
        name = "codes" if depth == 1 else f"codes, level {level + 1}"
        rows.append((name, [picture.resize((width, height), Image.Resampling.NEAREST) for picture in maps]))
    rows += [("reconstruction", to_pil(made)), ("difference, doubled", to_pil(differences(images, made)))]
    return labelled_rows(rows, least_side=88)


def colours(codes: np.ndarray) -> np.ndarray:
    """One colour per code: integers [h, w] -> uint8 [h, w, 3]. Equal codes have the same colour in every map."""
    found, places = np.unique(codes, return_inverse=True)
    palette = [
        colorsys.hsv_to_rgb(code * _GOLDEN % 1, 0.45 + 0.5 * (code * _GOLDEN**2 % 1), 0.6 + 0.4 * (code * 0.37 % 1))
        for code in found.tolist()
    ]
    return (255 * np.array(palette)).round().astype(np.uint8)[places.reshape(codes.shape)]


def usage(coded: CodedImages, codebook_size: int) -> Tensor:
    """Shares of the codes, most used first, as a mean over the levels: float64 [M], M >= number of occurring codes."""
    depth = coded.codes.shape[-1]
    levels = counts_of_levels(code_counts(coded.codes, codebook_size, depth), codebook_size, depth)
    shares = [(level.double() / level.sum()).sort(descending=True).values for level in levels]
    return pad_sequence(shares, batch_first=True).mean(0)


@dataclass
class AtlasEntry:
    """A code, its share of the positions, the mean of its image patches, and a place where it is used.

    `context` is a reconstruction with a frame around a position that has this code: of all positions the one whose
    patch is nearest to the mean.
    """

    code: int
    share: float
    mean: Image.Image
    context: Image.Image


def codebook_atlas(coded: CodedImages, most: int) -> list[AtlasEntry]:
    """The `most` most used codes of the first level, most used first."""
    grids = coded.codes[..., 0]  # [N, h, w]
    _, height, width = grids.shape
    patch = coded.images.shape[-1] // width
    codes, counts = grids.unique(return_counts=True)  # codes ascend, so the lower code comes first on equal counts
    order = counts.argsort(descending=True, stable=True)[:most]
    patches = coded.images.unfold(2, patch, patch).unfold(3, patch, patch)  # [N, C, h, w, p, p]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, coded.images.shape[1], patch, patch)
    entries = []
    for code, count in zip(codes[order].tolist(), counts[order].tolist(), strict=True):
        places = (grids == code).flatten().nonzero().flatten()  # of N h w
        mean = patches[places].mean(0)
        nearest = places[(patches[places] - mean).square().flatten(1).sum(1).argmin()].item()
        image, row, column = nearest // (height * width), nearest // width % height, nearest % width
        context = _framed(to_pil(coded.reconstructions[image : image + 1])[0], row * patch, column * patch, patch)
        entries.append(AtlasEntry(code, count / grids.numel(), to_pil(mean[None])[0], context))
    return entries


def _framed(image: Image.Image, top: int, left: int, patch: int) -> Image.Image:
    """The image, at a side that fits into a cell of the atlas, with a frame around a patch."""
    scale = _CONTEXT / max(image.size)
    size = tuple(max(1, round(scale * side)) for side in image.size)
    shown = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    box = [max(0, scale * side - 1) for side in (left, top)]
    box += [min(most - 1, scale * (side + patch)) for side, most in zip((left, top), size, strict=True)]
    ImageDraw.Draw(shown).rectangle(box, outline=_FRAME)
    return shown


def enlarged(image: Image.Image, least_side: int = 44) -> Image.Image:
    """A small picture, enlarged by an integer factor."""
    scale = max(1, math.ceil(least_side / image.width))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)

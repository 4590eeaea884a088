"""Writes images beside their reconstructions, with scores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_channels
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction
from codegrid.pipelines.pictures.grids import labelled_rows
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.pipelines.system.files import write_atomically, write_json
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import for_people, to_pil


def reconstruct(
    tokenizer: str, data: DataConfig, output_dir: str, num_pictures: int = 32, batch_size: int = 32
) -> Path:
    """Write `reconstructions.png` (originals above reconstructions) and `scores.json` (over all images).

    Args:
        tokenizer: folder or Hub name.
        data: the images.
        output_dir: folder for the two files.
        num_pictures: images in the picture.
        batch_size: images per batch.

    Raises:
        DataError: the images cannot be read as configured, or none of them could be used; or the tokenizer's decoder is
            class-conditional and the images have no labels, or classes that it does not know.
        LoadingError: the tokenizer cannot be loaded.
    """
    accelerator = make_accelerator()
    model = load_tokenizer(tokenizer).to(accelerator.device)
    source = open_images(data)
    if channels := describe_channels(model.config.backbone_config.in_channels).strip():
        print(channels)
    batch = next((b for b in prepared_batches(model, iter(source), num_pictures) if b.records), None)
    if batch is None:
        raise DataError(f"None of the {len(source)} images of {data.source} could be used.")
    folder = Path(output_dir)
    classes = decoder_classes(model.config, source.class_names, source.description)
    picture = reconstruction_sheet(model, batch.images, record_labels(batch.records, classes))
    write_atomically(folder / "reconstructions.png", lambda aside: picture.save(aside, format="PNG"))
    scores = asdict(evaluate_reconstruction(model, source, accelerator, batch_size))
    write_json(folder / "scores.json", scores)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)
    print(f"{shown}\nThe picture and the scores are in {folder}.")
    return folder


def reconstruction_sheet(model: VQModel, images: Tensor, labels: Tensor | None = None, columns: int = 8) -> Image.Image:
    """Images [N, C, H, W] in [-1, 1] in rows of `columns`, each row above its reconstructions; see `for_people`.

    `labels` are int64 [N], classes of the tokenizer, if its decoder is class-conditional.
    """
    with evaluating(model):
        reconstruction = model.decode(model.encode(images.to(model.device)), labels).clamp(-1, 1).cpu()
    rows = []
    for first in range(0, len(images), columns):
        for name, batch in (("image", images), ("reconstruction", reconstruction)):
            rows.append((name, to_pil(for_people(batch)[first : first + columns])))
    return labelled_rows(rows)

"""Writes images beside their reconstructions, with scores."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.classes import decoder_classes, record_labels
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.evaluation.left_out import describe_left_out, left_out
from codegrid.pipelines.evaluation.reconstruction import ReconstructionScores, evaluate_reconstruction
from codegrid.pipelines.evaluation.results import describe_data
from codegrid.pipelines.evaluation.run_pictures import Part, announce_pictures, choose_pictures
from codegrid.pipelines.pictures.grids import labelled_rows
from codegrid.pipelines.system.devices import evaluating, make_accelerator, wait_patiently
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json
from codegrid.pipelines.system.numbers import number
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import for_people, to_pil
from codegrid.tokenizer.tiling import in_codes

_PICTURE_NAME, _SCORES_NAME = "reconstructions.png", "scores.json"


def reconstruct(
    tokenizer: str,
    data: DataConfig,
    output_dir: str,
    num_pictures: int = 32,
    batch_size: int = 32,
    part: Part = "all",
    tile: int | None = None,
    overlap: int | None = None,
) -> Path:
    """Write `reconstructions.png` (originals above reconstructions) and `scores.json` (over all images).

    Scores of pictures that the tokenizer was trained on are better than those of others: it is said which they are.

    Args:
        tokenizer: folder or Hub name.
        data: the images.
        output_dir: folder for the two files. Those of an earlier call are replaced; other files of these names are not.
        num_pictures: images in the picture.
        batch_size: images per batch.
        part: which of the images: what was held out, what was trained on, or all of the split. "auto" is what the
            tokenizer's own run held out if these are its images, else all.
        tile: side of the tiles in pixels in which pictures go through the tokenizer, a multiple of its downsampling
            factor: less memory for large pictures. None: whole.
        overlap: pixels that neighbouring tiles have in common; None is a quarter of the tile, and four codes if half
            of the tile has as many.

    Raises:
        DataError: the images cannot be read as configured, or none of them could be used; or the tokenizer's decoder is
            class-conditional and the images have no labels, or classes that it does not know.
        LoadingError: the tokenizer cannot be loaded.
        OutputError: the folder has files of these names that are not of this command.
    """
    require(num_pictures >= 1, f"num_pictures is {num_pictures}.", "Give at least 1.")
    require(batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    accelerator = make_accelerator()
    folder = Path(output_dir)
    replaced = _check_place(folder)
    model = load_tokenizer(tokenizer).to(accelerator.device)
    tiles = _checked_tiles(model, tile, overlap)
    chosen = choose_pictures(data, tokenizer, part)
    source = chosen.source
    duplicates = announce_pictures(chosen, model, accelerator)
    picture = _sheet(model, source, data.source, num_pictures, tiles)
    skipped: dict[str, str] = {}
    scores = evaluate_reconstruction(
        model, source, accelerator, batch_size, skipped=skipped, progress=True, tiles=tiles
    )
    without = left_out(dict(gather_object(list(skipped.items()))))
    if accelerator.is_main_process:
        made_from = {
            "tokenizer": tokenizer,
            "tokenizer_fingerprint": model.fingerprint(),
            "data": {**describe_data(source, data.source, data.split, model), "part": chosen.part, "seen": chosen.seen},
            "tiles": tiles,
            "duplicates": None if duplicates is None else duplicates.record(),
            "precision": accelerator.policy.precision,
            "device": accelerator.device.type,
        }
        write_atomically(folder / _PICTURE_NAME, lambda aside: picture.save(aside, format="PNG"))
        write_json(folder / _SCORES_NAME, {**asdict(scores), "left_out": without, "made_from": made_from})
        values = ", ".join(f"{name} {number(value)}" for name, value in asdict(scores).items() if value is not None)
        size, policy = model.config.preprocessing_config.size_text, accelerator.policy
        lines = [f"{values} ({size} pixels, {policy}).", *describe_left_out(without), *replaced]
        tqdm.write("\n".join([*lines, f"The picture and the scores are in {folder}."]))
    wait_patiently(accelerator)
    return folder


def _checked_tiles(model: VQModel, tile: int | None, overlap: int | None) -> tuple[int, int | None] | None:
    if tile is None:
        require(overlap is None, f"overlap is {overlap}, and no tile is given.", "Give --tile, too.")
        return None
    in_codes(model.config.pixels_per_position, tile, overlap)
    return tile, overlap


def _sheet(
    model: VQModel, source: ImageSource, name: str, num_pictures: int, tiles: tuple[int, int | None] | None
) -> Image.Image:
    """The sheet of the first pictures that can be used.

    Raises:
        DataError: none can.
    """
    batch = next((b for b in prepared_batches(model, iter(source), num_pictures) if b.records), None)
    if batch is None:
        raise DataError(
            f"None of the {len(source):,} images of {shown(name)} could be used.",
            "`codegrid look` shows what is read, and why pictures are left out.",
        )
    classes = decoder_classes(model.config, source.class_names, source.description)
    return reconstruction_sheet(model, batch.images, record_labels(batch.records, classes), tiles=tiles)


def _check_place(folder: Path) -> list[str]:
    """Refuse a folder whose files of our names are not ours; a sentence if they are, and will be replaced."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file.", "Choose another --output-dir.")
    scores, picture = folder / _SCORES_NAME, folder / _PICTURE_NAME
    try:
        values = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else None
        known = {entry.name for entry in fields(ReconstructionScores)}
        own = isinstance(values, dict) and known <= set(values)
    except (OSError, ValueError):
        values, own = "damaged", False
    if values is not None and not own:
        raise OutputError(f"{scores} is not of this command.", "Choose another --output-dir, or move the file.")
    if picture.exists() and not own:
        raise OutputError(
            f"{folder} holds a {_PICTURE_NAME} without a {_SCORES_NAME}.", "Choose another --output-dir, or move it."
        )
    if not own or not isinstance(values, dict):
        return []
    before = values.get("made_from")
    what = f", of {before['tokenizer']} on {shown(before['data']['source'])}," if before else ""
    return [f"The picture and the scores that were there{what} are replaced."]


def reconstruction_sheet(
    model: VQModel,
    images: Tensor,
    labels: Tensor | None = None,
    columns: int = 8,
    tiles: tuple[int, int | None] | None = None,
) -> Image.Image:
    """Images [N, C, H, W] in [-1, 1] in rows of `columns`, each row above its reconstructions; see `for_people`.

    `labels` are int64 [N], classes of the tokenizer, if its decoder is class-conditional.
    """
    with evaluating(model):
        given = tiles or (None, None)
        codes = model.encode(images.to(model.device), *given)
        reconstruction = model.decode(codes, labels, *given).clamp(-1, 1).cpu()
    rows = []
    for first in range(0, len(images), columns):
        for name, batch in (("image", images), ("reconstruction", reconstruction)):
            rows.append((name, to_pil(for_people(batch)[first : first + columns])))
    return labelled_rows(rows)

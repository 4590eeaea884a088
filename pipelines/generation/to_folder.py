"""Generates many images into a folder: on all ranks, with atomic writes, and resumable after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from tqdm import tqdm

from codegrid.errors import require
from codegrid.names import for_file, shown
from codegrid.pipelines.artifacts.loading import is_without_pictures, load_prior_and_sequence
from codegrid.pipelines.generation.asked import DEFAULT, Asked, asked_images, labels_in_turn
from codegrid.pipelines.generation.codes_only import CODES_NAME, as_imported
from codegrid.pipelines.generation.larger import grid_of_size
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_dataset import (
    OutputFormat,
    files_by_class,
    first_pictures,
    write_card,
    write_shards,
)
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.devices import make_accelerator, patient_barrier
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.prior import SamplingConfig, sample_codes, to_codes
from codegrid.prior.conditions import classes_of
from codegrid.prior.distribution import GuidanceSchedule
from codegrid.prior.linear_maps import WeightFormat
from codegrid.prior.sampling import image_generator
from codegrid.prior.static_decoding import Decoding, check_decoding
from codegrid.tokenizer.images import check_colours

SETTINGS_NAME = "generation.json"
_MOST_IN_PICTURE = 100
_CODES_AT_ONCE = 64  # rows
_MOST_BYTES = 180  # of a class's name in a file's


def generate_images(
    pipeline: str,
    output_dir: str,
    class_labels: tuple[str, ...] = (),
    num_images: int | None = None,
    condition: str | None = None,
    prompt: tuple[str, ...] = (),
    keep_condition: bool = False,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    guidance_power: float | None = None,
    guidance_range: tuple[float, float] | None = None,
    part_guidance: tuple[float, ...] | None = None,
    batch_size: int | None = None,
    weights: WeightFormat = "exact",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    decoding: Decoding = "eager",
    output_format: OutputFormat = "pictures",
) -> Path:
    """Sample images. Writes one PNG per image, samples.png with all of them by class, and generation.json.

    Args:
        pipeline: folder or Hub name ("fashion-mnist" comes with the package), or a prior of imported codes: codes.npy.
        output_dir: folder for the images. The same command again resumes, and adds what is more in num_images.
        class_labels: classes, by name or number; the images take them in turn. None takes all classes.
        num_images: total number of images; None is 16, or one for each picture of condition or each prompt.
        condition: a folder of pictures to follow, of a prior that knows pictures, in turn.
        prompt: texts to follow, of a prior that knows texts, in turn.
        keep_condition: of pictures made small or grey, let the images keep exactly what these tell.
        height: in pixels, a multiple of a code's. More than the trained height, which None is, is drawn by overlapping
            windows.
        width: as height.
        seed: image i depends on seed and i alone, not on the number of processes nor, on a CPU, on the batch size
            (except for rounding of pixels). On an accelerator, also fix batch_size to reproduce the same images.
        guidance_scale: scale s of classifier-free guidance, u + s (c - u): logits with (c) and without (u) class.
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: sample from the k likeliest codes only; 0 for all.
        top_p: sample from the likeliest codes that together reach this probability; 1 for all.
        min_p: sample from codes at least this share as likely as the likeliest; 0 for all.
        guidance_schedule: how the scale grows over the positions, from 1 to guidance_scale.
        guidance_power: exponent of the schedule "power"; a higher one starts guidance later.
        guidance_range: the part of the positions with guidance, as fractions.
        part_guidance: a scale for each part of what the prior follows (class and picture), instead of guidance_scale.
        batch_size: images per batch, which is written before the next is sampled. None is 64, on a CPU what fits.
        weights: the prior's exact weights, or rounded to 16 or 8 bits on a CPU: faster, but other images.
        dtype: compute in this type, tokenizer and prior: half the memory, but other images. None is that of the files.
        decoding: "static" decodes in fixed shapes; "graph" also records CUDA graphs, which no GPU has run yet.
        output_format: "imagefolder" writes data/CLASS/NUMBER.png, "parquet" data/*.parquet with an image's class, text
            and condition: a data set for `load_dataset`, with a card that says what drew it.

    Raises:
        LoadingError, OutputError: the pipeline cannot be loaded; the folder holds something else.
        CodegridError: a class is unknown, or a number is out of range.
    """
    _check_counts(num_images=num_images, batch_size=batch_size)
    chosen = _given(guidance_scale=guidance_scale, guidance_schedule=guidance_schedule, guidance_power=guidance_power)
    chosen |= _given(guidance_range=guidance_range, part_guidance=part_guidance, temperature=temperature)
    chosen |= _given(top_k=top_k, top_p=top_p, min_p=min_p)
    accelerator, given = _device_for(decoding), {"weights": weights, "decoding": decoding}
    if is_without_pictures(pipeline):
        others = height or width or condition or prompt or keep_condition or output_format != "pictures"
        require(not others, "Codes have no size and no pictures, and follow classes.", "Leave it out.")
        return _generate_codes(pipeline, Path(output_dir), class_labels, num_images, seed, chosen, batch_size, given)
    pipe = ImageGenerationPipeline.from_pretrained(pipeline, dtype=dtype).to(accelerator.device)
    check_colours(pipe.tokenizer.config.backbone_config.in_channels, "`codegrid generate`")
    pipe.sampling = replace(pipe.sampling, **chosen)
    grid = grid_of_size(pipe.tokenizer.config, height, width)
    asked = asked_images(pipe, class_labels, condition, prompt, num_images, grid, keep_condition)
    batch_size = batch_size or broadcast_object_list([pipe.default_batch_size(grid_shape=grid)])[0]  # of all ranks
    settings = {"pipeline": pipeline, "seed": seed, "weights": weights, "sampling": pipe.sampling.to_dict()}
    settings |= _given(dtype=dtype, height=height, width=width, keep_condition=keep_condition or None)
    settings |= {} if output_format == "pictures" else {"output_format": output_format}
    return _generate(pipe, accelerator, Path(output_dir), settings, batch_size, given, asked)


def _generate_codes(
    prior: str,
    folder: Path,
    class_labels: tuple[str, ...],
    num_images: int | None,
    seed: int,
    sampling: dict[str, Any],
    batch_size: int | None,
    given: dict[str, Any],
) -> Path:
    """Rows of codes [num_images, ...] instead of images, by a prior of `codegrid import-codes`; on one process."""
    accelerator = make_accelerator()
    require(accelerator.num_processes == 1, "Codes are drawn by one process.", "Start the command without a launcher.")
    model, sequence = load_prior_and_sequence(prior)
    num_images, batch_size = num_images or DEFAULT, batch_size or _CODES_AT_ONCE
    labels = labels_in_turn(sequence, class_labels, num_images)
    settings = {"prior_fingerprint": weights_fingerprint(model), "prior": prior, "labels": labels, "seed": seed}
    settings |= {"num_images": num_images, "sampling": SamplingConfig(**sampling).to_dict()}
    settings |= {"weights": given["weights"], **_of_the_device(accelerator, batch_size, given["decoding"])}
    if told := claim_images(folder, settings):
        tqdm.write(told)
    path, aside = folder / CODES_NAME, folder / f".{CODES_NAME}"
    if _rows(path) != num_images:
        if _rows(aside) != num_images:
            shape = (num_images, *(sequence.axes or {}).values())
            write_atomically(aside, lambda new: np.lib.format.open_memmap(new, "w+", np.int64, shape).fill(-1))
        array = np.lib.format.open_memmap(aside, "r+")
        drawn = array.reshape(num_images, -1).min(1) >= 0  # before a stop
        start = int(np.append(drawn, False).argmin()) // batch_size * batch_size
        options = {**sampling, **given, "batch_size": batch_size}
        model.to(accelerator.device)
        with resumable():
            for first in tqdm(range(start, num_images, batch_size), unit="batch", dynamic_ncols=True):
                part = slice(first, first + batch_size)
                generators = [image_generator(seed, row) for row in range(num_images)[part]]
                batch = sample_codes(model, sequence, labels and labels[part], generators=generators, **options)
                array[part] = as_imported(to_codes(batch, sequence).cpu().numpy(), sequence)
                array.flush()
        os.replace(aside, path)
    tqdm.write(f"{num_images} rows of codes are in {path}.")
    return folder


def _rows(path: Path) -> int:
    return len(np.load(path, mmap_mode="r", allow_pickle=False)) if path.is_file() else 0


def _generate(
    pipe: ImageGenerationPipeline,
    accelerator: Accelerator,
    folder: Path,
    settings: dict[str, Any],
    batch_size: int,
    given: dict[str, Any],
    asked: Asked,
) -> Path:
    """Claim the folder, make what it lacks, and write the sheet of all. `settings` are completed by what is drawn."""
    settings = {**_fingerprints(pipe), **settings, **_of_the_device(accelerator, batch_size, given["decoding"])}
    settings |= {"labels": asked.labels, "num_images": asked.number, **asked.record()}
    everyone, num_images, labels = patient_barrier(accelerator), settings["num_images"], settings["labels"]
    output_format, classes = settings.get("output_format", "pictures"), classes_of(pipe.sequence.conditioning)
    in_rows = output_format == "parquet"
    names = files_by_class(asked, classes) if output_format == "imagefolder" else []
    if accelerator.is_main_process and (told := claim_images(folder, settings)):
        tqdm.write(told)
    everyone()
    if output_format == "pictures":
        names = _file_names(folder, asked.captions, num_images)
    everyone()  # no rank writes until all have looked for the files of an older version
    given = {**given, "batch_size": batch_size, **{name: settings.get(name) for name in ("height", "width")}}
    given |= {"keep_condition": "keep_condition" in settings, "progress": accelerator.is_main_process}
    seed, rank = settings["seed"], slice(accelerator.process_index, None, accelerator.num_processes)

    def draw(images: Sequence[int]) -> Iterator[Image.Image]:
        made = pipe.stream(**asked.of(images), generator=[image_generator(seed, index) for index in images], **given)
        return (image for part in made for image in part.images or ())

    with resumable():
        if in_rows:
            write_shards(folder, asked, classes, seed, draw, rank)
        else:
            _write_missing([folder / name for name in names], everyone, batch_size, rank, draw)
    everyone()
    if accelerator.is_main_process:
        if in_rows:
            shown_first = first_pictures(folder, _MOST_IN_PICTURE)
        else:
            shown_first = [Image.open(folder / name) for name in names[:_MOST_IN_PICTURE]]
        sheet = class_sheet(shown_first, asked.captions, labels)
        write_atomically(folder / "samples.png", lambda aside: sheet.save(aside, format="PNG"))
        if output_format != "pictures":
            write_card(folder, output_format, settings, classes if labels else ())
        tqdm.write(f"{num_images} images and samples.png are in {folder}.")
    return folder


def _write_missing(
    paths: list[Path],
    everyone: Callable[[], None],
    batch_size: int,
    rank: slice,
    draw: Callable[[Sequence[int]], Iterator[Image.Image]],
) -> None:
    """Generate this rank's share of the missing images. Each batch is written before the next is sampled."""
    # Decode whole batches, as an uninterrupted run does: rounding depends on the other images of the batch.
    batches = [range(first, min(first + batch_size, len(paths))) for first in range(0, len(paths), batch_size)]
    unfinished = [batch for batch in batches if not all(paths[index].is_file() for index in batch)]
    everyone()  # no rank writes until all have listed the files: they must split the same list
    mine = [index for batch in unfinished[rank] for index in batch]
    if not mine:
        return
    for index, image in zip(mine, draw(mine), strict=True):
        if not paths[index].is_file():
            paths[index].parent.mkdir(parents=True, exist_ok=True)
            write_atomically(paths[index], lambda aside, image=image: image.save(aside, format="PNG"))


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        require(value is None or value >= 1, f"{name} is {value}.", "Give at least 1.")


def _device_for(decoding: Decoding) -> Accelerator:
    accelerator = make_accelerator()
    check_decoding(decoding, accelerator.device)
    return accelerator


def _of_the_device(accelerator: Accelerator, batch_size: int, decoding: Decoding) -> dict[str, Any]:
    """What images depend on beside the settings: on an accelerator, how it computes and how many at once."""
    if accelerator.device.type == "cpu":
        return {}
    return {
        "batch_size": batch_size,
        "policy": asdict(accelerator.policy),
        **_given(decoding=None if decoding == "eager" else decoding),
    }


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _fingerprints(pipe: ImageGenerationPipeline) -> dict[str, str]:
    return {
        "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
        "prior_fingerprint": weights_fingerprint(pipe.prior),
    }


def weights_fingerprint(model: torch.nn.Module) -> str:
    """sha256 of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _file_name(index: int, class_name: str | None) -> str:
    """Letters, marks and numbers of any script stay; the whole name has at most 200 bytes.

    The index makes it unique, also where a disk folds cases, and no system reserves such a name.
    """
    name = for_file(class_name or "", _MOST_BYTES)
    return f"{index:06d}{'-' if name else ''}{name}.png"


def _file_names(folder: Path, captions: list[str] | None, number: int) -> list[str]:
    """The files' names. Pictures that version 0.1 wrote keep theirs, which had ASCII letters alone."""
    names = []
    for index in range(number):
        caption = None if captions is None else captions[index]
        before = "" if caption is None else "-" + re.sub(r"[^A-Za-z0-9]+", "_", caption).strip("_")[:40]
        older = f"{index:06d}{before}.png"
        names.append(older if (folder / older).is_file() else _file_name(index, caption))
    return names


def claim_images(folder: Path, settings: dict[str, Any]) -> str:
    """Claim the folder for images of these settings, or check that it has them already, or fewer of the same.

    Returns:
        a sentence for the user where a claim without images is replaced, or images are added to others; else "".

    Raises:
        OutputError: the folder holds something else.
    """
    path, where = folder / SETTINGS_NAME, shown(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{where} is a file.", "Choose another --output-dir.")
    visible = [file.name for file in folder.iterdir() if not file.name.startswith(".")] if folder.exists() else []
    if not path.is_file():
        if visible:
            raise OutputError(
                f"{where} is not empty and holds no generated images, but {what_it_holds(folder)}.",
                "Choose another --output-dir.",
            )
        write_json(path, settings)
        return ""
    before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
    if before == now:
        return ""
    if visible == [SETTINGS_NAME]:
        write_json(path, settings)
        return f"{where} was claimed by a command that made no image: this one takes its place."
    if not _are_first_of(before, now):
        different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise OutputError(
            f"{where} holds images of other settings (different: {', '.join(different)}; see {shown(path)}).",
            "Choose another --output-dir, or ask for as many or more of the same.",
        )
    write_json(path, settings)
    return f"{where} has {before['num_images']:,} of these images already: the others are added."


def _are_first_of(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether images of the settings `before` are the first ones of those of `now`."""
    number = before.get("num_images", 0)
    first = {**now, "num_images": number, "labels": now.get("labels") and now["labels"][:number]}
    return number <= now.get("num_images", 0) and before == first

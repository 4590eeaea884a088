"""`codegrid edit`: a picture and a mask (or a share of its codes) -> several results in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.names import shown
from codegrid.pipelines.generation.masks import read_masks
from codegrid.pipelines.generation.outpainting import SIDES
from codegrid.pipelines.generation.output import ImagePipelineOutput
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import SETTINGS_NAME, claim_images, weights_fingerprint
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import OutputError, sha256, write_atomically
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.tokenizer.images import check_colours, open_picture

_CODES = "codes.safetensors"


def edit_images(
    pipeline: str,
    image: str,
    output_dir: str,
    mask: str | None = None,
    keep: float | None = None,
    strength: float | None = None,
    outpaint: tuple[str, ...] = (),
    size: tuple[int, int] | None = None,
    whole: bool = False,
    class_label: str | None = None,
    condition: str | None = None,
    prompt: str | None = None,
    num_images: int = 4,
    seed: int = 0,
    composite: bool = True,
    guidance_scale: float | None = None,
    part_guidance: tuple[float, ...] | None = None,
    temperature: float | None = None,
    order: Literal["raster", "random", "halton"] | None = None,
    num_steps: int | None = None,
) -> Path:
    """Edit a picture by its codes: one of mask, keep, strength, outpaint and size says what is drawn.

    Writes one PNG a result, their codes and generation.json. A result of this command that is edited again starts from
    its codes, not from its pixels.

    Args:
        pipeline: folder or Hub name of a pipeline; its prior was trained with --order annealed or random, or is masked.
            One of raster order goes on at the bottom and at the right (outpaint).
        image: the picture; or a result of this command.
        output_dir: folder for the results.
        mask: a picture of the same size; what is white is drawn again, and nothing else changes.
        keep: share of the codes that are kept, in places of each result's own (variations).
        strength: share of the codes that are drawn again as those of class_label (or condition or prompt).
        outpaint: sides at which the picture is gone on with: top, bottom, left or right, each by half a picture, or by
            so many pixels, such as right=32.
        size: height and width of the results instead, with the picture in the middle.
        whole: keep the picture's own size, the trained one or larger; otherwise it is cut and scaled as in training.
        class_label: class of the results, by name or number; None is the null class.
        condition: a picture that the results follow, of a prior that knows pictures; of a larger result, of all of it.
        prompt: a text that they follow, of a prior that knows texts. Without any of the three there is no guidance.
        num_images: number of results.
        seed: result i depends on seed and i alone.
        composite: keep the pixels outside of the mask; otherwise they are the tokenizer's reconstruction.
        guidance_scale: scale of classifier-free guidance; needs something to follow. None is the pipeline's.
        part_guidance: a scale for each part of what the prior follows (class and picture), instead of guidance_scale.
        temperature: divides the logits; 0 takes the likeliest code.
        order: in which the codes are drawn; None is raster order, and halton with num_steps.
        num_steps: draw several codes a step, in this many steps; None is a code a step (of a masked prior 12 steps).

    Raises:
        LoadingError: the pipeline cannot be loaded.
        OutputError: the folder holds something else.
        CodegridError: the prior knows raster order only, or an argument is out of its range.
    """
    _check_one({"mask": mask, "keep": keep, "strength": strength, "outpaint": outpaint or None, "size": size})
    sides = _sides(outpaint)
    folder = Path(output_dir)
    _check_folder(folder)
    accelerator = make_accelerator()
    pipe = ImageGenerationPipeline.from_pretrained(pipeline).to(accelerator.device)
    check_colours(pipe.tokenizer.config.backbone_config.in_channels, "`codegrid edit`")
    start = _start(pipe, Path(image), fingerprint := pipe.tokenizer.fingerprint())
    if mask is not None:
        read_masks(mask, 1)
    settings: dict[str, Any] = {
        **{"tokenizer_fingerprint": fingerprint, "prior_fingerprint": weights_fingerprint(pipe.prior)},
        **{"pipeline": pipeline, "image": image, "mask": mask, "keep": keep, "strength": strength},
        **({"outpaint": outpaint} if outpaint else {} if size is None else {"size": size}),
        **({"whole": whole} if whole else {}),
        **_given(condition=condition, prompt=prompt, part_guidance=part_guidance),
        **{"class_label": class_label, "num_images": num_images, "seed": seed, "composite": composite},
        **{"guidance_scale": guidance_scale, "temperature": temperature, "order": order, "num_steps": num_steps},
    }
    made = _made(pipe, start, settings, sides, whole)
    if told := claim_images(folder, settings):
        tqdm.write(told)
    _write(folder, made, fingerprint)
    return folder


def _made(
    pipe: ImageGenerationPipeline, start: Any, asked: dict[str, Any], sides: Any, whole: bool
) -> ImagePipelineOutput:
    names = ("seed", "composite", "guidance_scale", "temperature", "order", "num_steps")
    options = {name: asked[name] for name in names} | {"num_images_per_image": asked["num_images"], "whole": whole}
    options |= {name: asked[name] for name in ("condition", "prompt", "part_guidance") if name in asked}
    label = asked["class_label"]
    if asked["mask"] is not None:
        return pipe.inpaint(start, asked["mask"], label, **options)
    if sides or "size" in asked:
        return pipe.outpaint(start, label, sides=sides or None, size=asked.get("size"), **options)
    if asked["keep"] is not None:
        return pipe.variations(start, asked["keep"], label, **options)
    return pipe.edit(start, label, asked["strength"], **options)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_one(ways: dict[str, Any]) -> None:
    given = [f"--{name}" for name, value in ways.items() if value is not None]
    known = ", ".join(f"--{name}" for name in ways)
    require(len(given) == 1, f"Given are {', '.join(given) or 'neither'} of {known}.", "Give one of them.")


def _sides(outpaint: tuple[str, ...]) -> list[str] | dict[str, int]:
    """`right=32 bottom=16` -> pixels by side; names alone stay names."""
    pixels: dict[str, int] = {}
    for one in outpaint:
        side, _, number = one.partition("=")
        require(
            bool(number.isdecimal()) == any("=" in other for other in outpaint) and side not in pixels,
            f"--outpaint is {shown(' '.join(outpaint))}.",
            f"Give each side once: names of {', '.join(SIDES)}, or all of them with pixels, as right=32.",
        )
        pixels[side] = int(number or 0)
    return pixels if any("=" in one for one in outpaint) else list(pixels)


def _write(folder: Path, made: ImagePipelineOutput, fingerprint: str) -> None:
    names = [f"{index:06d}.png" for index in range(len(made.codes))]
    assert isinstance(made.images, list)
    for name, picture in zip(names, made.images, strict=True):
        write_atomically(folder / name, lambda aside, picture=picture: picture.save(aside, format="PNG"))
    kept = {name: codes.clone() for name, codes in zip(names, made.codes, strict=True)}
    about = {"tokenizer_fingerprint": fingerprint, **{name: sha256(folder / name) for name in names}}
    write_atomically(folder / _CODES, lambda aside: save_file(kept, aside, metadata=about))
    tqdm.write(f"{len(names)} results are in {shown(folder)}.")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed; it is claimed when the results are there."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):
        raise OutputError(
            f"{shown(folder)} cannot be made: {shown(nearest)} is no folder, or not one to write to.",
            "Choose another --output-dir.",
        )
    if nearest == folder and any(folder.iterdir()) and not (folder / SETTINGS_NAME).is_file():
        raise OutputError(f"{shown(folder)} holds {what_it_holds(folder)}.", "Choose another --output-dir.")


def _start(pipe: ImageGenerationPipeline, image: Path, fingerprint: str) -> Any:
    """The picture; or, for a result of this command, the picture with its codes."""
    path = image.with_name(_CODES)
    if not path.is_file():
        return image
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        codes = load_file(path).get(image.name)
    except (SafetensorError, OSError) as error:
        raise CodegridError(
            f"The codes beside the picture, {shown(path)}, cannot be read ({error}).",
            "Move the picture elsewhere: then it is encoded.",
        ) from error
    if codes is None or about.get("tokenizer_fingerprint") != fingerprint:
        return image
    require(
        about.get(image.name) == sha256(image),
        f"{shown(image)} was changed after its codes were written to {_CODES} beside it: they are two pictures.",
        "Move it to another folder: then it is encoded.",
    )
    channels = pipe.tokenizer.config.backbone_config.in_channels
    picture = open_picture(image, pipe.tokenizer.config.preprocessing_config, channels)
    factor, depth = pipe.tokenizer.config.pixels_per_position, pipe.sequence.depth
    grid = (picture.height // factor, picture.width // factor)
    require(
        codes.dtype == torch.int64 and tuple(codes.shape) == (grid if depth == 1 else (*grid, depth)),
        f"The codes of {image.name} in {shown(path)} are {codes.dtype} {list(codes.shape)}.",
        "Move the picture elsewhere: then it is encoded.",
    )
    return ImagePipelineOutput([picture.convert("L" if channels == 1 else "RGB")], codes[None], None)

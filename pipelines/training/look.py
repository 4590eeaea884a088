"""Shows, before a long run, how a source of pictures is read and what each tokenizer preset would make of it."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from codegrid.errors import CodegridError, require
from codegrid.pipelines.data.batches import read_picture
from codegrid.pipelines.data.depth import DepthWatch
from codegrid.pipelines.data.duplicates import find_overlap
from codegrid.pipelines.data.records import DataConfig, ImageRecord, ImageSource
from codegrid.pipelines.data.sources import open_images, split_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.pipelines.pictures.grids import grid
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.tokenizer import VQModelConfig
from codegrid.tokenizer.images import FORMATS, BadImage, Preprocessing, check_size, for_people, to_model, to_pil
from codegrid.tokenizer.images.bands import ARRAY_MAGIC, read_npy
from codegrid.tokenizer.images.decoding import MAX_PIXELS


@dataclass(frozen=True)
class LookConfig:
    """The settings of `codegrid look`.

    Args:
        data: the pictures.
        preset: a tokenizer preset; the sheet shows the pictures as it would see them. None describes all presets and
            shows the pictures as the first one would see them.
        in_channels: channels of the pictures, where these are other than the preset's (backbone.in_channels).
        output: picture file for the sheet; by default look.png, or look-2.png if that exists.
        num_pictures: pictures on the sheet: the first ones that can be used.
        num_sizes: number of pictures whose sizes are read, spread over the source.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig("."))
    preset: str | None = None
    in_channels: int | None = None
    output: str | None = None
    num_pictures: int = 32
    num_sizes: int = 2_000

    def __post_init__(self) -> None:
        for name in ("num_pictures", "num_sizes", "in_channels"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}.", "It must be at least 1.")
        known = ", ".join(TOKENIZER_PRESETS)
        require(
            self.preset is None or self.preset in TOKENIZER_PRESETS,
            f"preset is {self.preset!r}.",
            f"It must be one of {known}.",
        )


def look(config: LookConfig) -> Path:
    """Print how the pictures are read and what the presets would make of them; return the sheet's file.

    Raises:
        DataError: the pictures cannot be read as configured, or the source is ambiguous.
        CodegridError: none of the pictures on the sheet could be used.
    """
    source = open_images(config.data)
    print("\n".join(describe_source(source)))
    sizes, unreadable = sizes_of(source, config.num_sizes)
    print(_describe_sizes(sizes, unreadable, len(source)))
    chosen = [config.preset] if config.preset else list(TOKENIZER_PRESETS)
    for name in chosen:
        print(f"{name}: {_describe_preset(_preset(config, name), sizes)}")
    if sentence := _describe_overlap(config, source):
        print(sentence)
    return _write_sheet(config, source, chosen[0])


def _preset(config: LookConfig, name: str) -> TokenizerTrainingConfig:
    preset = TOKENIZER_PRESETS[name](config.data.source, "")
    if config.in_channels is None:
        return preset
    return replace(preset, backbone=replace(preset.backbone, in_channels=config.in_channels))


def _describe_overlap(config: LookConfig, source: ImageSource) -> str:
    """A line about pictures that training would have in both parts; "" where nothing is held out."""
    if len(source) < 2 and not config.data.validation_split:
        return ""
    training, held_out = split_images(config.data)
    if held_out is None:
        return ""
    # Without a preset, one of colour: of grey pictures more are alike.
    preset = _preset(config, config.preset or "small64")
    return find_overlap(training, held_out, preset.preprocessing, preset.backbone.in_channels).sentence()


def sizes_of(source: ImageSource, most: int) -> tuple[list[tuple[int, int]], int]:
    """((width, height) of pictures spread over the source, from their headers; number of pictures without one)."""
    places = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))
    found = [_size(source[int(place)]) for place in places]
    return [size for size in found if size], sum(size is None for size in found)


def _size(record: ImageRecord) -> tuple[int, int] | None:
    try:
        with io.BytesIO(record.data) if isinstance(record.data, bytes) else record.data.open("rb") as file:
            if file.read(len(ARRAY_MAGIC)) == ARRAY_MAGIC:
                file.seek(0)
                height, width = read_npy(file.read(), MAX_PIXELS, "").shape[:2]
                return width, height
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                return image.size
    except Exception:  # a Pillow plugin may raise any error on a damaged header
        return None


def _describe_sizes(sizes: list[tuple[int, int]], unreadable: int, total: int) -> str:
    looked = len(sizes) + unreadable
    of = f"{looked:,} pictures" if looked == total else f"{looked:,} of {total:,} pictures"
    bad = f"; {unreadable:,} cannot be read" if unreadable else ""
    if not sizes:
        return f"Sizes of {of}: none can be read."
    sides = sorted(min(size) for size in sizes)
    median = sides[len(sides) // 2]
    return f"Sizes of {of}: the short side from {sides[0]} to {sides[-1]} pixels, half of them below {median + 1}{bad}."


def _describe_preset(config: TokenizerTrainingConfig, sizes: list[tuple[int, int]]) -> str:
    preprocessing = config.preprocessing
    model = VQModelConfig(backbone=config.backbone, quantizer=config.quantizer, preprocessing=preprocessing)
    reasons: Counter[str] = Counter()
    enlarged = 0
    for size in sizes:
        try:
            check_size(size, preprocessing)
            enlarged += preprocessing.fit != "pad" and is_smaller(size, preprocessing)
        except BadImage as error:
            reasons[error.reason] += 1
    shape = "x".join(map(str, model.codes_shape))
    channels = config.backbone.in_channels
    kind = {1: "grey", 3: "colour"}.get(channels, f"of {channels} channels")
    parts = [
        f"{preprocessing.size_text} {kind}",
        f"{math.prod(model.codes_shape)} codes an image ({shape} of {model.quantizer_config.codebook_size:,})",
        *(f"{_share(count, sizes)} left out ({reason.replace('_', ' ')})" for reason, count in reasons.most_common()),
        *([f"{_share(enlarged, sizes)} scaled up"] if enlarged else []),
    ]
    return ", ".join(parts) + "."


def is_smaller(size: tuple[int, int], preprocessing: Preprocessing) -> bool:
    height, width = preprocessing.size
    return size[0] < width or size[1] < height


def _share(count: int, sizes: list[tuple[int, int]]) -> str:
    return f"{count:,} of {len(sizes):,}"


def _write_sheet(config: LookConfig, source: ImageSource, preset: str) -> Path:
    """Write the first usable pictures as the preset sees them: upright, cropped, on white."""
    wanted = _preset(config, preset)
    shown, reasons, depth = [], Counter(), DepthWatch(wanted.preprocessing)
    for record in source:
        picture = read_picture(record, wanted.preprocessing, wanted.backbone.in_channels)
        depth.add([picture.peak])
        if picture.pixels is None:
            reasons[picture.reason] += 1
        else:
            shown += to_pil(for_people(to_model(picture.pixels)))
        if len(shown) == config.num_pictures or sum(reasons.values()) == 10 * config.num_pictures:
            break
    left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items())
    if not shown:
        raise CodegridError(
            f"{preset} can use none of the first {sum(reasons.values())} pictures ({left_out}).",
            "Take another --preset or --in-channels, or set preprocessing.smaller to upscale when you train.",
        )
    file = Path(config.output) if config.output else _free(Path("look.png"))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid(shown).save(file)
    more = f" ({left_out} left out before)" if left_out else ""
    if sentence := depth.sentence(last=True):
        print(sentence)
    print(f"The first {len(shown)} pictures as {preset} sees them{more} are in {file}.")
    return file


def _free(path: Path) -> Path:
    """The path, or the path with a number after its name if it exists."""
    names: Iterable[Path] = (path.with_stem(f"{path.stem}-{number}") for number in range(2, 10_000))
    return next(name for name in (path, *names) if not name.exists())

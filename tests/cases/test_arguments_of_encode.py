"""Row "arguments of `encode`": every door gives the codes that training's own reading gives, or one sentence.

Modes, orientations and PIL: tests/tokenizer/test_door.py; grey pipelines: tests/pipelines/test_generation.py.
"""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.demo.actions import read_image
from codegrid.pipelines.evaluation.picture_sets import Cut, FolderPictures
from codegrid.tokenizer.images import BadImage, to_images, to_model

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"
SEED = 20261127


@pytest.fixture(scope="module")
def pipe() -> ImageGenerationPipeline:
    return ImageGenerationPipeline.from_pretrained(SAVED / "pipeline")


def colours(seed: int, size: tuple[int, int]) -> Image.Image:
    planes = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(planes).resize(size, Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def moving(seed: int) -> bytes:
    """A GIF of three frames whose first has clear pixels."""
    frames = [colours(seed + number, (41, 30)).quantize(16) for number in range(3)]
    return stored(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=3)


def drawn_file(seed: int) -> tuple[str, bytes]:
    draw = np.random.default_rng(seed)
    mode, kind = [("L", "PNG"), ("CMYK", "TIFF"), ("RGBA", "WEBP"), ("1", "BMP"), ("P", "PNG")][int(draw.integers(5))]
    size = tuple(int(side) for side in draw.integers(17, 60, 2))
    exif = Image.Exif()
    exif[0x0112] = int(draw.integers(1, 9))
    options = {"lossless": True} if kind == "WEBP" else {}
    return f"drawn.{kind.lower()}", stored(colours(seed, size).convert(mode), kind, exif=exif, **options)


FILES = {
    "CMYK as JPEG": ("inks.jpg", stored(colours(1, (33, 52)).convert("CMYK"), "JPEG")),
    "a moving picture": ("moving.gif", moving(2)),
    "a clear colour": ("clear.png", stored(colours(3, (20, 47)), "PNG", transparency=(255, 0, 0))),
    f"drawn from {SEED}": drawn_file(SEED),
}


@pytest.mark.parametrize("case", FILES)
def test_all_doors_give_the_same_codes(pipe, tmp_path, case):
    name, data = FILES[case]
    (tmp_path / name).write_bytes(data)
    config = pipe.tokenizer.config
    preprocessing, channels = config.preprocessing_config, config.backbone_config.in_channels
    source = FolderPictures(open_images(DataConfig(str(tmp_path))), Cut(preprocessing, channels))
    ((pixels, _, _, left_out),) = source.read([[0]])  # how training, tokenizing and evaluation read it
    assert left_out == {}
    wanted = pipe.tokenizer.encode(to_model(pixels))
    assert torch.equal(pipe.tokenizer.encode(read_image(pipe.tokenizer, tmp_path / name)), wanted), case
    path = tmp_path / name
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr(name, data)
    with zipfile.ZipFile(tmp_path / "some.zip") as archive, archive.open(name) as member, path.open("rb") as file:
        kinds = {
            "numpy's text": np.str_(path),
            "an array of paths": np.array([str(path)]),
            "a table's column": np.array([path], dtype=object),
            "a generator": (each for each in [path]),
            "a memoryview": memoryview(data),
            "an open file": file,
            "a member of a zip": member,
            "a row of datasets": {"bytes": None, "path": str(path)},
            "its pixels": pixels,
            "its pixels as a tensor": torch.as_tensor(pixels),
        }
        for kind, given in kinds.items():
            assert torch.equal(pipe.encode(given), wanted), (case, kind)


def of_any_library(floats: np.ndarray) -> dict[str, object]:
    """The same images [N, C, H, W] in other orders of bytes, strides and types."""
    backwards = np.ascontiguousarray(floats[:, ::-1])[:, ::-1]  # such as BGR turned to RGB: a negative stride
    still = floats.copy()
    still.flags.writeable = False
    return {
        "backwards": backwards,
        "the other order of bytes": floats.astype(floats.dtype.newbyteorder()),
        "long doubles": floats.astype(np.longdouble),
        "read only": still,
        "columns first": np.asfortranarray(floats),
        "with gradients": torch.tensor(floats, requires_grad=True),
        "channels last": torch.tensor(floats).contiguous(memory_format=torch.channels_last),
        "one by one": [floats[0][::-1][::-1], *map(torch.tensor, floats[1:])],
        "masked, with nothing masked": np.ma.masked_array(floats),
    }


@pytest.mark.parametrize("kind", of_any_library(np.zeros((2, 3, 16, 16), np.float32)))
@pytest.mark.filterwarnings("error")
def test_floats_of_any_library_are_the_same_images(pipe, kind):
    floats = np.random.default_rng(SEED).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    assert torch.equal(pipe.encode(of_any_library(floats)[kind]), pipe.encode(torch.tensor(floats))), (kind, SEED)


def masked(shape, dtype):
    values = np.ma.masked_array(np.zeros(shape, dtype))
    values[..., 2] = np.ma.masked
    return values


DRAWN_DTYPE = str(np.random.default_rng(SEED).choice(["int8", "int64", "complex64", "uint32"]))
NEVER = {
    "masked floats": (masked((1, 3, 16, 16), np.float32), "masked"),
    "a masked picture": (masked((16, 16, 3), np.uint8), "masked"),
    "sparse": (torch.eye(16).expand(1, 3, 16, 16).to_sparse(), "to_dense"),
    "without storage": (torch.empty(1, 3, 16, 16, device="meta"), "meta"),
    "nearly infinite": (np.full((1, 3, 16, 16), 1e300), "inf"),
    "channels last": (np.zeros((2, 16, 16, 3), np.float32), r"\[2, 16, 16, 3\]"),
    "lists of numbers": ([[0.0, 0.5]], "list is no picture"),
    "a row with an unknown column": ({"image": "a.png"}, "dict is no picture"),
    "a folder": (SAVED, "Is a directory"),
    "an address": ("https://example.org/a.png", "there is no file https://example.org/a.png"),
    "a path as bytes": (b"pictures/a.png", "no picture in a known format"),
    f"{DRAWN_DTYPE}, drawn": (np.zeros((16, 16, 3), DRAWN_DTYPE), DRAWN_DTYPE),
}


@pytest.mark.parametrize("case", NEVER)
def test_what_cannot_be_meant_is_one_sentence(pipe, case):
    given, words = NEVER[case]
    with pytest.raises((CodegridError, BadImage), match=words):
        pipe.encode(given)


@pytest.mark.parametrize("given", [np.zeros((1, 3, 16, 16), np.float32), Image.new("RGB", (16, 16)), "a.png", None])
def test_the_models_own_encode_names_the_door(pipe, given):
    with pytest.raises(CodegridError, match=r"are tensors \[B, C, H, W\], not .*to_images"):
        pipe.tokenizer.encode(given)


def test_one_picture_among_many_is_named(pipe):
    config = pipe.tokenizer.config
    strict = replace(config.preprocessing_config, smaller="skip", image_size=16)
    with pytest.raises(BadImage, match=r"Picture 3 of 3: .*8x9"):
        to_images([colours(1, (20, 20)), colours(2, (16, 16)), colours(3, (8, 9))], strict)

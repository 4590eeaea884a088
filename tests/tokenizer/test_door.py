"""tokenizer/images/door.py: anything that is a picture becomes what training reads; the rest is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from codegrid.errors import CodegridError
from codegrid.tokenizer.images import BadImage, Preprocessing, open_picture, to_images, to_model, to_square

SIXTEEN = Preprocessing(image_size=16, smaller="upscale")


def drawn(mode: str, seed: int = 0, size: tuple[int, int] = (37, 29)) -> Image.Image:
    """A picture of smooth colours in any of PIL's modes."""
    random = np.random.default_rng(seed)
    planes = random.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    rgba = Image.fromarray(planes).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgba.convert("L")).astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(np.asarray(rgba.convert("L")).astype(np.int32 if mode == "I" else np.float32))
    if mode in ("La", "RGBa"):
        return rgba.convert(mode.upper()).convert(mode)
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode) if mode == "CMYK" else rgba.convert(mode)


def stored(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# (mode, format that stores it without loss, orientation): three written ones, one drawn
WRITTEN = [("RGBA", "PNG", 6), ("I;16", "PNG", 1), ("P", "PNG", 3)]
RANDOM = np.random.default_rng(20250613)
DRAWN = [(str(RANDOM.choice(["L", "LA", "1", "CMYK", "RGB"])), "TIFF", int(RANDOM.integers(2, 9)))]


@pytest.mark.parametrize(("mode", "kind", "orientation"), WRITTEN + DRAWN)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_door_gives_what_training_reads_from_the_file(tmp_path, mode, kind, orientation, channels):
    data = stored(drawn(mode), kind, exif=turned(orientation))
    path = tmp_path / "picture"
    path.write_bytes(data)
    wanted = to_square(data, SIXTEEN, channels)
    assert wanted.shape == (16, 16, channels)
    with Image.open(path) as opened:
        opened_copy = opened.copy()  # keeps its EXIF
        for picture in (path, str(path), io.BytesIO(data), opened, opened_copy, {"bytes": data, "path": None}):
            np.testing.assert_array_equal(to_square(picture, SIXTEEN, channels), wanted)
        assert opened_copy.size == (37, 29)  # the caller's picture is not turned
    with path.open("rb") as file:
        np.testing.assert_array_equal(to_square(file, SIXTEEN, channels), wanted)
    images = to_images([path, data], SIXTEEN, channels)
    assert images.dtype == torch.float32
    assert torch.equal(images, to_model(np.stack([wanted, wanted])))


def test_a_loaded_picture_is_not_turned_again():
    once = open_picture(stored(drawn("RGB"), "PNG", exif=turned(6)), SIXTEEN)
    assert once.size == (29, 37)
    assert open_picture(once, SIXTEEN).size == (29, 37)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "1"])
def test_arrays_and_tensors_are_pictures(mode):
    image = drawn(mode)
    array = np.array(image)
    wanted = to_square(image, SIXTEEN)
    kinds = [array, torch.from_numpy(array), np.ascontiguousarray(array[::-1])[::-1]]  # the last runs backwards
    if array.ndim == 2:
        kinds.append(array[:, :, None])
    if array.dtype == np.uint16:
        kinds.append(array.astype(">u2"))
    for picture in kinds:
        np.testing.assert_array_equal(to_square(picture, SIXTEEN), wanted)
    if array.ndim == 3 and array.dtype == np.uint8:
        assert torch.equal(to_images(np.stack([array, array]), SIXTEEN), to_model(np.stack([wanted, wanted])))


def test_sixteen_bit_colour_arrays_are_scaled():
    values = np.random.default_rng(3).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    wanted = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(to_square(values, Preprocessing(image_size=16)), wanted)


def test_floats_are_the_models_own():
    images = torch.rand(2, 3, 24, 16, dtype=torch.float64) * 2 - 1
    for floats in (images, images.numpy(), list(images), [images[0], images[1].numpy()]):
        assert torch.equal(to_images(floats, SIXTEEN), images.float())
    assert to_images(images.bfloat16(), SIXTEEN).dtype == torch.float32
    with pytest.warns(UserWarning, match=r"From 0\.\.1 it is x \* 2 - 1"):
        to_images(torch.rand(1, 3, 16, 16), SIXTEEN)


FLOATS = torch.zeros(1, 3, 16, 16)
DRAWN_SCALE = float(np.random.default_rng(5).uniform(2, 300))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), "0..255 is uint8"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"channels first.*permute it to \(1, 2, 0\)"),
        (np.zeros((16, 16, 3), np.int32), "0..255 is uint8"),
        (np.zeros((16, 16, 3)), "are uint8"),
        (np.zeros((16, 16)), "no picture"),
        (np.zeros((16, 16, 5), np.uint8), "1, 2, 3 or 4 channels"),
        (FLOATS + 255, "from 255 to 255.*127.5"),
        (FLOATS - DRAWN_SCALE, "x.clamp"),
        (FLOATS.index_fill(3, torch.tensor([2]), float("nan")), "NaN"),
        (FLOATS.index_fill(3, torch.tensor([2]), float("-inf")), "from -inf"),
        ([FLOATS[0], FLOATS[0, :, :8]], "different sizes"),
        (["missing.png"], "Picture 1 of 1: there is no file missing.png"),
        ([], "There is no picture"),
        (7, "type int is no picture"),
        ([None], "type NoneType is no picture"),
        (np.array(["a.png"], dtype=object), "there is no file a.png"),
        (np.array([b"a"]), "no picture"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(pictures, message):
    with pytest.raises(CodegridError, match=message):
        to_images(pictures, SIXTEEN)


def test_a_bad_picture_is_named():
    small = Preprocessing(image_size=64)
    with pytest.raises(BadImage, match=r"Picture 2 of 2: .*smaller than image_size 64") as caught:
        to_images([drawn("RGB", size=(90, 80)), drawn("RGB")], small)
    assert caught.value.reason == "too_small"
    for picture in (Image.new("RGB", (0, 0)), Image.new("L", (0, 7)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(BadImage, match="has no pixels"):
            to_square(picture, SIXTEEN)
    with pytest.raises(BadImage, match="max_pixels allows 10"):
        to_square(drawn("RGB"), Preprocessing(image_size=16, max_pixels=10))


@pytest.mark.parametrize("call", ["encode", "forward"])
def test_the_model_refuses_what_it_cannot_mean(tiny_vqmodel, call):
    run = getattr(tiny_vqmodel, call)
    for images, message in [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floats in .*to_model"),
        (torch.full((1, 3, 16, 16), 255.0), "from 255 to 255"),
        (torch.full((1, 3, 16, 16), torch.nan), "NaN"),
    ]:
        with pytest.raises(CodegridError, match=message):
            run(images)
    overshoot = torch.full((1, 3, 16, 16), 1.3)  # what `decode` gives may be encoded again
    run(overshoot)


@pytest.mark.gpu
def test_the_model_waits_for_no_device(tiny_vqmodel):
    model, images = tiny_vqmodel.cuda(), torch.zeros(1, 3, 16, 16, device="cuda")
    model.encode(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.encode(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_picture_on_a_coloured_ground_of_its_own(tmp_path: Path):
    """Alpha goes onto white in every door: a disc on clear ground."""
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((4, 4, 15, 15), fill=(0, 0, 255, 255))
    for picture in (image, np.asarray(image), stored(image, "PNG")):
        assert to_square(picture, SIXTEEN)[0, 0].tolist() == [255, 255, 255]

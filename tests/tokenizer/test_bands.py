"""tokenizer/images/bands.py: arrays and TIFFs of several channels, against numpy and tifffile."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from codegrid.tokenizer.images import BadImage, Bands, Preprocessing, open_picture, to_square

RANDOM = np.random.default_rng(4)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def as_is(height: int, width: int, **fields) -> Preprocessing:
    return Preprocessing(image_size=(height, width), **fields)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_arrays_of_8_bits_are_taken_as_they_are(channels, order):
    array = np.asarray(RANDOM.integers(0, 256, (9, 11, channels), dtype=np.uint8), order=order)
    data = npy(array)
    if channels not in (2, 4):  # for grey and colour these have alpha
        np.testing.assert_array_equal(to_square(data, as_is(9, 11), channels), array)
    else:
        found = open_picture(data, as_is(9, 11), channels)
        assert isinstance(found, Bands)
        assert found.size == (11, 9)
        np.testing.assert_array_equal(to_square(array, as_is(9, 11), channels), array)


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int16", "uint32", "int64", "float32", "float64", "float16"])
@pytest.mark.parametrize("channels", [3, 6])
def test_more_bits_go_by_black_and_white(dtype, channels):
    array = RANDOM.integers(0, 2000, (9, 11, channels)).astype(dtype)
    wanted = np.rint(((array.astype(np.float64) - 100) / 1400).clip(0, 1) * 255)
    picture = open_picture(npy(array), as_is(9, 11, black=100, white=1500), channels)
    assert picture.info["peak"] == pytest.approx(float(array.max()) / 1500)
    off = np.abs(to_square(npy(array), as_is(9, 11, black=100, white=1500), channels) - wanted)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01


def test_floats_without_white():
    unit = RANDOM.uniform(0, 1, (9, 11, 5)).astype(np.float32)
    unit[0, 0, 0] = 1
    np.testing.assert_array_equal(to_square(npy(unit), as_is(9, 11), 5), np.rint(unit * np.float32(255)))
    for broken in (np.nan, np.inf, -0.5, 300):
        unit[3, 3, 3] = broken
        with pytest.raises(BadImage, match=r"preprocessing\.white") as caught:
            to_square(npy(unit), as_is(9, 11), 5)
        assert caught.value.reason == "unsupported_depth"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.zeros((5, 9, 11), np.uint8)), "wrong_channels"),
        (npy(np.zeros((9, 11), np.uint8)), "wrong_channels"),
        (npy(np.zeros((2, 9, 11, 5), np.uint8)), "wrong_channels"),
        (npy(np.zeros((0, 11, 5), np.uint8)), "too_small"),
        (npy(np.zeros((9, 11, 5), np.complex64)), "unsupported_depth"),
        (npy(np.zeros((9, 11, 5), [("a", np.uint8)])), "unsupported_depth"),
        (npy(np.array([[None]])), "unsupported_depth"),
        (npy(np.zeros((9, 11, 5), np.uint8))[:-1], "truncated"),
        (npy(np.zeros((9, 11, 5), np.uint8))[:30], "unreadable"),
        (npy(np.zeros((1, 1, 5), np.uint8)).replace(b"(1, 1, 5), ", b"(9**9**9,),"), "unreadable"),
        (npy(np.zeros((1, 1, 5), np.uint8)).replace(b"(1, 1, 5), }   ", b"(90000, 90000), }"), "too_many_pixels"),
    ],
)
def test_what_cannot_be_used_is_left_out(data, reason):
    with pytest.raises(BadImage) as caught:
        to_square(data, as_is(9, 11), 5)
    assert caught.value.reason == reason
    assert str(caught.value).endswith(".")


def test_channels_that_come_first_are_named():
    with pytest.raises(BadImage, match=r"permuted to \(1, 2, 0\)"):
        to_square(npy(np.zeros((5, 9, 11), np.uint8)), as_is(9, 11), 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("pages", [2, 4, 7])
def test_pages_are_channels(pages, dtype):
    """By Pillow alone."""
    array = RANDOM.integers(0, 256, (9, 11, pages)).astype(dtype)
    frames = [Image.fromarray(array[:, :, page]) for page in range(pages)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    data = buffer.getvalue()
    np.testing.assert_array_equal(to_square(data, as_is(9, 11, white=255), pages), array)
    for channels in (5, 6):
        with pytest.raises(BadImage, match=f"reads {channels} channels"):
            to_square(data, as_is(9, 11), channels)
    # As before, grey and colour take the first page.
    np.testing.assert_array_equal(to_square(data, as_is(9, 11, white=255), 1)[:, :, 0], array[:, :, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "separate"},
        {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"},
        {"photometric": "rgb", "planarconfig": "contig"},
        {"photometric": "rgb", "planarconfig": "contig", "tile": (16, 16)},
    ],
)
@pytest.mark.parametrize("channels", [4, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_are_channels(options, channels, dtype):
    tifffile = pytest.importorskip("tifffile")
    array = RANDOM.integers(0, 256, (17, 19, channels)).astype(dtype)
    stored = np.moveaxis(array, 2, 0) if options["planarconfig"] == "separate" else array
    kinds = {"extrasamples": ["unspecified"] * (channels - 3)} if options["photometric"] == "rgb" else {}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, **options, **kinds)
    data = buffer.getvalue()
    np.testing.assert_array_equal(to_square(data, as_is(17, 19, white=255), channels), array)
    with pytest.raises(BadImage) as caught:
        to_square(data, as_is(17, 19), channels + 2)
    assert caught.value.reason == "wrong_channels"
    with pytest.raises(BadImage):
        to_square(data[:-40], as_is(17, 19), channels)


def test_planes_are_not_read_as_grey():
    """Pillow opens the first plane, without a word."""
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    array = RANDOM.integers(0, 65536, (4, 9, 11)).astype(np.uint16)
    tifffile.imwrite(buffer, array, photometric="minisblack", planarconfig="separate")
    for channels in (1, 3):
        with pytest.raises(BadImage, match="planes beside the first"):
            to_square(buffer.getvalue(), as_is(9, 11), channels)


def test_without_tifffile_it_is_named(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((9, 11, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(BadImage, match=r"codegrid\[multispectral\]") as caught:
        to_square(buffer.getvalue(), as_is(9, 11), 5)
    assert caught.value.reason == "needs_tifffile"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_a_channel(kind):
    array = RANDOM.integers(0, 256, (9, 11, 4), dtype=np.uint8)
    array[2:5, 2:5, 3] = 0
    wanted = array.copy()
    wanted[array[:, :, 3] == 0, :3] = 255
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    for picture in (buffer.getvalue(), Image.fromarray(array)):
        np.testing.assert_array_equal(to_square(picture, as_is(9, 11), 4), wanted)
    np.testing.assert_array_equal(to_square(array, as_is(9, 11), 4), array)  # four channels, whatever they mean


def test_opaque_pictures_have_an_alpha_of_255():
    for mode in ("RGB", "L", "P", "1", "CMYK"):
        buffer = io.BytesIO()
        Image.fromarray(RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8)).convert(mode).save(buffer, "TIFF")
        pixels = to_square(buffer.getvalue(), as_is(9, 11), 4)
        assert (pixels[:, :, 3] == 255).all()
        np.testing.assert_array_equal(pixels[:, :, :3], to_square(buffer.getvalue(), as_is(9, 11), 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_channels_are_upright(orientation):
    array = RANDOM.integers(0, 256, (9, 11, 4), dtype=np.uint8)
    image, buffer = Image.fromarray(array), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, "TIFF", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    np.testing.assert_array_equal(to_square(buffer.getvalue(), as_is(*upright.shape[:2]), 4), upright)


def test_colours_are_not_five_channels():
    with pytest.raises(BadImage, match="picture of colours, and the tokenizer reads 5"):
        to_square(Image.new("RGB", (11, 9)), as_is(9, 11), 5)

"""tokenizer/images/depth.py: pictures of more than eight bits, against numpy; `preprocessing.white` and `black`."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.data.depth import DepthWatch
from codegrid.tokenizer.fields import established, from_dict
from codegrid.tokenizer.images import BadImage, Preprocessing, load_image, open_picture, to_square

RANDOM = np.random.default_rng(31)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, clear: tuple[int, ...] = ()) -> bytes:
    """uint16 [H, W] or [H, W, 2 to 4] as a PNG of 16 bits, which Pillow cannot write in colour."""
    planes = values if values.ndim == 3 else values[:, :, None]
    height, width, channels = planes.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(clear)}H", *clear)), (b"IDAT", zlib.compress(rows))]
    chunks = b"".join(chunk(kind, body) for kind, body in parts if body)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


def scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.rint(((values.astype(np.float64) - black) / (white - black)).clip(0, 1) * 255)


DRAWN = (int(RANDOM.integers(0, 900)), int(RANDOM.integers(1000, 60_000)))


@pytest.mark.parametrize(("black", "white"), [(0, 4095), (64, 1023), (0, 16_383), DRAWN])
@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 3), (9, 11, 2), (9, 11, 4)])
def test_black_and_white(black, white, shape):
    values = RANDOM.integers(0, min(65535, round(white * 1.1)), shape).astype(np.uint16)
    if len(shape) == 3 and shape[2] in (2, 4):
        values[:, :, -1] = 65535  # not clear
    colours = values[:, :, :-1] if len(shape) == 3 and shape[2] in (2, 4) else values
    wanted = scaled(colours.reshape(9, 11, -1), black, white)
    wanted = np.broadcast_to(wanted, (9, 11, 3))
    preprocessing = Preprocessing(image_size=(9, 11), black=black, white=white)
    kinds = [png(values), io.BytesIO(png(values)), Image.open(io.BytesIO(png(values))), values]
    kinds += [tiff(values)] if len(shape) == 2 else []
    for picture in kinds:
        off = np.abs(to_square(picture, preprocessing) - wanted)
        assert off.max() <= 1  # a half, rounded in single precision
        assert (off > 0).mean() < 0.01


def test_without_a_white_point_nothing_changes():
    """Grey is divided by 257 and rounded, of colours the high byte is taken, as in 0.1.0."""
    grey, colour = (RANDOM.integers(0, 65536, shape).astype(np.uint16) for shape in ((9, 11), (9, 11, 3)))
    np.testing.assert_array_equal(np.asarray(load_image(png(grey)))[:, :, 0], np.rint(grey / 257))
    np.testing.assert_array_equal(np.asarray(load_image(png(colour))), colour >> 8)
    assert "white" not in established(Preprocessing())
    assert from_dict(Preprocessing, {"white": 4095}, where="preprocessing").levels == (0.0, 4095.0)


def test_pictures_of_eight_bits_have_no_white_point():
    values = RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_square(values, Preprocessing(image_size=(9, 11), white=100)), values)


def test_floats_and_integers_of_any_range():
    values = RANDOM.uniform(-3, 4000, (9, 11)).astype(np.float32)
    preprocessing = Preprocessing(image_size=(9, 11), black=10, white=3500)
    assert np.abs(to_square(tiff(values), preprocessing)[:, :, 0] - scaled(values, 10, 3500)).max() <= 1
    np.testing.assert_array_equal(
        to_square(tiff(values.astype(np.int32) * 100), Preprocessing(image_size=(9, 11), white=350_000))[:, :, 1],
        scaled(values.astype(np.int32) * 100, 0, 350_000),
    )
    for broken in (np.nan, np.inf):
        values[3, 4] = broken
        with pytest.raises(BadImage, match=r"preprocessing\.white"):
            to_square(tiff(values), preprocessing)


def test_a_clear_colour_is_white():
    values = np.full((9, 11, 3), 500, np.uint16)
    values[0, 0] = (7, 8, 9)
    pixels = to_square(png(values, clear=(7, 8, 9)), Preprocessing(image_size=(9, 11), white=1000))
    assert (pixels[0, 0].tolist(), pixels[4, 4].tolist()) == ([255] * 3, [128] * 3)


@pytest.mark.parametrize("levels", [{"white": 0.0}, {"black": 9, "white": 9}, {"white": np.nan}, {"black": np.inf}])
def test_what_makes_no_sense_is_refused(levels):
    with pytest.raises(CodegridError, match=r"preprocessing\.black is"):
        Preprocessing(**levels)


def test_damaged_colours_of_16_bits_are_left_out():
    data = png(RANDOM.integers(0, 65536, (40, 40, 3)).astype(np.uint16))
    with pytest.raises(BadImage):
        to_square(data[: len(data) // 2], Preprocessing(image_size=8, white=4095))


@pytest.mark.parametrize(
    ("bits", "colour"), [(12, False), (10, True), (13, False), (int(RANDOM.integers(9, 14)), True)]
)
def test_one_warning_where_pictures_stay_far_below_white(bits, colour):
    preprocessing, watch = Preprocessing(image_size=9), DepthWatch(Preprocessing())
    for number in range(40):
        values = RANDOM.integers(0, 2**bits, (9, 11, 3) if colour else (9, 11)).astype(np.uint16)
        values.flat[0] = 2**bits - 1
        watch.add([None, open_picture(png(values), preprocessing).info["peak"]])
        sentence = watch.sentence()
        assert (sentence is not None) == (number == 15)
        if sentence:
            assert f"All 16 pictures of more than 8 bits so far stay below {2**bits / 65536:.0%}"[:50] in sentence
            white = int(sentence.rstrip(".").split()[-1])
            assert 2 ** (bits - 1) <= white <= 2**bits - 1
    assert watch.sentence(last=True) is None


def test_no_warning_for_bright_or_plain_pictures():
    watch = DepthWatch(Preprocessing())
    watch.add([0.05] * 30 + [0.9] + [None] * 5)
    assert watch.sentence(last=True) is None
    assert "peak" not in open_picture(np.zeros((20, 20, 3), np.uint8), Preprocessing(image_size=9)).info
    few = DepthWatch(Preprocessing(white=1000))
    few.add([0.01])
    assert few.sentence() is None
    assert few.sentence(last=True).endswith("a lower preprocessing.white than 1000.")

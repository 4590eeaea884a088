"""tokenizer/images.py: unusual and hostile files (made here), the fits and crops, and the way to [-1, 1] and back."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features

from codegrid.tokenizer.images import (
    TEN_CROP,
    TEN_CROP_SCALE,
    BadImage,
    Preprocessing,
    load_image,
    prepare,
    to_model,
    to_pil,
    to_uint8,
    valid_box,
)

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("CODEGRID_SHARED", ROOT.parent / "shared"))
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data) -> str:
    with pytest.raises(BadImage) as caught:
        load_image(data)
    assert str(caught.value).endswith(".")
    return caught.value.reason


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header declares any size; its pixels are a stream of zeros that is as small as zlib makes it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(min(height, 300))) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


# Modes that a plain convert("RGB") gets wrong


def test_sixteen_bits_are_scaled_not_clipped():
    columns = (np.arange(64) * 65535 // 63).astype(np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        image = load_image(encoded(Image.fromarray(np.tile(columns, (8, 1))), kind))
        assert image.mode == "RGB"
        np.testing.assert_allclose(np.asarray(image)[3], np.repeat(columns[:, None] / 257, 3, 1), atol=0.51)


def test_sixteen_bit_transparent_value_is_white():
    values = np.array([[0, 30000, 65535]], dtype=np.uint16)
    image = load_image(encoded(Image.fromarray(values), "PNG", transparency=30000))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255])]
)
def test_float_tiff(values, expected):
    data = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert np.asarray(load_image(data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[0.0, np.nan], [-1.0, 0.0], [0.0, 4000.0]])
def test_grey_of_unknown_range_is_skipped(values):
    assert reason(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")) == "unsupported_depth"


def test_32_bit_integers():
    in_range, beyond = (np.array([[0, 65535 * factor]], dtype=np.int32) for factor in (1, 2))
    assert np.asarray(load_image(encoded(Image.fromarray(in_range), "TIFF")))[0, :, 0].tolist() == [0, 255]
    assert reason(encoded(Image.fromarray(beyond), "TIFF")) == "unsupported_depth"


def test_cmyk_is_not_inverted():
    image = Image.new("CMYK", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (32, 0, 64, 64))
    pixels = np.asarray(load_image(encoded(image, "JPEG", quality=95))).astype(int)
    np.testing.assert_allclose(pixels[16, 16], WHITE, atol=8)
    np.testing.assert_allclose(pixels[16, 48], (0, 255, 255), atol=8)


def test_palette_with_alpha():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 255, 0, 0, 160, 0, 120, 0])
    image.putdata([0, 1, 2])
    pixels = np.asarray(load_image(encoded(image, "PNG", transparency=bytes([0, 128, 255])))).astype(int)
    np.testing.assert_allclose(pixels[0], [WHITE, (127, 127, 207), (0, 120, 0)], atol=2)


def test_grey_with_alpha():
    alpha = (np.arange(64) * 255 // 63).astype(np.uint8)
    data = np.stack([np.full_like(alpha, 40), alpha], -1)[None]
    pixels = np.asarray(load_image(encoded(Image.fromarray(data, "LA"), "PNG"))).astype(int)
    np.testing.assert_allclose(pixels[0, :, 1], 255 - alpha * (215 / 255), atol=2)


def test_colour_below_clear_pixels_does_not_show():
    hidden = Image.fromarray(np.dstack([NOISE, np.zeros((48, 64), np.uint8)]))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.asarray(load_image(encoded(hidden, kind, **options))).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_transparency_in_info(mode):
    black = Image.new(mode, (2, 1), 0)
    black.putpixel((1, 0), WHITE if mode == "RGB" else 255)
    data = encoded(black, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert np.asarray(load_image(data)).min() == 255


def test_one_bit_is_black_and_white():
    image = Image.fromarray(NOISE[:, :, 0] > 127)
    np.testing.assert_array_equal(np.asarray(load_image(encoded(image, "PNG")))[:, :, 2], np.asarray(image) * 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (40, 24), colour) for colour in ((0, 200, 0), (0, 0, 220), (220, 0, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.n_frames == 3
    np.testing.assert_allclose(np.asarray(load_image(data)).reshape(-1, 3), [(0, 200, 0)] * (40 * 24), atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(kind, orientation):
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[:16, 32:], upright[16:, :32] = (200, 30, 30), (30, 160, 60), (40, 60, 200)
    # What a camera in that position stores (EXIF 2.3, tag 0x0112): rows and columns as the orientation names them.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes())
    image = load_image(data)
    assert image.size == (64, 32)
    for x, y in ((8, 8), (56, 8), (8, 24), (56, 24)):
        np.testing.assert_allclose(np.asarray(image)[y, x].astype(int), upright[y, x], atol=12)


def test_broken_exif_loses_nothing():
    data = encoded(Image.fromarray(NOISE), "PNG", exif=b"Exif\0\0no EXIF block at all")
    np.testing.assert_array_equal(np.asarray(load_image(data)), NOISE)


# Files that must be left out


def test_empty_text_and_missing(tmp_path):
    assert reason(b"") == "empty_file"
    assert reason(b"This is no picture.\n" * 20) == "not_an_image"
    (tmp_path / "empty.png").touch()
    assert reason(tmp_path / "empty.png") == "empty_file"
    assert reason(tmp_path) == "unreadable"
    with pytest.raises(FileNotFoundError):
        load_image(str(tmp_path / "none.png"))


def test_formats_that_start_other_programs_are_not_opened():
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n") == "not_an_image"


KINDS = {"PNG": {}, "JPEG": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}, "WEBP": {}}
KINDS |= {"AVIF": {}} if features.check("avif") else {}


@pytest.mark.parametrize("permissive", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_skipped_or_whole(kind, permissive, monkeypatch):
    """Cut anywhere, a file gives every pixel right (the end was no picture data) or is refused: never grey filling."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", permissive)
    data = encoded(Image.fromarray(NOISE), kind, **KINDS[kind])
    whole = np.asarray(load_image(data))
    refused = set()
    for cut in [*range(1, len(data), len(data) // 12), *range(len(data) - 14, len(data))]:
        try:
            np.testing.assert_array_equal(np.asarray(load_image(data[:cut])), whole)
            assert cut > len(data) - 20
        except BadImage as error:
            refused.add(error.reason)
    assert refused <= {"truncated", "unreadable", "not_an_image"}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is permissive


def test_truncated_is_named_so():
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        data = encoded(Image.fromarray(NOISE), kind)
        assert reason(data[: len(data) * 2 // 3]) == "truncated"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"TIFF"}))  # libtiff writes its complaints to stderr
def test_damaged_bytes_raise_nothing_but_bad_image(kind):
    data = encoded(Image.fromarray(NOISE), kind, **KINDS[kind])
    draw = random.Random(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 4, 12])):
            damaged[draw.randrange(draw.choice([40, 200, len(data)]))] = draw.randrange(256)
        try:
            outcomes.add(load_image(bytes(damaged)).mode)
        except BadImage as error:
            outcomes.add(error.reason)
    assert outcomes - {"RGB"}


def test_nothing_pil_can_raise_leaks(monkeypatch):
    def hostile(error):
        def opening(*_, **__):
            raise error

        return opening

    errors = [
        OSError("x"),
        SyntaxError("x"),
        ValueError(),
        EOFError(),
        struct.error("x"),
        MemoryError(),
        zlib.error("x"),
    ]
    for error in [*errors, KeyError("x"), IndexError("x"), TypeError("x"), OverflowError("x"), ZeroDivisionError("x")]:
        monkeypatch.setattr(Image, "open", hostile(error))
        assert reason(b"x") in ("unreadable", "truncated")


@pytest.mark.parametrize("side", [9000, 10_500, 15_000], ids=["ours", "PIL warns", "PIL raises"])
def test_bombs_are_refused_without_a_warning(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(png_of_size(side, side)) == "too_many_pixels"


def test_bomb_needs_little_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_of_size(15_000, 15_000))
    program = """
import resource, sys, types
package = types.ModuleType("tokenizer"); package.__path__ = [sys.argv[1]]  # without transformers: ten seconds less
sys.modules["tokenizer"] = package
from codegrid.tokenizer.images import BadImage, load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_image(sys.argv[2])
except BadImage as error:
    print(error.reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", program, str(ROOT / "tokenizer"), str(tmp_path / "bomb.png")]
    word, mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert word == "too_many_pixels"
    assert float(mib) < 64


def test_pixel_limit_is_the_callers():
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert load_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(BadImage, match=r"10x10.*99") as caught:
        load_image(data, max_pixels=99)
    assert caught.value.reason == "too_many_pixels"


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("too_small", "A sentence.")))
    assert (error.reason, str(error)) == ("too_small", "A sentence.")


@pytest.mark.skipif(not (SHARED / "data" / "bad_images").is_dir(), reason="the project's shared data is not here")
def test_the_shared_bad_images():
    folder = SHARED / "data" / "bad_images"
    for name, expected in json.loads((folder / "expected.json").read_text())["files"].items():
        if expected["action"] == "skip":
            assert reason(folder / name) == expected["reason"], name
            continue
        image = load_image((folder / name).read_bytes())
        assert list(image.size) == expected["size"], name
        for pixel in expected["pixels"]:
            got = image.getpixel((pixel["x"], pixel["y"]))
            assert np.abs(np.subtract(got, pixel["rgb"])).max() <= expected["tolerance"], (name, pixel)


# Preprocessing, prepare


@pytest.mark.parametrize(
    "field", [{"image_size": 0}, {"fit": "cover"}, {"smaller": "no"}, {"max_pixels": 10**12}, {"max_aspect": 0.5}]
)
def test_preprocessing_refuses(field):
    with pytest.raises(ValueError, match=f"preprocessing.{next(iter(field))} is"):
        Preprocessing(**field)


SIZES = [(1, 1), (3, 2), (31, 33), (32, 32), (33, 32), (28, 28), (64, 63), (97, 41), (10, 199), (640, 40), (300, 301)]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_prepared_shape(size, fit):
    image = Image.effect_noise(size, 80).convert("RGB")
    preprocessing = Preprocessing(32, fit, "upscale")
    for channels in (1, 3):
        for crop in ("center", (0.0, 1.0), (0.3, 0.8)):
            plain = prepare(image, preprocessing, channels, crop=crop)
            assert plain.shape == (32, 32, channels)
            assert plain.dtype == np.uint8
            assert plain.flags.writeable
    box = valid_box(size, preprocessing)
    left, top, right, bottom = box
    assert 0 <= left < right <= 32
    assert 0 <= top < bottom <= 32
    whole = prepare(image, preprocessing, 3)
    outside = np.ones((32, 32), bool)
    outside[top:bottom, left:right] = False
    assert whole[outside].max(initial=0) == 0
    mirrored = prepare(image, preprocessing, 3, flip=True)
    np.testing.assert_array_equal(mirrored[top:bottom, left:right], whole[top:bottom, left:right][:, ::-1])


def test_grey_round_trip_is_exact():
    grey = Image.fromarray(NOISE[:32, :32, 0])
    np.testing.assert_array_equal(
        prepare(load_image(encoded(grey, "PNG")), Preprocessing(32), 1)[:, :, 0], np.asarray(grey)
    )


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (31, 17), (20, 32)])
def test_pad_keeps_the_pixels(size):
    pixels = NOISE[: size[1], : size[0]]
    preprocessing = Preprocessing(32, "pad")
    left, top, right, bottom = valid_box(size, preprocessing)
    np.testing.assert_array_equal(prepare(Image.fromarray(pixels), preprocessing, 3)[top:bottom, left:right], pixels)


def test_pad_scales_down_what_is_larger():
    assert valid_box((100, 50), Preprocessing(32, "pad")) == (0, 8, 32, 24)
    assert valid_box((28, 28), Preprocessing(32, "pad")) == (2, 2, 30, 30)
    assert valid_box((100, 50), Preprocessing(32, "crop")) == (0, 0, 32, 32)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_strips_are_skipped_before_any_resize(fit):
    for size in ((1, 2000), (2000, 1)):
        with pytest.raises(BadImage) as caught:
            prepare(Image.new("RGB", size), Preprocessing(64, fit, "upscale"), 3)
        assert caught.value.reason == "extreme_aspect"
    assert prepare(Image.new("RGB", (4, 80)), Preprocessing(64, fit, "upscale"), 3).shape == (64, 64, 3)


def test_small_pictures_are_skipped_with_the_remedy():
    for fit in ("crop", "stretch"):
        with pytest.raises(BadImage, match=r"31x80 pixels.*image_size 32.*smaller to upscale") as caught:
            prepare(Image.new("RGB", (31, 80)), Preprocessing(32, fit), 3)
        assert caught.value.reason == "too_small"
        assert prepare(Image.new("RGB", (32, 80)), Preprocessing(32, fit), 3).shape == (32, 32, 3)


def test_crop_position():
    pixels = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (32, 1, 3))
    image, preprocessing = Image.fromarray(pixels), Preprocessing(32)
    assert prepare(image, preprocessing, 3)[0, 0, 0] == 4
    starts = [prepare(image, preprocessing, 1, crop=(0.0, x / 900))[0, 0, 0] for x in range(901)]
    assert starts == sorted(starts)
    # nine places for nine shares of the fractions: a uniform draw gives a uniform place
    assert np.bincount(starts).tolist() == [101] + [100] * 8


def test_crop_is_antialiased():
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[:, :, None], 3, 2).astype(np.uint8))
    out = prepare(image, Preprocessing(32), 1).astype(int)
    assert np.abs(out - 127.5).max() < 3


def test_ten_crop():
    assert len(set(TEN_CROP)) == 10
    side, large = 32, round(32 * TEN_CROP_SCALE)
    square = Image.fromarray(NOISE).resize((large, large))
    pixels = np.asarray(square)
    room = large - side
    corners = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
    for index, (top, left) in enumerate(corners):
        cut = pixels[top : top + side, left : left + side]
        np.testing.assert_array_equal(prepare(square, Preprocessing(side), 3, crop=index), cut)
        np.testing.assert_array_equal(prepare(square, Preprocessing(side), 3, crop=index + 5), cut[:, ::-1])
        np.testing.assert_array_equal(prepare(square, Preprocessing(side), 3, crop=index, flip=True), cut[:, ::-1])
    wide = Image.fromarray(np.hstack([np.zeros_like(pixels), pixels, np.zeros_like(pixels)]))
    np.testing.assert_array_equal(prepare(wide, Preprocessing(side), 3, crop=3), pixels[room:, room:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 10}, "numbered 0 to 9"),
        ({"crop": -1}, "numbered 0 to 9"),
        ({"crop": (0.5, 1.5)}, "two fractions"),
        ({"crop": "corner"}, "two fractions"),
        ({"channels": 4}, "backbone.in_channels"),
        ({"crop": 0, "preprocessing": Preprocessing(32, "pad")}, 'Ten-crop needs "crop"'),
    ],
)
def test_prepare_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare(Image.new("RGB", (64, 64)), **{"preprocessing": Preprocessing(32), "channels": 3, **arguments})


# [-1, 1]


def test_all_256_values_come_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    images = to_model(values)
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(images), values)


def test_axes_and_numpy():
    pixels = NOISE[None]
    images = to_model(pixels)
    np.testing.assert_allclose(images[0, 2, 5, 7].item(), NOISE[5, 7, 2] / 127.5 - 1, rtol=1e-6)
    np.testing.assert_array_equal(to_uint8(images).numpy(), pixels)
    np.testing.assert_array_equal(pixels[0], NOISE)  # the input is left as it was


def test_to_uint8_clamps_and_rounds():
    values = torch.tensor([-5.0, -1.001, 0.0, 0.0039, 1.2, float("inf")]).reshape(1, 1, 1, 6)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 128, 255, 255]
    kept = values.clone()
    to_uint8(values)
    assert torch.equal(values, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(dtype):
    assert to_uint8(torch.ones(1, 1, 2, 2, dtype=dtype)).unique().tolist() == [255]


def test_to_pil():
    grey, colour = to_pil(to_model(NOISE[None, :, :, :1]))[0], to_pil(to_model(NOISE[None]))[0]
    assert (grey.mode, colour.mode) == ("L", "RGB")
    np.testing.assert_array_equal(np.asarray(colour), NOISE)
    np.testing.assert_array_equal(np.asarray(grey), NOISE[:, :, 0])


def test_tensors_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        to_model(torch.zeros(1, 4, 4, 3))
    with pytest.raises(ValueError, match="uint8"):
        to_model(NOISE)
    with pytest.raises(ValueError, match="floats"):
        to_uint8(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_pil(torch.zeros(1, 2, 4, 4))

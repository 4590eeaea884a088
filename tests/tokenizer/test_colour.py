"""tokenizer/images/colour.py: profiles made here; the result against closed forms and against PIL's own conversion."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from codegrid.tokenizer import VQModelConfig
from codegrid.tokenizer.fields import completed, established, from_dict
from codegrid.tokenizer.images import Preprocessing, load_image, to_square

SRGB, STORED = Preprocessing(image_size=16), Preprocessing(image_size=16, colour="stored")
D65, D50 = np.array([0.95047, 1.0, 1.08883]), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
PRIMARIES = {
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "wide": ((0.734, 0.266), (0.11, 0.82), (0.13, 0.04)),
}


def matrix(primaries) -> np.ndarray:
    """Linear RGB -> XYZ of a space with a white of D65."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


def profile(primaries, gamma: float) -> bytes:
    """A version 2 ICC profile: three primaries, adapted to D50, and one exponent."""
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD
    xyz = [b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in column)) for column in
           [*(adapt @ matrix(primaries)).T, D50]]  # fmt: skip
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"made for a test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    copyright_ = b"text\0\0\0\0" + text
    tags = [(b"desc", description), (b"cprt", copyright_), (b"wtpt", xyz[3]), (b"rXYZ", xyz[0]), (b"gXYZ", xyz[1]),
            (b"bXYZ", xyz[2]), (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)]  # fmt: skip
    return icc(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"made for a test\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in D50))
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    return icc(b"GRAY", [(b"desc", description), (b"cprt", b"text\0\0\0\0" + text), (b"wtpt", white), (b"kTRC", curve)])


def icc(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">2I", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H4s", 2025, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", *(round(v * 65536) for v in D50)) + bytes(48)
    return header + table + body


def in_srgb(colours: np.ndarray, primaries, gamma: float) -> np.ndarray:
    """uint8 [N, 3] by the formulas of IEC 61966-2-1, clipped to its gamut."""
    linear = np.linalg.inv(matrix(PRIMARIES["sRGB"])) @ matrix(primaries) @ ((colours / 255) ** gamma).T
    linear = linear.clip(0, 1).T
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def stored(image: Image.Image, kind: str, icc_profile: bytes | None, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=icc_profile, **options)
    return buffer.getvalue()


RANDOM = np.random.default_rng(20251)
COLOURS = RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)
# a triangle about sRGB's, its corners moved a little
DRAWN = tuple(tuple(xy) for xy in np.array([(0.66, 0.32), (0.22, 0.7), (0.14, 0.05)]) + RANDOM.normal(0, 0.01, (3, 2)))


@pytest.mark.parametrize(
    ("primaries", "gamma", "kind"),
    [
        (PRIMARIES["Adobe RGB"], 2.2, "PNG"),
        (PRIMARIES["Display P3"], 2.2, "TIFF"),
        (PRIMARIES["wide"], 1.8, "WEBP"),
        (DRAWN, float(RANDOM.uniform(1.4, 2.4)), "PNG"),
    ],
)
def test_colours_become_srgb(primaries, gamma, kind):
    gamma = round(gamma * 256) / 256
    made = profile(primaries, gamma)
    data = stored(Image.fromarray(COLOURS), kind, made, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = to_square(data, SRGB)
    by_pil = ImageCms.profileToProfile(
        Image.fromarray(COLOURS), io.BytesIO(made), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    np.testing.assert_array_equal(pixels, by_pil)
    by_formula = in_srgb(COLOURS.reshape(-1, 3), primaries, gamma).reshape(16, 16, 3)
    off = np.abs(pixels - by_formula)
    assert np.median(off) < 1
    assert off.max() < 6  # near black, where eight bits of another exponent are coarse
    assert np.abs(pixels.astype(int) - COLOURS).max() > 8
    np.testing.assert_array_equal(to_square(data, STORED), COLOURS)
    np.testing.assert_array_equal(to_square(Image.open(io.BytesIO(data)), SRGB), pixels)


def test_alpha_is_kept_for_its_white_ground():
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[:, 8:] = 0
    made = profile(PRIMARIES["Adobe RGB"], 2.2)
    pixels = to_square(stored(Image.fromarray(np.dstack([COLOURS, alpha])), "PNG", made), SRGB)
    assert pixels[:, 8:].min() == 255
    np.testing.assert_array_equal(pixels[:, :8], to_square(stored(Image.fromarray(COLOURS), "PNG", made), SRGB)[:, :8])


@pytest.mark.parametrize(("mode", "gamma"), [("L", 1.5), ("LA", 1.8), ("1", 1.0), ("I;16", 2.6)])
def test_grey_profiles(mode, gamma):
    gamma = round(gamma * 256) / 256
    grey = COLOURS[:, :, 0]
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    data = stored(image, "TIFF" if mode == "I;16" else "PNG", grey_profile(gamma))
    values = np.asarray(image.convert("L")) if mode != "I;16" else grey
    wanted = in_srgb(np.repeat(values.reshape(-1, 1), 3, 1), PRIMARIES["sRGB"], gamma).reshape(16, 16, 3)
    np.testing.assert_allclose(to_square(data, SRGB), wanted, atol=3)


def test_a_profile_of_srgb_changes_no_bit():
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(to_square(stored(Image.fromarray(COLOURS), "PNG", made), SRGB), COLOURS)


ADOBE = profile(PRIMARIES["Adobe RGB"], 2.2)
RUINED = bytearray(ADOBE)
for place in np.random.default_rng(8).integers(0, 128, 40):
    RUINED[place] ^= 0xFF


@pytest.mark.parametrize("broken", [b"no profile", ADOBE[:300], bytes(RUINED), ADOBE[:128], grey_profile(1.0)])
def test_a_broken_profile_loses_no_picture(broken):
    """The last one is for grey, on a picture in colour."""
    np.testing.assert_array_equal(to_square(stored(Image.fromarray(COLOURS), "PNG", broken), SRGB), COLOURS)


def test_cmyk_goes_by_its_own_conversion_without_a_profile_of_four_channels():
    image = Image.fromarray(np.dstack([COLOURS, COLOURS[:, :, :1]]), "CMYK")
    plain, tagged = (load_image(stored(image, "TIFF", made), colour="srgb") for made in (None, ADOBE))
    np.testing.assert_array_equal(np.asarray(tagged), np.asarray(plain))


def test_old_tokenizers_keep_the_meaning_of_their_codes():
    saved = {"image_size": 16, "fit": "crop", "smaller": "skip", "max_pixels": 64_000_000, "max_aspect": 20.0}
    old = from_dict(Preprocessing, saved, where="preprocessing")
    assert old.colour == "stored"
    assert established(old) == saved  # so that fingerprints and plans stay
    assert completed(Preprocessing, saved) == {**saved, "colour": "stored"}
    assert "colour" in established(Preprocessing())
    assert VQModelConfig().preprocessing["colour"] == "srgb"
    again = VQModelConfig(preprocessing=json.loads(json.dumps(saved)))
    assert again.preprocessing_config.colour == "stored"
    assert VQModelConfig(preprocessing=again.preprocessing).preprocessing_config.colour == "stored"

"""Row "more bits than eight": the model sees as many levels as the file has, by every format that stores them.

Black and white points of PNG, TIFF and arrays, and the warning: tests/tokenizer/test_depth.py.
"""

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.depth import DepthWatch
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.look import LookConfig, look
from codegrid.tokenizer.images import BadImage, Preprocessing, open_picture, to_square

SEED = 41
SIDE = 16


def pnm(values: np.ndarray, white: int) -> bytes:
    """A PGM or PPM whose header says which value is white."""
    kind = b"P5" if values.ndim == 2 else b"P6"
    height, width = values.shape[:2]
    return kind + f"\n{width} {height}\n{white}\n".encode() + values.astype(">u2").tobytes()


def tiff(values: np.ndarray, zero_is_white: bool) -> bytes:
    """A plain TIFF of 16-bit grey."""
    data = values.astype("<u2").tobytes()
    height, width = values.shape
    numbers = {256: width, 257: height, 258: 16, 259: 1, 262: 1 - zero_is_white, 273: 8, 277: 1, 278: height}
    numbers[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(numbers)) + entries + bytes(4)


def jp2(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG2000", irreversible=False)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def wanted(values: np.ndarray, black: float, white: float) -> np.ndarray:
    grey = np.rint(((values.astype(np.float64) - black) / (white - black)).clip(0, 1) * 255)
    return np.broadcast_to(grey[:, :, None] if grey.ndim == 2 else grey, (SIDE, SIDE, 3))


def drawn_case(seed: int):
    draw = np.random.default_rng(seed)
    bits = int(draw.integers(9, 16))
    black = int(draw.integers(0, 2 ** (bits - 2)))
    kind = draw.choice(["npy int32", "npy float64", "jp2", "tiff"])
    write = {
        "npy int32": lambda values: npy(values.astype(np.int32)),
        "npy float64": lambda values: npy(values.astype(np.float64)),
        "jp2": jp2,
        "tiff": lambda values: tiff(values, False),
    }[kind]
    return f"drawn from {seed}: {kind} of {bits} bits, black {black}", (bits, black, write)


CASES = {
    "a PGM whose header says 4095, read with its white": (12, 0, lambda values: pnm(values, 4095)),
    "a PGM that says 65535 and holds 10 bits": (10, 0, lambda values: pnm(values, 65535)),
    "signed 16 bits in an array": (14, 256, lambda values: npy(values.astype(np.int16))),
    **dict([drawn_case(SEED)]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_white_point_holds_for_the_stored_values(case):
    bits, black, write = CASES[case]
    white = 2**bits - 1
    values = np.random.default_rng(SEED).integers(0, white + 1, (SIDE, SIDE)).astype(np.uint16)
    preprocessing = Preprocessing(image_size=SIDE, white=white, black=black)
    off = np.abs(to_square(write(values), preprocessing).astype(int) - wanted(values, black, white))
    assert off.max() <= 1, case
    peak = open_picture(write(values), preprocessing).info["peak"]
    assert peak == pytest.approx(values.max() / white, abs=1e-3), case


def test_a_header_that_says_its_white_is_right_without_a_white_point():
    values = np.random.default_rng(SEED).integers(0, 1024, (SIDE, SIDE, 3)).astype(np.uint16)
    for given in (values, values[:, :, 0]):
        off = np.abs(to_square(pnm(given, 1023), Preprocessing(image_size=SIDE)).astype(int) - wanted(given, 0, 1023))
        assert off.max() <= 1
    assert (to_square(pnm(values, 1023), Preprocessing(image_size=SIDE, white=1023)) == wanted(values, 0, 1023)).all()
    with pytest.raises(BadImage, match="says itself that 1023 is white"):
        to_square(pnm(values, 1023), Preprocessing(image_size=SIDE, white=4095))


@pytest.mark.parametrize("white", [None, 4095.0])
def test_zero_that_is_white(white):
    """X-rays and scans of print are stored so. Tokenizers of before "srgb" keep what they saw."""
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 16
    preprocessing = Preprocessing(image_size=SIDE, white=white)
    plain, negative = (to_square(tiff(values, zero), preprocessing) for zero in (False, True))
    assert (negative == 255 - plain).all()
    before = Preprocessing(image_size=SIDE, white=white, colour="stored")
    assert (to_square(tiff(values, True), before) == plain).all()


@pytest.mark.parametrize("black", [1.0, 100.0])
def test_black_above_the_white_that_was_found_is_refused(black):
    values = np.random.default_rng(SEED).uniform(0, 1, (SIDE, SIDE))
    with pytest.raises(BadImage, match=r"whose white is 1: preprocessing\.black is .* Set preprocessing\.white"):
        to_square(npy(values), Preprocessing(image_size=SIDE, black=black))


@pytest.mark.parametrize(("white", "peaks", "words"), [
    (1023.0, [4.0] * 20, "20 of 20 .* up to 4.0 times.*higher preprocessing.white than 1023"),
    (1023.0, [0.9] * 12 + [2.5] * 4, None),  # highlights that are cut
    (1023.0, [0.01] * 16 + [3.0] * 20, "20 of 36"),
])  # fmt: skip
def test_a_white_point_that_is_too_low_is_said_once(white, peaks, words):
    watch, said = DepthWatch(Preprocessing(image_size=SIDE, white=white)), []
    for peak in [*peaks[:-1]]:
        watch.add([peak])
    watch.add([peaks[-1], None])
    said = [watch.sentence(), watch.sentence(last=True)]
    if words is None:
        assert said == [None, None]
    else:
        assert re.search(words, said[0])
        assert said[1] is None


def test_look_and_tokenizing_say_it_once(tiny_vqmodel, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    draw = np.random.default_rng(SEED)
    for index in range(18):
        values = draw.integers(0, 4096, (70, 72)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "scans" / f"{index}.png")
    look(LookConfig(DataConfig(str(tmp_path / "scans")), "small64", output=str(tmp_path / "sheet.png")))
    assert capsys.readouterr().out.count("--preprocessing.white 4095") == 1
    tiny_vqmodel.save_pretrained(tmp_path / "tokenizer")
    tokenize_dataset(
        TokenizationConfig(str(tmp_path / "tokenizer"), DataConfig(str(tmp_path / "scans")), str(tmp_path / "codes"))
    )
    assert capsys.readouterr().out.count("All 18 pictures of more than 8 bits") == 1

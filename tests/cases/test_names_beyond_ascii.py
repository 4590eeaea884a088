"""Row "names beyond ASCII": file names keep their letters, pictures write them or the class's number.

Names of files that are read: tests/cases/test_names.py. The demo's classes: tests/pipelines/test_demo.py.
"""

import random
import subprocess
import unicodedata
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.compression import to_files
from codegrid.pipelines.generation.to_folder import _file_name, _file_names
from codegrid.pipelines.pictures import lettering as module
from codegrid.pipelines.pictures import markup
from codegrid.pipelines.pictures.charts import Chart, Series, png, svg
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.pictures.lettering import lettering

WRITTEN = [
    ["Straße", "Ærø", "crème brûlée", "e\u0301te\u0301"],
    ["собака", "σκύλος", "שלום", "قطة", "हिन्दी", "猫と犬", "\U00020bb7"],
    ["a\u202egnp.exe", "tab\there\r\n\x1b[2J", "con", "x" * 900, "../..", "\u200b", "👩‍👩‍👧", ""],
]


def drawn(seed: int) -> list[str]:
    draw = random.Random(seed)
    blocks = [(0x20, 0x7F), (0xA0, 0x500), (0x590, 0x700), (0x900, 0xE80), (0x2000, 0x2070), (0x3040, 0x9FFF), (0, 32)]
    return ["".join(chr(draw.randrange(*draw.choice(blocks))) for _ in range(draw.randrange(1, 90))) for _ in range(8)]


names_of_all = pytest.mark.parametrize(
    "names", [*WRITTEN, drawn(2026), drawn(57)], ids=["w1", "w2", "w3", "seed 2026", "seed 57"]
)


@names_of_all
def test_file_names_keep_letters_marks_and_numbers(names, tmp_path):
    for index, name in enumerate(names):
        file = _file_name(index, name)
        assert len(file.encode()) <= 200, name
        (tmp_path / file).write_bytes(b"")
        stem = file.removesuffix(".png")[6:].lstrip("-")
        assert all(letter == "_" or unicodedata.category(letter)[0] in "LMN" for letter in stem), (name, file)
        kept = [letter for letter in unicodedata.normalize("NFC", name) if unicodedata.category(letter)[0] in "LMN"]
        got = stem.replace("_", "")
        assert "".join(kept).startswith(got), (name, file)
        assert got == "".join(kept) or len(file.encode()) > 170, (name, file)
    assert len(list(tmp_path.iterdir())) == len(names)


@names_of_all
def test_compressed_files_keep_the_end_of_a_name(names, tmp_path):
    for index, name in enumerate(names):
        file = to_files._file_name(index, f"{name}.jpg")
        assert len(file.encode()) <= 200, name
        (tmp_path / file).write_bytes(b"")
        got = file.removesuffix(".cgc")[7:]
        plain = [letter for letter in got if letter not in "_.-"]
        assert all(unicodedata.category(letter)[0] in "LMN" for letter in plain), (name, file)
        letters = unicodedata.normalize("NFC", name)
        kept = [letter for letter in letters if unicodedata.category(letter)[0] in "LMN"] + list("jpg")
        assert plain == kept[len(kept) - len(plain) :], (name, file)
        assert plain == kept or len(file.encode()) > 150, (name, file)
        assert len(plain) == len(kept) or unicodedata.category(plain[0])[0] != "M", (name, file)
    assert len(list(tmp_path.iterdir())) == len(names)
    assert to_files._file_name(7, "0/disc (1)_a-b.png") == "000007-0_disc_1_a-b.png.cgc"


def test_ascii_names_and_pictures_of_version_0_1_keep_their_names(tmp_path):
    assert _file_name(7, "light bulb (on)") == "000007-light_bulb_on.png"
    (tmp_path / "000000-cr_me.png").write_bytes(b"")
    assert _file_names(tmp_path, ["crème", "crème"], 2) == ["000000-cr_me.png", "000001-crème.png"]
    assert _file_names(tmp_path, None, 1) == ["000000.png"]


@names_of_all
@pytest.mark.parametrize("fonts", ["the system's", "none"])
def test_pictures_have_the_letters_or_the_number(names, fonts, monkeypatch):
    module._font_file.cache_clear()
    if fonts == "none":
        monkeypatch.setattr(module, "_USUAL", ())
        monkeypatch.setattr(module.shutil, "which", lambda name: None)
    for number, name in enumerate(names):
        written = lettering(name, 14, 240, stand_in=str(number))
        assert written.width <= 240, name
        lacking = module._drawn(written.font, module._NO_LETTER)
        boxes = [letter for letter in written.text if module._is_drawn(letter)]
        assert all(module._drawn(written.font, letter) != lacking for letter in boxes), (name, written.text)
        assert not any(unicodedata.category(letter) == "Cc" or letter == "\u202e" for letter in written.text), name
        if fonts == "none" and any(ord(letter) > 0x2FF for letter in name) and "\u202e" not in name:
            assert written.text == str(number), name
    images = [Image.new("RGB", (16, 16), "red") for _ in names]
    sheet = class_sheet(images, names, range(len(names)))
    assert sheet.width <= 240 + 12 + 66 * len(names)
    module._font_file.cache_clear()


@names_of_all
def test_charts_and_pages_have_no_marks_and_no_tags(names):
    series = [Series(name, [(0, 1.0), (5, 2.0)]) for name in names]
    chart = Chart(f"<b>{names[0]}", names[-1], series)
    root = ET.fromstring(svg(chart))  # control characters are no XML
    ends = [float(node.get("x")) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert max(ends) <= 360, names
    assert png([chart]).size == (720, 460)
    page = markup.page(names[0], "<script>", [(name, markup.paragraph(name)) for name in names])
    assert "<script>" not in page
    assert not set(page) & set("\u202e\x1b\t\r"), names


def test_the_letters_are_drawn_where_a_font_has_them():
    written = lettering("собака", 14, stand_in="3")
    try:
        command = ["fc-list", ":charset=441 43e 431 430 43a", "file"]
        has = bool(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    except FileNotFoundError:
        has = False
    assert written.text == "собака" or (written.text == "3" and not has)
    pixels = np.asarray(class_sheet([Image.new("RGB", (64, 64))], ["собака"], [3]))
    assert (pixels[:, :12] < 128).any()

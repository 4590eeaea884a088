"""pipelines/data/duplicates.py: pictures that are in both parts, and where a user reads of them."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from codegrid.pipelines.data import duplicates
from codegrid.pipelines.data.duplicates import Overlap, find_overlap
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import split_images
from codegrid.pipelines.evaluation.run_pictures import choose_pictures
from codegrid.pipelines.evaluation.tokenizer import evaluate_tokenizer
from codegrid.pipelines.training.look import LookConfig, look
from codegrid.pipelines.training.tokenizer import overlap
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer.images import Preprocessing


def motif(seed: int, side: int = 64) -> Image.Image:
    """A colour picture of large soft shapes."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)


def recoded(image: Image.Image, quality: int = 60) -> Image.Image:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=quality)
    return Image.open(held)


CHANGES = {
    "recoded": recoded,
    "smaller": lambda image: image.resize((40, 40), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.08),
}


def parts(folder, train, val):
    for split, images in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True)
        for name, image in images.items():
            image.save(folder / split / f"{name}.png")
    return split_images(DataConfig(str(folder), validation_split="val"))


def overlap_of(folder, train, val, size=64) -> Overlap:
    return find_overlap(*parts(folder, train, val), Preprocessing(size, smaller="upscale"), 3)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", [1, 2, 3, 20261126])
def test_a_changed_copy_is_nearly_identical(change, seed, tmp_path):
    train = {f"t{index}": motif(seed + index) for index in range(20)}
    val = {"copy": CHANGES[change](motif(seed + 7)), "other": motif(seed + 1000)}
    found = overlap_of(tmp_path, train, val)
    assert (found.identical, found.similar) == (0, 1), seed
    assert found.examples == (("val/copy.png", "train/t7.png"),), seed


def test_the_same_pixels_in_another_file_are_identical(tmp_path):
    train = {f"t{index}": motif(index) for index in range(5)}
    found = overlap_of(tmp_path, train, {"a": motif(2), "b": motif(50), "c": recoded(motif(3))})
    motif(2).save(tmp_path / "val" / "a.png", compress_level=0)
    again = find_overlap(
        *split_images(DataConfig(str(tmp_path), validation_split="val")), Preprocessing(64, smaller="upscale"), 3
    )
    assert found == again
    assert (found.identical, found.similar) == (1, 1)
    assert found.examples == (("val/a.png", "train/t2.png"), ("val/c.png", "train/t3.png"))
    assert "1 identical and 1 nearly so of 3 held-out pictures, compared with 5 training pictures" in found.sentence()
    assert "--data.validation-split" in found.sentence()


def test_blank_pictures_are_duplicates_only_with_the_same_pixels(tmp_path):
    blank = {str(grey): Image.new("RGB", (64, 64), (grey,) * 3) for grey in (0, 1, 100, 255)}
    val = {"x": Image.new("RGB", (64, 64), (101, 100, 100)), "y": Image.new("RGB", (64, 64), (255,) * 3)}
    found = overlap_of(tmp_path, blank, val)
    assert (found.identical, found.similar) == (1, 0)
    assert found.examples == (("val/y.png", "train/255.png"),)


def test_another_colour_is_another_picture(tmp_path):
    red, blue = (Image.merge("RGB", bands) for bands in _bands())
    assert overlap_of(tmp_path, {"red": red}, {"blue": blue}).similar == 0


def _bands():
    grey, black = motif(5).convert("L"), Image.new("L", (64, 64))
    return (grey, black, black), (black, black, grey)


def test_a_bounded_share_is_compared_and_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_HELD_OUT", 4)
    monkeypatch.setattr(duplicates, "_MOST_TRAINING", 3)
    for index in range(60):  # takes of one motif lie beside each other
        motif(index // 3).save(tmp_path / f"{index:03}.png")
    train, held_out = split_images(DataConfig(str(tmp_path), validation_fraction=0.2))
    found = find_overlap(train, held_out, Preprocessing(64), 3)
    assert (found.held_out, found.num_held_out, found.num_training) == (4, 12, 48)
    assert found.training <= 11
    assert found.identical == 4, "the neighbours are compared"
    assert f"4 of 12 held-out pictures, compared with {found.training} of 48 training pictures" in found.sentence()
    monkeypatch.setattr(duplicates, "_MOST_PIXELS", 2 * 64 * 64)
    fewer = find_overlap(train, held_out, Preprocessing(64), 3)
    assert (fewer.held_out, fewer.training) == (2, 2)


def test_pictures_that_cannot_be_used_are_not_compared(tmp_path):
    train, val = parts(tmp_path, {"a": motif(1)}, {"b": motif(1), "c": motif(2)})
    (tmp_path / "val" / "c.png").write_bytes(b"no picture")
    found = find_overlap(train, val, Preprocessing(64), 3)
    assert (found.held_out, found.num_held_out, found.identical) == (1, 2, 1)
    (tmp_path / "train" / "a.png").write_bytes(b"no picture")
    assert (
        "none of 1 of 2 held-out pictures, compared with 0 of 1"
        in find_overlap(train, val, Preprocessing(64), 3).sentence()
    )


@pytest.fixture
def doubled(pictures, tmp_path):
    """The pictures, each twice."""
    folder = shutil.copytree(pictures, tmp_path / "doubled")
    for path in sorted(folder.rglob("*.png")):
        shutil.copy(path, path.with_stem(f"{path.stem}-again"))
    return folder


def test_look_says_it(doubled, tmp_path, capsys):
    look(LookConfig(DataConfig(str(doubled), validation_fraction=0.3), output=str(tmp_path / "sheet.png")))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Duplicates: ")]
    assert "nearly so of 11 held-out pictures, compared with 25 training pictures" in line
    assert "-again.png" in line
    look(LookConfig(DataConfig(str(doubled), validation_fraction=0), output=str(tmp_path / "sheet.png")))
    assert "Duplicates" not in capsys.readouterr().out


def test_a_run_and_its_evaluation_say_and_keep_it(doubled, tokenizer_config, tmp_path, capsys):
    data = DataConfig(str(doubled), validation_fraction=0.2)
    config = tokenizer_config(tmp_path / "run", data=data)
    run = train_tokenizer(config)
    said = [line for line in capsys.readouterr().out.splitlines() if "Duplicates: " in line]
    kept = json.loads((run / "duplicates.json").read_text())
    assert f"  Duplicates: {kept['identical']} identical" in said[0]
    assert kept["identical"] > 0
    options = {"feature_net": "none", "lpips": "none", "batch_size": 4}
    folder = evaluate_tokenizer(str(run), DataConfig(str(doubled)), str(tmp_path / "scores"), **options)
    record = json.loads((folder / "reconstruction.json").read_text())
    assert record["duplicates"] == {name: value for name, value in kept.items() if name != "fingerprints"}
    assert any(note.startswith("Duplicates: ") for note in record["notes"])
    assert "Duplicates: " in (run / "README.md").read_text()
    assert choose_pictures(DataConfig(str(doubled)), str(run), "training").training is None


def test_a_resumed_run_does_not_compare_again(pictures, tokenizer_config, tmp_path, monkeypatch, capsys):
    train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=1))
    calls = []
    monkeypatch.setattr(overlap, "find_overlap", lambda *arguments: calls.append(arguments) or find_overlap(*arguments))
    train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=2))
    assert not calls
    assert "Duplicates: none of 4 held-out pictures" in capsys.readouterr().out
    (tmp_path / "run" / "duplicates.json").write_text("{}")
    train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=3))
    assert len(calls) == 1


def test_one_picture_has_nothing_to_compare(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    motif(1).save(tmp_path / "in" / "1.png")
    look(LookConfig(DataConfig(str(tmp_path / "in")), output=str(tmp_path / "sheet.png")))
    assert "Duplicates" not in capsys.readouterr().out

"""Row "folders that look like splits, or lie one level deeper": a folder whose meaning is known is built, and read.

More of it: tests/pipelines/data/test_layouts.py, test_layouts_documented.py.
"""

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images

BUFFER = io.BytesIO()
Image.new("RGB", (4, 4)).save(BUFFER, "PNG")
CLASSES = ("ape", "bee", "Ziege", "鳥", "03", "black_cat")


def planted(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(BUFFER.getvalue())
    return root


def read(root: Path, **fields) -> tuple[list[str], list[str] | None]:
    source = open_images(DataConfig(str(root), **fields))
    return source.names(), source.class_names


@pytest.mark.parametrize(
    ("train", "test"),
    [("trainA", "testA"), ("clean-train-2", "clean-test-2"), ("TRAIN_IMAGES", "valid_images")],
)
def test_written_splits_are_not_trained_on_as_classes(tmp_path, train, test):
    """Folders that differ in the word of a split alone: read as splits, or refused with both readings."""
    planted(tmp_path, f"{train}/1.png", f"{train}/2.png", f"{test}/3.png")
    told = None
    try:
        found = read(tmp_path)
    except DataError as error:
        told = str(error)
        found = read(tmp_path, top_folders="splits", split=train)
    assert told is None or all(word in told for word in (train, test, "data.top_folders"))
    assert found == ([f"{train}/1.png", f"{train}/2.png"], None)
    assert read(tmp_path, top_folders="classes")[1] == sorted([train, test])


def test_classes_whose_names_hold_such_words_are_classes(tmp_path):
    planted(tmp_path, "test_tube/1.png", "bullet_train/2.png", "training shoes/3.png", "evaluation form/4.png")
    assert read(tmp_path)[1] == ["bullet_train", "evaluation form", "test_tube", "training shoes"]


@pytest.mark.parametrize("seed", [11, 12, 13, 20261126])
def test_drawn_folders(tmp_path, seed):
    """Splits in any spelling, with or without classes, wrapped or beside others."""
    draw = random.Random(seed)
    for number in range(8):
        root = tmp_path / str(number)
        style = draw.choice([str.lower, str.upper, str.title])
        before, after = draw.choice(["", "img_", "01-"]), draw.choice(["", "2012", "_split", "Set", "-images"])
        train = before + style(draw.choice(["train", "training"])) + after
        test = before + style(draw.choice(["test", "val", "validation", "testing"])) + after
        classes = draw.sample(CLASSES, draw.randrange(2, 4)) if draw.random() < 0.7 else [""]
        wanted = sorted(f"{train}/{name}/{index}.png".replace("//", "/") for name in classes for index in range(2))
        other = [f"{test}/{name}/9.png".replace("//", "/") for name in classes]
        wrap = draw.choice(["", "", "DATA", "archive/images"])
        beside = draw.choice(["", "", "misc/1.png", "loose.png"])
        below = root / wrap
        planted(below, *wanted, *other, *([beside] if beside else []))
        what = f"seed {seed}, {number}: {sorted(str(path.relative_to(root)) for path in root.rglob('*.png'))}"
        if wrap:  # one folder around all is one class, or none of ours to open
            with pytest.raises(DataError) as caught:
                read(root)
            assert f"{root}/{wrap}" in str(caught.value) or train in str(caught.value), what
        if beside:
            with pytest.raises(DataError) as caught:
                read(below)
            assert train in str(caught.value), what
            assert "data.top_folders" in str(caught.value), what
        elif classes == [""]:
            assert read(below) == (wanted, None), what
        else:
            assert read(below) == (wanted, sorted(classes)), what

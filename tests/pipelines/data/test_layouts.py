"""Folders of pictures: which are splits, which are classes, and what is asked where both can be meant."""

import io
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.layouts import find_split, split_kind
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, PicturesConfig
from codegrid.pipelines.data.sources import open_images, split_images
from codegrid.prior.codes import open_codes
from codegrid.tokenizer.images import HAS_HEIF, load_image


def picture(value: int = 1, kind: str = "PNG", size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    return root


def opened(root: Path, **fields) -> ImageSource:
    return open_images(DataConfig(str(root), **fields))


def names_of(source: ImageSource) -> list[str]:
    return [record.source_id for record in source]


def error_of(root: Path, **fields) -> str:
    with pytest.raises(DataError) as caught:
        opened(root, **fields)
    return str(caught.value)


# Splits by their names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TRAINING", "train"),
        ("train-set", "train"),
        ("TrainImages", "train"),
        ("02_validation", "validation"),
        ("Dev 2", "validation"),
        ("img_val_2014", "validation"),
        ("testset", "test"),
        ("eval", "test"),
        ("trainer", None),
        ("training shoes", None),
        ("test_tube", None),
        ("valley", None),
        ("images", None),
        ("2017", None),
        ("поезд", None),
    ],
)
def test_names_of_splits(name, kind):
    assert split_kind(name) == kind


@pytest.mark.parametrize(
    ("train", "validation"), [("TRAINING", "Dev"), ("trainset", "valset"), ("images-train", "images-val")]
)
def test_written_splits(tmp_path, train, validation):
    plant(tmp_path, f"{train}/ape/1.png", f"{train}/bee/2.png", f"{validation}/bee/3.png")
    first, second = split_images(DataConfig(str(tmp_path), validation_split="val"))
    assert names_of(first) == [f"{train}/ape/1.png", f"{train}/bee/2.png"]
    assert names_of(second) == [f"{validation}/bee/3.png"]
    assert first.class_names == second.class_names == ["ape", "bee"]
    assert first.understood.splits == {train: 2, validation: 1}


def test_drawn_splits(tmp_path):
    """However the words are written, the pictures of the test folder are not trained on."""
    random.seed(3)
    for number in range(20):
        words = {"train": ["train", "training"], "test": ["test", "testing", "eval"]}
        style = random.choice([str.upper, str.title, str.lower])
        mark = random.choice(["", "2017", "_split", "-set", " 1", "_images"])
        train, test = (style(random.choice(words[kind])) + mark for kind in ("train", "test"))
        root = plant(tmp_path / str(number), f"{train}/ape/1.png", f"{train}/bee/2.png", f"{test}/ape/3.png")
        assert names_of(opened(root)) == [f"{train}/ape/1.png", f"{train}/bee/2.png"]
        assert names_of(opened(root, split="test")) == [f"{test}/ape/3.png"]


def test_a_split_is_found_by_its_kind_or_asked_for():
    assert find_split("val", ["Validation", "train"], "x") == "Validation"
    assert find_split("TRAIN", ["train", "train2"], "x") == "train"
    with pytest.raises(DataError, match=r"only one of its kind \(train2014, train2017\). Choose data.split among"):
        find_split("train", ["train2014", "train2017", "val2017"], "x")
    with pytest.raises(DataError, match=r"no split 'other'. Choose data.split among train."):
        find_split("other", ["train"], "x")


# Mixtures


@pytest.mark.parametrize(
    "folders",
    [
        ("train/ape", "train/bee", "extra/ape"),
        ("bus", "car", "train"),  # a means of transport
        ("Test/ape", "Test/bee", "gallery/ape"),
        ("dev", "test"),
    ],
)
def test_mixtures_are_asked_about(tmp_path, folders):
    plant(tmp_path, *(f"{folder}/1.png" for folder in folders))
    message = error_of(tmp_path)
    assert "set data.top_folders to splits or to classes" in message
    assert error_of(tmp_path, label_column="none") == message  # which pictures are read hangs on it, too
    tops = sorted({folder.partition("/")[0] for folder in folders})
    assert opened(tmp_path, top_folders="classes").class_names == tops
    for top in tops:
        one = opened(tmp_path, top_folders="splits", split=top)
        assert {name.partition("/")[0] for name in names_of(one)} == {top}


def test_drawn_mixtures(tmp_path):
    random.seed(9)
    for number in range(15):
        splits = random.sample(["train", "Val", "test2017", "valid", "eval"], random.randrange(1, 4))
        others = random.sample(["unlabelled", "background", "zebra", "misc", "backup"], random.randrange(1, 3))
        root = plant(tmp_path / str(number), *(f"{folder}/x/1.png" for folder in splits + others))
        message = error_of(root)
        assert all(name in message for name in splits + others)


def test_a_folder_of_test_pictures_by_its_split(tmp_path):
    plant(tmp_path, "dev/ape/1.png", "dev/bee/1.png", "test/ape/2.png")
    assert names_of(opened(tmp_path, split="test")) == ["test/ape/2.png"]


def test_an_unknown_choice():
    with pytest.raises(DataError, match="must be auto, splits or classes"):
        DataConfig("x", top_folders="folders")


# One level deeper


@pytest.mark.parametrize("inner", [("red", "blue"), ("train", "test"), ("Val_2", "x")])
@pytest.mark.parametrize("wrap", ["images", "download/images"])
def test_a_folder_around_all(tmp_path, wrap, inner):
    plant(tmp_path, *(f"{wrap}/{name}/1.png" for name in inner))
    message = error_of(tmp_path)
    assert f"give {tmp_path}/{wrap} as data.source" in message
    assert opened(tmp_path, top_folders="classes").class_names == [wrap.partition("/")[0]]
    if inner == ("red", "blue"):
        assert opened(tmp_path, label_column="none").class_names is None
        assert opened(tmp_path / wrap).class_names == ["blue", "red"]
    else:
        assert error_of(tmp_path, label_column="none") == message  # test pictures would be trained on


def test_one_class_is_one_class(tmp_path):
    assert opened(plant(tmp_path / "a", "ape/1.png", "ape/2.png")).class_names == ["ape"]
    assert opened(plant(tmp_path / "b", "ape/x/1.png", "ape/x/2.png")).class_names == ["ape"]
    assert opened(plant(tmp_path / "c", "ape/1.png", "ape/x/2.png")).class_names == ["ape"]
    assert opened(plant(tmp_path / "d", "train/ape/1.png")).class_names == ["ape"]


def test_a_folder_around_the_classes_of_a_split(tmp_path):
    plant(tmp_path, "train/images/ape/1.png", "train/images/bee/1.png", "val/images/ape/1.png", "val/images/bee/2.png")
    assert f"give {tmp_path}/train/images as data.source" in error_of(tmp_path)
    assert opened(tmp_path, top_folders="splits").class_names == ["images"]


def test_splits_inside_of_classes(tmp_path):
    plant(tmp_path, *(f"{kind}/{split}/1.png" for kind in ("bottle", "cable") for split in ("train", "test")))
    assert "bottle holds test, train" in error_of(tmp_path)
    assert len(opened(tmp_path, top_folders="classes")) == 4


# Files


def test_files_without_a_suffix_are_read_by_their_first_bytes(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        (tmp_path / kind).write_bytes(picture(7, kind))
    (tmp_path / "frame.0042").write_bytes(picture(7))
    (tmp_path / "dot.").write_bytes(picture(7))
    (tmp_path / "LICENSE").write_text("BMW owners may PNG")
    (tmp_path / "Makefile").write_bytes(b"P\n")
    (tmp_path / "empty").touch()
    source = opened(tmp_path)
    assert names_of(source) == ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "dot.", "frame.0042"]
    assert {load_image(record.data).size for record in source} == {(4, 4)}
    assert source.understood.unread == {"no suffix": 3}


def test_what_is_not_read_is_counted_by_suffix(tmp_path):
    plant(tmp_path, "1.png")
    counts = {".psd" if HAS_HEIF else ".heic": 3, ".jxl": 2, ".svg": 1, ".npy": 4, ".txt": 1}
    for suffix, count in counts.items():
        for index in range(count):
            (tmp_path / f"{index}{suffix.upper() if index % 2 else suffix}").write_bytes(b"something")
    assert opened(tmp_path).understood.unread == counts


# Links


def test_links_are_followed_where_asked(tmp_path):
    store, root = plant(tmp_path / "store", "ape/1.png", "bee/2.png", "3.png"), tmp_path / "root"
    root.mkdir()
    for kind in ("ape", "bee"):
        (root / kind).symlink_to(store / kind, target_is_directory=True)
    (root / "ape2").mkdir()
    (root / "ape2" / "x.png").symlink_to(store / "3.png")
    (root / "ape2" / "around").symlink_to(root, target_is_directory=True)
    (root / "ape2" / "gone.png").symlink_to(store / "nothing.png")
    message = error_of(root)
    assert "4 links were left alone: --data.follow-links reads them" in message
    source = opened(root, follow_links=True)
    assert names_of(source) == ["ape/1.png", "ape2/x.png", "bee/2.png"]
    assert source.class_names == ["ape", "ape2", "bee"]
    assert source.understood.unread == {"dead link": 1}
    assert all(load_image(record.data).size == (4, 4) for record in source)


def test_circles_of_links_end(tmp_path):
    for name in "ab":
        plant(tmp_path, f"{name}/1.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a", target_is_directory=True)
    assert names_of(opened(tmp_path, follow_links=True)) == ["a/1.png", "a/b/1.png", "b/1.png", "b/a/1.png"]


# Names of any bytes


STRANGE = [b"caf\xe9.png", b"two\nlines.png", "\u202egnp.png".encode(), rb"like \xe9.png", "日本.png".encode()]


def strange_folder(root: Path, names: list[bytes]) -> Path:
    for kind in (b"cl\xe4ss", b"plain"):
        folder = os.path.join(os.fsencode(root), kind)
        os.makedirs(folder)
        for index, name in enumerate(names):
            with open(os.path.join(folder, name), "wb") as handle:
                handle.write(picture(index, size=24))
        with open(os.path.join(folder, b"bad \xff.png"), "wb") as handle:
            handle.write(b"no picture")
    return root


@pytest.mark.parametrize("kind", ["written", "drawn"])
def test_names_of_any_bytes_are_tokenized(tmp_path, tokenizer_folder, kind, capsys):
    random.seed(21)
    names = STRANGE
    if kind == "drawn":
        letters = [byte for byte in range(1, 256) if byte != ord("/")]
        names = [b"n" + bytes(random.choices(letters, k=9)) + b"%d.png" % index for index in range(6)]
    root = strange_folder(tmp_path / "pictures", names)
    config = TokenizationConfig(
        str(tokenizer_folder), DataConfig(str(root)), str(tmp_path / "codes"), images_per_shard=4, device="cpu"
    )
    codes = tokenize_dataset(config)
    manifest = open_codes(codes).manifest
    assert (manifest.num_images, manifest.num_skipped) == (2 * len(names), 2)
    assert manifest.class_names == (r"cl\xe4ss", "plain")
    assert r"bad \xff.png" in (codes / "skipped.jsonl").read_text().replace("\\\\", "\\")
    verify_codes(VerificationConfig(str(codes), str(tokenizer_folder), PicturesConfig(str(root)), num_samples=0))
    tokenize_dataset(config)
    assert "finished already" in capsys.readouterr().out


def test_a_root_of_any_bytes(tmp_path, capsys):
    root = os.path.join(os.fsencode(tmp_path), b"p\xeftures")
    os.makedirs(root)
    with open(os.path.join(root, b"1.png"), "wb") as handle:
        handle.write(picture())
    source = opened(os.fsdecode(root))
    print(source.description)
    assert r"p\xeftures: 1 images" in capsys.readouterr().out
    train, held_out = split_images(DataConfig(os.fsdecode(root), validation_fraction=0))
    assert (len(train), held_out) == (1, None)

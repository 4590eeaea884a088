"""WebDataset, tables, metadata files and folders of save_to_disk: which field is the picture, which the label."""

import io
import json
import math
import random
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource, sha256
from codegrid.pipelines.data.sources import open_image_stream, open_images, split_images
from codegrid.pipelines.data.tables import _file_mark
from codegrid.pipelines.data.understood import describe_source
from codegrid.tokenizer.images import load_image


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def opened(source: Path, **fields) -> ImageSource:
    return open_images(DataConfig(str(source), **fields))


def error_of(source: Path, **fields) -> str:
    with pytest.raises(DataError) as caught:
        opened(source, **fields)
    return str(caught.value)


def values_of(source: ImageSource) -> list[int]:
    return [load_image(record.data).getpixel((0, 0))[0] for record in source]


def labels_of(source: ImageSource) -> list[int | None]:
    return [record.label for record in source]


def rows(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [picture(value) for value in range(size)], **columns}), path)
    return path


# WebDataset


def test_pictures_of_several_kinds(tmp_path):
    members = {"a.jpg": picture(10, "JPEG"), "a.cls": b"1", "b.png": picture(20), "b.cls": b"0"}
    source = opened(write_tar(tmp_path / "x.tar", {**members, "c.webp": picture(30, "WEBP"), "c.cls": b""}))
    assert [round(value, -1) for value in values_of(source)] == [10, 20, 30]
    assert labels_of(source) == [1, 0, None]
    assert [record.source_id for record in source] == ["x.tar:0:a", "x.tar:1:b", "x.tar:2:c"]


def test_labels_of_dotted_names(tmp_path):
    members = {"s1.crop.png": picture(1), "s1.crop.cls": b"4", "s2.full.png": picture(2), "s2.cls": b"2"}
    assert labels_of(opened(write_tar(tmp_path / "x.tar", members))) == [4, 2]


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        (("jpg", "depth.png"), "jpg"),
        (("seg.png", "image.png"), "image.png"),
        (("png", "jpg"), None),
        (("left.png", "right.png"), None),
        (("image.png", "img.png"), None),
    ],
)
def test_several_pictures_in_a_sample(tmp_path, fields, taken):
    members = {f"{key}.{name}": picture(place) for key in "ab" for place, name in enumerate(fields)}
    path = write_tar(tmp_path / "x.tar", members)
    if taken:
        source = opened(path)
        assert values_of(source) == [fields.index(taken)] * 2
        assert source.understood.pictures == f"field {taken}"
        assert source.understood.pictures_left == tuple(name for name in fields if name != taken)
    else:
        assert f"has 2 pictures: {', '.join(fields)}. Name the field" in error_of(path)
        assert ("cut at its first dot" in error_of(path)) == ("." in fields[0])
    for place, name in enumerate(fields):
        assert values_of(opened(path, image_column=name)) == [place] * 2
    assert "no field 'photo' for data.image_column" in error_of(path, image_column="photo")


def test_drawn_samples(tmp_path):
    """Each picture is that of its name, with its label, whatever kinds and orders the samples have."""
    random.seed(31)
    for number in range(10):
        members, truth = {}, []
        for sample in range(random.randrange(1, 8)):
            key, label = f"dir{random.randrange(2)}/k{sample}", random.randrange(4)
            parts = {f"{key}.{random.choice(['png', 'gif', 'bmp', 'tiff'])}": picture(sample)}
            parts[f"{key}.json"] = json.dumps({"label": label, "caption": "x.y"}).encode()
            if random.random() < 0.5:
                parts[f"{key}.txt"] = b"a caption"
            names = random.sample(sorted(parts), len(parts))
            members.update({name: parts[name] for name in names})
            truth.append((sample, label))
        formats = {"gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
        for name in members:
            if (kind := formats.get(name.rpartition(".")[2])) is not None:
                members[name] = picture(int(name.rpartition("/k")[2].partition(".")[0]), kind)
        source = opened(write_tar(tmp_path / f"{number}.tar", members))
        assert list(zip(values_of(source), labels_of(source), strict=True)) == truth
        assert source.understood.labels == "field json.label"


def test_samples_without_a_picture(tmp_path):
    members = {"a.txt": b"x", "b.png": picture(5), "c.json": b"{}", ".hidden.png": b"", "README": b""}
    source = opened(write_tar(tmp_path / "x.tar", members))
    assert values_of(source) == [5]
    assert source[0].source_id == "x.tar:1:b"
    assert source.understood.notes == ("2 samples without a picture are left out",)
    assert "has no pictures in split train" in error_of(write_tar(tmp_path / "y.tar", {"a.txt": b"x"}))


def test_names_in_a_tar_of_any_bytes(tmp_path):
    members = {b"caf\xe9.png".decode("utf-8", "surrogateescape"): picture(1), "new\nline.png": picture(2)}
    source = opened(write_tar(tmp_path / "x.tar", members))
    assert [record.source_id for record in source] == [r"x.tar:0:caf\xe9", r"x.tar:1:new\x0aline"]
    assert source.reader.names() == [record.source_id for record in source]


def test_a_field_that_is_asked_for(tmp_path):
    members = {"a.png": picture(1), "a.json": b'{"kind": "cat", "id": 1}', "a.index": b"7"}
    path = write_tar(tmp_path / "x.tar", members)
    assert opened(path).class_names is None
    for column in ("kind", "json.kind"):
        assert opened(path, label_column=column).class_names == ["cat"]
    assert labels_of(opened(path, label_column="index")) == [7]
    assert "no field 'name' for data.label_column" in error_of(path, label_column="name")


def test_a_tar_that_is_not_whole(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.png": picture(1), "b.png": picture(2) + bytes(4000)})
    path.write_bytes(path.read_bytes()[:3000])
    assert "stops in the middle of b.png" in error_of(path)
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    assert "not compressed" in error_of(tmp_path / "z.tar")
    assert "a.png twice" in error_of(_twice(tmp_path / "t.tar"))


def _twice(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.png"))
    return path


def test_a_tar_keeps_the_fingerprint_that_it_had(tmp_path):
    """As 0.1.0 made it, where it was read through `datasets`: code data sets of it can be gone on with."""
    path = write_tar(tmp_path / "x.tar", {"a.png": picture(1), "a.cls": b"0", "b.png": picture(2), "b.cls": b"1"})
    marks = ["default", ("train", *_file_mark(str(path)))]
    assert opened(path).fingerprint == sha256("train", marks, "png", "cls", ["0", "1"])
    assert opened(path).description == f"{path}: 2 images in 2 classes (split train, column png, labels cls)"


def test_a_stream_of_tars_is_the_same(tmp_path):
    for number in range(2):
        members = {f"{number}{key}.png": picture(number) for key in "ab"}
        write_tar(tmp_path / f"part-{number}.tar", members)
    stream = open_image_stream(DataConfig(str(tmp_path), streaming=True))
    assert not hasattr(stream, "__len__")
    assert list(stream) == list(opened(tmp_path))


# Columns of pictures


def pictures_table(path: Path, *names: str, **plain: list) -> Path:
    """A table whose columns `names` are typed as pictures; the n-th has the value n."""
    features = {name: datasets.Image() for name in names}
    columns = {name: [{"bytes": picture(place), "path": None}] * 2 for place, name in enumerate(names)}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features)).data.table
    for name, values in plain.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("mask", "image"), 1),
        (("edited", "source", "image"), 2),
        (("conditioning", "img"), 1),
        (("left", "right"), None),
        (("img", "picture"), None),
        (("photo",), 0),
    ],
)
def test_several_columns_of_pictures(tmp_path, names, taken):
    path = pictures_table(tmp_path / "x.parquet", *names)
    if taken is None:
        assert f"has 2 columns of images: {', '.join(names)}. Say with data.image_column" in error_of(path)
        taken = 0
    source = opened(
        path, image_column=None if len(names) == 1 or "image" in names or "conditioning" in names else names[0]
    )
    assert values_of(source) == [taken] * 2
    assert source.understood.pictures_left == tuple(name for name in names if name != names[taken])


def test_a_stored_image_beside_a_typed_mask(tmp_path):
    path = pictures_table(tmp_path / "x.parquet", "mask", image=[picture(9), picture(8)])
    assert values_of(opened(path)) == [9, 8]


def test_drawn_columns(tmp_path):
    """Whatever stands first, the one called image is taken."""
    random.seed(8)
    for number in range(6):
        others = random.sample(["mask", "depth", "thumb", "jpg", "before"], random.randrange(1, 4))
        names = random.sample([*others, "image"], len(others) + 1)
        path = pictures_table(tmp_path / f"{number}.parquet", *names)
        assert values_of(opened(path)) == [names.index("image")] * 2


# Labels of every type


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        ([1.0, math.nan, 0.0, 2.0], ["0", "1", "2"], [1, None, 0, 2]),
        ([True, False, None, True], ["False", "True"], [1, 0, None, 1]),
        (pa.array([3, 0, None, 1], pa.uint8()), ["0", "1", "2", "3"], [3, 0, None, 1]),
        (["b", None, "a", "b"], ["a", "b"], [1, None, 0, 1]),
        (pa.array([-1.0, 1.0, None, 0.0], pa.float32()), ["0", "1"], [None, 1, None, 0]),
    ],
)
def test_types_that_are_classes(tmp_path, values, names, labels):
    source = opened(rows(tmp_path / "x.parquet", label=values))
    assert (source.class_names, labels_of(source)) == (names, labels)
    known = [label for label in labels if label is not None]
    assert source.understood.class_counts == [known.count(number) for number in range(len(names))]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5, 1.0], "0.5 is no class"),
        ([[1, 0], [0, 1]], "no classes"),
        ([{"a": 1}, {"a": 2}], "no classes"),
        ([math.inf, 1.0], "inf is no class"),
    ],
)
def test_types_that_are_no_classes(tmp_path, values, reason):
    path = rows(tmp_path / "x.parquet", label=values, kind=["x", "y"])
    source = opened(path)
    assert source.class_names is None
    assert any(entry.startswith("label (") and reason in entry for entry in source.understood.others)
    assert "kind (string)" in source.understood.others
    assert "holds no classes" in error_of(path, label_column="label")
    assert opened(path, label_column="kind").class_names == ["x", "y"]


def test_drawn_labels(tmp_path):
    random.seed(17)
    for number in range(6):
        classes = [random.choice([None, math.nan, float(random.randrange(5))]) for _ in range(12)] + [4.0]
        source = opened(rows(tmp_path / f"{number}.parquet", cls=classes))
        expected = [None if value is None or math.isnan(value) else int(value) for value in classes]
        assert labels_of(source) == expected


# Metadata files


def image_folder_with(root: Path, name: str, entries: list[dict], pictures: list[str]) -> Path:
    for value, file in enumerate(pictures):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(picture(value))
    path = root / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    elif name.endswith(".csv"):
        heads = list(dict.fromkeys(key for entry in entries for key in entry))
        lines = [",".join(heads), *(",".join(str(entry.get(head, "")) for head in heads) for entry in entries)]
        path.write_text("\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(entries), path)
    return root


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("values", [["cat", "ant", "cat"], [2, 0, 2]])
def test_labels_of_metadata_files(tmp_path, name, values):
    files = ["1.png", "2.png", "3.png"]
    entries = [{"file_name": file, "label": value, "text": "so"} for file, value in zip(files, values, strict=True)]
    root = image_folder_with(tmp_path, name, entries, files)
    source = opened(root)
    names = ["ant", "cat"] if values[0] == "cat" else ["0", "1", "2"]
    assert [source.class_names[label] for label in labels_of(source)] == [str(value) for value in values]
    assert source.class_names == names
    assert source.understood.labels == f"column label of {name}"
    assert source.understood.others == (f"text of {name}",)
    reference = datasets.load_dataset("imagefolder", data_dir=str(root), split="train")
    assert [str(value) for value in reference["label"]] == [str(value) for value in values]
    assert opened(root, label_column="text").class_names == ["so"]
    assert opened(root, label_column="none").class_names is None
    assert opened(root, label_column="folder").class_names is None


def test_drawn_metadata(tmp_path):
    """In each folder a file of its own, rows in any order, some pictures without one."""
    random.seed(2)
    for number in range(6):
        root, truth = tmp_path / str(number), {}
        for folder in ("train", "val"):
            files = [f"{index}.png" for index in range(5)]
            entries = [{"file_name": file, "label": random.choice("ab")} for file in random.sample(files, 4)]
            entries += [{"file_name": "gone.png", "label": "a"}]
            image_folder_with(root / folder, "metadata.jsonl", entries, files)
            truth.update({f"{folder}/{entry['file_name']}": entry["label"] for entry in entries})
        if {truth[name] for name in truth if name.startswith("train")} != {"a", "b"}:
            continue
        train, validation = split_images(DataConfig(str(root), validation_split="val"))
        for source in (train, validation):
            for record in source:
                expected = truth.get(record.source_id)
                assert (record.label is None and expected is None) or source.class_names[record.label] == expected
        assert "1 pictures have no row" in train.understood.notes[0]


def test_labels_twice(tmp_path):
    files = ["x/1.png", "x/2.png", "y/3.png", "y/4.png"]
    entries = [{"file_name": file, "label": value} for file, value in zip(files, "abab", strict=True)]
    root = image_folder_with(tmp_path / "a", "metadata.jsonl", entries, files)
    assert 'data.label_column which: "label", "folder", or "none"' in error_of(root)
    assert opened(root, label_column="label").class_names == ["a", "b"]
    assert opened(root, label_column="folder").class_names == ["x", "y"]
    same = [{"file_name": file, "label": value} for file, value in zip(files, [7, 7, 3, 3], strict=True)]
    assert opened(image_folder_with(tmp_path / "b", "metadata.jsonl", same, files)).class_names == ["x", "y"]


def test_metadata_that_cannot_be_meant(tmp_path):
    root = image_folder_with(tmp_path / "a", "metadata.csv", [{"file_name": "else.png", "label": 1}], ["1.png"])
    assert "names none of its pictures" in error_of(root)
    (root / "metadata.csv").write_text("name,label\n1.png,2\n")
    source = opened(root)
    assert (source.class_names, source.understood.unread) == (None, {".csv": 1})
    root = image_folder_with(tmp_path / "b", "metadata.jsonl", [{"file_name": "1.png", "label": [1, 2]}], ["1.png"])
    assert "holds no classes: [1, 2] is no class" in error_of(root)
    assert opened(root, label_column="none").class_names is None
    (root / "metadata.jsonl").write_text("{")
    assert "cannot be read" in error_of(root)


# Folders of save_to_disk


def saved_table(values: list[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    entries = {"image": [{"bytes": picture(value), "path": None} for value in values], "label": [0, 1][: len(values)]}
    return datasets.Dataset.from_dict(entries, features=features)


def test_folders_of_save_to_disk(tmp_path):
    saved_table([4, 5]).save_to_disk(tmp_path / "one")
    source = opened(tmp_path / "one")
    assert (values_of(source), labels_of(source), source.class_names) == ([4, 5], [0, 1], ["cat", "dog"])
    both = datasets.DatasetDict({"train": saved_table([1, 2]), "validation": saved_table([3])})
    both.save_to_disk(tmp_path / "both")
    train, validation = split_images(DataConfig(str(tmp_path / "both"), validation_split="validation"))
    assert (values_of(train), values_of(validation)) == ([1, 2], [3])
    assert train.fingerprint != validation.fingerprint
    assert train.understood.splits == {"train": 2, "validation": 1}
    assert "Choose data.split among train, validation" in error_of(tmp_path / "both", split="test")
    saved_table([4, 6]).save_to_disk(tmp_path / "two")
    assert values_of(opened(tmp_path / "two")) == [4, 6]
    stream = open_image_stream(DataConfig(str(tmp_path / "one"), streaming=True))
    assert list(stream) == list(source)


def test_a_damaged_folder_of_save_to_disk(tmp_path):
    saved_table([4, 5]).save_to_disk(tmp_path / "one")
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(b"")
    assert "cannot be read as a folder of `save_to_disk`" in error_of(tmp_path / "one")


# What is said


def test_what_was_understood_is_said(tmp_path):
    for name in ("train/2/a.png", "train/10/b.png", "train/10/c.png", "val/2/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(1))
    for name in ("1.psd", "2.psd", "3.txt"):
        (tmp_path / "train" / name).touch()
    (tmp_path / "train" / "link").symlink_to("/", target_is_directory=True)
    assert describe_source(opened(tmp_path)) == [
        f"{tmp_path}: 3 images in 2 classes (split train, 1 links left out).",
        "Read as: folder of images, splits train 3 (this one), val 1.",
        "Labels: names of the subfolders, 2 classes: 0 10 (2), 1 2 (1).",
        "The classes' names are numbers, and their ids others (sorted as text): id 0 is class '10'.",
        "Files that are not read: 2 .psd (convert them to PNG), 1 .txt (captions and notes are no labels).",
        "Links that are left out: 1 (--data.follow-links reads them).",
    ]


def test_what_was_understood_of_a_table_is_said(tmp_path):
    path = rows(tmp_path / "x.parquet", label=[0.0, 2.0, math.nan], caption=["a", "b", "c"], mask=[picture(1)] * 3)
    lines = describe_source(opened(path))
    assert lines[1:] == [
        "Read as: parquet, split train 3 (this one).",
        "Labels: column label, 3 classes: 0 0 (1), 1 1 (0), 2 2 (1); 1 classes without a picture; 1 pictures without a "
        "label.",
        "Pictures: column image.",
        "Not read beside them: caption (string), mask (binary).",
    ]
    part = opened(path).subset(np.array([0]), "some")
    assert "Of these: 1." in describe_source(part)

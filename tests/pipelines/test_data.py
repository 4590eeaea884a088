"""pipelines/data/sources.py: folders, Parquet, WebDataset and what stands for the Hub, as the same records."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image

from codegrid.pipelines.data import tables as data_tables
from codegrid.pipelines.data.records import DataConfig, DataError, ImageRecord, ImageSource
from codegrid.pipelines.data.sources import open_image_stream, open_images, split_images
from codegrid.tokenizer.images import BadImage, load_image

ROOT = Path(__file__).resolve().parents[2]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def value_of(record: ImageRecord) -> int:
    return load_image(record.data).getpixel((0, 0))[0]


def write_parquet(path: Path, rows: range, names=("cat", "dog", "eel"), row_group_size=4, **more) -> Path:
    features = {
        "note": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=[*names]),
    }
    columns = {"note": [f"n{row}" for row in rows], "image": [{"bytes": png(row), "path": None} for row in rows]}
    columns["label"] = [row % len(names) for row in rows]
    table = datasets.Dataset.from_dict({**columns, **more}, features=datasets.Features(features)).data.table
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_plain_parquet(path: Path, **columns) -> Path:
    """Without the schema metadata of `datasets`, as other programs write it."""
    pq.write_table(pa.table(columns), path)
    return path


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, fields in samples.items():
            for extension, body in fields.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return path


def opened(source, **fields) -> ImageSource:
    return open_images(DataConfig(source=str(source), **fields))


def error_of(source, **fields) -> str:
    with pytest.raises(DataError) as caught:
        opened(source, **fields)
    return str(caught.value)


# Folders


def test_folder_labels(image_folder):
    source = opened(image_folder)
    assert source.class_names == ["disc", "ring", "square"]
    assert len(source) == 18
    records = list(source)
    assert [record.source_id for record in records] == sorted(record.source_id for record in records)
    for index, record in enumerate(records):
        assert record == source[index]
        assert record.source_id == f"{source.class_names[record.label]}/{index % 6}.png"
        assert record.data == image_folder / record.source_id
    assert source[-1] == records[-1]
    for index in (18, -19):
        with pytest.raises(IndexError):
            source[index]
    assert "18 images in 3 classes" in source.description


def test_folder_without_subfolders_has_no_labels(image_folder):
    source = opened(image_folder / "disc")
    assert source.class_names is None
    assert [record.label for record in source] == [None] * 6


def test_folder_names(tmp_path):
    """Capital letters, hidden files and deeper levels."""
    for name in ("a/ONE.PNG", "a/deep/two.JpG", "b/.hidden.png", "b/three.webp", ".git/four.png", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(1))
    source = opened(tmp_path)
    assert [(record.source_id, record.label) for record in source] == [
        ("a/ONE.PNG", 0),
        ("a/deep/two.JpG", 0),
        ("b/three.webp", 1),
    ]


def test_links_out_of_the_folder_are_left_out(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root):
        folder.mkdir()
        (folder / "x.png").write_bytes(png(1))
    (root / "inside.png").symlink_to("x.png")
    (root / "secret.png").symlink_to(outside / "x.png")
    (root / "dead.png").symlink_to("nowhere.png")
    (root / "folder").symlink_to(outside, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.png")
    source = opened(root)
    assert [record.source_id for record in source] == ["inside.png", "x.png"]
    assert "3 links left out" in source.description
    (tmp_path / "link").symlink_to(root, target_is_directory=True)  # the source itself may be one
    assert len(opened(tmp_path / "link")) == 2


def test_folder_splits(tmp_path, image_folder):
    root = tmp_path / "data"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder / "ring", root / "val" / "ring")
    train, validation = split_images(DataConfig(source=str(root), validation_split="val"))
    assert (len(train), len(validation)) == (18, 6)
    assert train.class_names == validation.class_names == ["disc", "ring", "square"]
    assert {record.label for record in validation} == {1}
    assert train[0].source_id == "train/disc/0.png"
    assert "Choose data.split among train, val." in error_of(root, split="test")
    shutil.copytree(image_folder / "ring", root / "val" / "newt")
    with pytest.raises(DataError, match="training split lacks: newt"):
        split_images(DataConfig(source=str(root), validation_split="val"))


def test_images_beside_class_folders(image_folder):
    (image_folder / "loose.png").write_bytes(png(1))
    message = error_of(image_folder)
    assert "1 images beside its class folders (such as loose.png)" in message
    assert 'data.label_column to "none"' in message
    source = opened(image_folder, label_column="none")
    assert len(source) == 19
    assert source.class_names is None
    assert {record.label for record in source} == {None}


def test_folder_fingerprint(image_folder):
    before = opened(image_folder).fingerprint
    assert opened(image_folder).fingerprint == before
    assert opened(image_folder, label_column="none").fingerprint != before
    os.utime(image_folder / "disc" / "0.png", (1, 1))
    after = opened(image_folder).fingerprint
    assert after != before
    (image_folder / "disc" / "0.png").rename(image_folder / "disc" / "00.png")
    assert opened(image_folder).fingerprint != after


# Parquet


def test_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "pets.parquet", range(10))
    source = opened(path)
    assert source.class_names == ["cat", "dog", "eel"]
    assert len(source) == 10
    for index, record in enumerate(source):
        assert record == source[index]
        assert (value_of(record), record.label, record.source_id) == (index, index % 3, f"pets.parquet:{index}")
    assert "10 images in 3 classes" in source.description
    assert "column image, labels label" in source.description
    assert opened(path, label_column="none")[4].label is None


def test_parquet_folder_with_splits(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(6))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(6, 11))
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", range(20, 23))
    (tmp_path / "README.md").write_text("# A card\n")
    train, validation = split_images(DataConfig(source=str(tmp_path), validation_split="validation"))
    assert [value_of(record) for record in train] == list(range(11))
    assert [value_of(record) for record in validation] == [20, 21, 22]
    assert train[7].source_id == "train:7"
    assert train.fingerprint != validation.fingerprint
    message = error_of(tmp_path, split="test")
    assert "no split 'test'" in message
    assert "train, validation" in message
    assert len(opened(tmp_path, split="train[:4]")) == 4


def test_parquet_of_other_programs(tmp_path):
    """Bytes without type metadata; labels as whole numbers and as names, with gaps and nulls."""
    images = [png(value) for value in range(4)]
    numbers = opened(write_plain_parquet(tmp_path / "a.parquet", img=images, cls=[2, 0, None, -1]))
    assert numbers.class_names == ["0", "1", "2"]
    assert [record.label for record in numbers] == [2, 0, None, None]
    assert [value_of(record) for record in numbers] == [0, 1, 2, 3]
    names = opened(write_plain_parquet(tmp_path / "b.parquet", blob=images, label=["b", "a", None, "b"]))
    assert names.class_names == ["a", "b"]
    assert [record.label for record in names] == [1, 0, None, 1]
    struct = [{"bytes": body, "path": "x.png"} for body in images]
    plain = opened(write_plain_parquet(tmp_path / "c.parquet", image=struct))
    assert (plain.class_names, plain[3].label, value_of(plain[3])) == (None, None, 3)


def test_a_null_picture_is_skipped_not_fatal(tmp_path):
    source = opened(write_plain_parquet(tmp_path / "a.parquet", image=[png(0), None, png(2)]))
    with pytest.raises(BadImage) as caught:
        load_image(source[1].data)
    assert caught.value.reason == "empty_file"
    assert value_of(source[2]) == 2


def test_a_row_cannot_name_a_file_of_this_machine(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x.png").write_bytes(png(9))
    rows = [{"bytes": None, "path": str(tmp_path / "private" / "x.png")}, {"bytes": png(1), "path": None}]
    assert opened(write_plain_parquet(tmp_path / "a.parquet", image=rows))[0].data == b""


def test_columns_by_option(tmp_path):
    images, others = [png(0), png(1)], [png(8), png(9)]
    path = write_plain_parquet(tmp_path / "a.parquet", image=images, other=others, label=[0, 1], group=["x", "y"])
    source = opened(path, image_column="other", label_column="group")
    assert [value_of(record) for record in source] == [8, 9]
    assert source.class_names == ["x", "y"]


def test_validation_classes_follow_the_training_split(tmp_path):
    write_plain_parquet(tmp_path / "train-0.parquet", image=[png(0), png(1)], label=["a", "b"])
    write_plain_parquet(tmp_path / "validation-0.parquet", image=[png(2)], label=["b"])
    train, validation = split_images(DataConfig(source=str(tmp_path), validation_split="validation"))
    assert train.class_names == validation.class_names
    assert validation[0].label == 1


def test_parquet_fingerprint(tmp_path):
    path = write_parquet(tmp_path / "pets.parquet", range(6))
    before = opened(path).fingerprint
    copy = tmp_path / "elsewhere" / "pets.parquet"
    copy.parent.mkdir()
    shutil.copyfile(path, copy)  # another place and time, the same data
    assert opened(copy).fingerprint == before
    write_parquet(path, range(1, 7))
    changed = opened(path)
    assert changed.fingerprint != before
    assert [value_of(record) for record in changed] == list(range(1, 7))


def test_brackets_in_a_path(tmp_path):
    assert len(opened(write_parquet(tmp_path / "a[1]*" / "pets [2].parquet", range(3)))) == 3


# WebDataset


@pytest.mark.parametrize("as_folder", [False, True])
def test_webdataset(tmp_path, as_folder):
    samples = {f"s/{index:04}": {"png": png(index), "cls": b"%d" % (index % 2)} for index in range(5)}
    path = write_tar(tmp_path / "tars" / "pets-000.tar", samples)
    source = opened(path.parent if as_folder else path)
    assert [(value_of(record), record.label) for record in source] == [(index, index % 2) for index in range(5)]
    assert source[3].source_id == ("train:3:s/0003" if as_folder else "pets-000.tar:3:s/0003")
    assert source.class_names == ["0", "1"]


def test_images_and_tars_are_not_mixed(image_folder):
    write_tar(image_folder / "a.tar", {"x": {"png": png(1)}})
    assert "both images and .tar files" in error_of(image_folder)


# Streaming


@pytest.mark.parametrize("kind", ["parquet", "parquet folder", "tar"])
def test_stream_equals_map_style(tmp_path, kind):
    if kind == "tar":
        path = write_tar(tmp_path / "a.tar", {f"{i:03}": {"png": png(i), "cls": b"1"} for i in range(9)})
    else:
        path = write_parquet(tmp_path / "train-0.parquet", range(6))
        if kind == "parquet folder":
            write_parquet(tmp_path / "train-1.parquet", range(6, 9))
            path = tmp_path
    stream = open_image_stream(DataConfig(source=str(path), streaming=True))
    source = opened(path)
    assert not isinstance(stream, ImageSource)
    assert list(stream) == list(source)
    assert list(stream) == list(source)  # a second pass starts anew
    assert stream.class_names == (None if kind == "tar" else source.class_names)


def test_stream_reads_only_what_is_asked_for(tmp_path, monkeypatch):
    """Bounded memory: the first record costs one row group, not the file."""
    rows = []
    original = Parquet._generate_tables

    def counted(self, *arguments, **options):
        for key, table in original(self, *arguments, **options):
            rows.append(len(table))
            yield key, table

    monkeypatch.setattr(Parquet, "_generate_tables", counted)
    path = write_parquet(tmp_path / "a.parquet", range(200), row_group_size=5)
    stream = iter(open_image_stream(DataConfig(source=str(path), streaming=True)))
    assert rows == []
    assert next(stream).source_id == "a.parquet:0"
    assert 1 <= sum(rows) <= 10
    assert sum(1 for _ in stream) == 199
    assert sum(rows) == 200


def test_stream_of_a_folder_is_the_folder(image_folder):
    stream = open_image_stream(DataConfig(source=str(image_folder), streaming=True))
    assert list(stream) == list(opened(image_folder))


def test_stream_without_streaming_has_a_length(image_folder):
    assert len(open_image_stream(DataConfig(source=str(image_folder)))) == 18


def test_streaming_refusals(tmp_path):
    path = write_plain_parquet(tmp_path / "a.parquet", image=[png(0)], label=["b"])
    config = DataConfig(source=str(path), streaming=True)
    with pytest.raises(DataError, match=r"Leave data.streaming off"):
        open_image_stream(config)
    for function in (open_images, split_images):
        with pytest.raises(DataError, match=r"Leave data.streaming off"):
            function(config)


# Splitting


def fraction_split(source, fraction) -> tuple[list[str], list[str]]:
    train, validation = split_images(DataConfig(source=str(source), validation_fraction=fraction))
    return [record.source_id for record in train], [record.source_id for record in validation]


def test_fraction_is_disjoint_and_complete(image_folder, tmp_path):
    for source in (image_folder, write_parquet(tmp_path / "a.parquet", range(18))):
        everything = [record.source_id for record in opened(source)]
        for fraction, count in ((0.001, 1), (0.25, 4), (0.99, 17)):
            train, validation = fraction_split(source, fraction)
            assert len(validation) == count
            assert sorted(train + validation) == sorted(everything)
            assert [name for name in everything if name in train] == train  # the order is kept


def test_fraction_is_the_same_in_another_process(image_folder):
    program = """
import sys, types
for name in ("tokenizer", "pipelines"):  # without their __init__, which imports transformers: ten seconds less
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [f"{sys.argv[1]}/{name}"]
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import split_images
_, held_out = split_images(DataConfig(source=sys.argv[2], validation_fraction=0.3))
print(*(record.source_id for record in held_out))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-c", program, str(ROOT), str(image_folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert output.split() == fraction_split(image_folder, 0.3)[1]


def test_fraction_is_a_fixed_choice(tmp_path):
    """Written down once: another choice in another version would mix training and validation pictures."""
    _, validation = fraction_split(write_parquet(tmp_path / "a.parquet", range(40)), 0.1)
    assert validation == ["a.parquet:1", "a.parquet:19", "a.parquet:22", "a.parquet:29"]


def test_a_new_picture_moves_at_most_one(image_folder):
    before = set(fraction_split(image_folder, 0.25)[1])
    (image_folder / "disc" / "new.png").write_bytes(png(1))
    after = set(fraction_split(image_folder, 0.25)[1])
    assert len(before - after) <= 1


def test_fraction_zero_and_a_single_picture(image_folder, tmp_path):
    train, validation = split_images(DataConfig(source=str(image_folder), validation_fraction=0))
    assert (len(train), validation) == (18, None)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.png").write_bytes(png(1))
    with pytest.raises(DataError, match="validation_fraction to 0"):
        split_images(DataConfig(source=str(tmp_path / "one")))


def test_subsets(image_folder):
    source = opened(image_folder)
    part = source.subset(np.array([5, 2, 9]), "some").subset(np.array([2, 0]), "fewer")
    assert [record.source_id for record in part] == [source[9].source_id, source[5].source_id]
    assert part.fingerprint != source.subset(np.array([9, 6]), "fewer").fingerprint
    assert "fewer: 2" in part.description


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_sources_can_be_pickled(image_folder, tmp_path, kind):
    train, _ = split_images(
        DataConfig(source=str(image_folder if kind == "folder" else write_parquet(tmp_path / "a.parquet", range(9))))
    )
    again = pickle.loads(pickle.dumps(train))
    assert list(again) == list(train)
    assert (again.class_names, again.fingerprint) == (train.class_names, train.fingerprint)


# Errors


def test_no_such_source(tmp_path):
    for name in ("./nowhere", str(tmp_path / "nowhere"), "nowhere.parquet", "a/b/c", "data/"):
        assert "does not exist" in error_of(name), name
    with pytest.raises(DataError, match="empty"):
        DataConfig(source="")
    with pytest.raises(DataError, match="validation_fraction"):
        DataConfig(source="x", validation_fraction=1.0)


def test_hub_that_cannot_be_reached():
    message = error_of("nobody/nothing-of-that-name")
    assert "neither a file nor a folder here" in message
    assert "Hugging Face Hub" in message
    assert "Check the name, the network" in message


def test_hub_arguments_and_image_folders(monkeypatch, image_folder):
    """A Hub data set of plain image files: its rows hold paths, that of the stored copy or an address."""
    asked = []
    local = datasets.load_dataset_builder

    def hub(name, subset, *, revision):
        asked.append((name, subset, revision))
        return local(str(image_folder))

    monkeypatch.setattr(data_tables.datasets, "load_dataset_builder", hub)
    source = opened("someone/shapes", subset="small", revision="v1")
    assert asked == [("someone/shapes", "small", "v1")]
    assert source.class_names == ["disc", "ring", "square"]
    assert [record.label for record in source] == [0] * 6 + [1] * 6 + [2] * 6
    assert source[0].source_id == "train:0"
    assert load_image(source[0].data).size == (24, 24)
    address = (image_folder / "disc" / "0.png").as_uri()
    assert load_image(data_tables._at(address)).size == (24, 24)


def test_folder_without_images(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.txt").touch()
    message = error_of(tmp_path)
    assert "looked for .png," in message
    assert "found 3 .txt" in message
    (tmp_path / "empty").mkdir()
    assert "found nothing" in error_of(tmp_path / "empty")


def test_file_of_another_kind(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert "neither a .parquet nor a .tar file" in error_of(tmp_path / "a.csv")


def test_columns_that_are_not_there(tmp_path):
    path = write_plain_parquet(tmp_path / "a.parquet", codes=[1, 2], text=["a", "b"])
    message = error_of(path)
    assert "no column of images" in message
    assert "codes (int64), text (string)" in message
    pets = write_parquet(tmp_path / "pets.parquet", range(3))
    assert "no column 'kind' for data.label_column" in error_of(pets, label_column="kind")
    assert "no column 'photo' for data.image_column" in error_of(pets, image_column="photo")
    assert "could be read" in error_of(pets, image_column="note")
    assert "holds no classes" in error_of(pets, label_column="image")


def test_columns_of_a_folder(image_folder):
    for field in ("image_column", "label_column"):
        assert "has no columns" in error_of(image_folder, **{field: "label"})


def test_unknown_split_of_a_file_and_of_a_folder(tmp_path, image_folder):
    path = write_parquet(tmp_path / "pets.parquet", range(3))
    for source in (path, image_folder):
        assert "no split 'validation'. Choose data.split among train." in error_of(source, split="validation")
    with pytest.raises(DataError, match=r"no split 'test'. Choose data.split among train"):
        open_image_stream(DataConfig(source=str(path), split="test", streaming=True))


def test_damaged_tables(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    assert "cannot be read" in error_of(tmp_path / "a.parquet")
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    assert "cannot be read" in error_of(tmp_path / "a.tar")


def test_too_many_classes(tmp_path):
    path = write_plain_parquet(tmp_path / "a.parquet", image=[png(0), png(1)], label=[0, 10**9])
    assert "1,000,000,001 classes" in error_of(path)

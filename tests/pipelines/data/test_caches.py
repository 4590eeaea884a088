"""Nothing is read through a cache that does not know the files: tables of pictures, and code data sets."""

import io
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codegrid.pipelines.artifacts.cards import codes_card
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data import tables
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.prior.codes import open_codes, read_manifest
from codegrid.tokenizer.images import load_image

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: '*.parquet'
---
"""


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "BMP")  # of one size whatever the value
    return buffer.getvalue()


def write(path: Path, values: list[int], card: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(value) for value in values]}), path, compression="none")
    if card:
        (path.parent / "README.md").write_text(CARD)
    return path


def values_of(source: Path) -> list[int]:
    return [load_image(record.data).getpixel((0, 0))[0] for record in open_images(DataConfig(str(source)))]


def test_two_folders_of_one_name_without_a_card(tmp_path):
    for index, name in enumerate(("monday", "tuesday")):
        folder = write(tmp_path / name / "crops" / "part.parquet", [index, index + 10], card=False).parent
        assert values_of(folder) == [index, index + 10]


def test_a_folder_that_took_anothers_place(tmp_path):
    here = write(tmp_path / "scans" / "part.parquet", [1, 2]).parent
    assert values_of(here) == [1, 2]
    here.rename(tmp_path / "old")
    write(tmp_path / "scans" / "part.parquet", [3, 4, 5])
    assert values_of(here) == [3, 4, 5]
    shutil.rmtree(here)
    (tmp_path / "old").rename(here)
    assert values_of(here) == [1, 2]


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_file_rewritten_with_its_size_and_its_times_kept(tmp_path, as_folder):
    """As `rsync --times` and `cp --preserve` leave it."""
    file = write(tmp_path / "scans" / "part.parquet", [1, 2])
    source = file.parent if as_folder else file
    assert values_of(source) == [1, 2]
    before = file.stat()
    write(file, [1, 3])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert values_of(source) == [1, 3]


def test_a_link_that_points_elsewhere(tmp_path):
    for version in (1, 2):
        write(tmp_path / f"v{version}" / "scans" / "part.parquet", [version] * 2)
        link = tmp_path / "scans"
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / f"v{version}" / "scans")
        assert values_of(link) == [version] * 2


def test_a_life_of_a_folder(tmp_path):
    """Drawn: files are added, removed, written anew, given back their times; each time the rows are the files'."""
    random.seed(13)
    folder, clock = tmp_path / "scans", 1_000_000
    for _ in range(8):
        files = sorted(folder.glob("*.parquet"))
        act = random.choice(["add", "add", "remove", "rewrite"]) if len(files) > 1 else "add"
        if act == "remove":
            random.choice(files).unlink()
        else:
            file = folder / f"{len(files):03}.parquet" if act == "add" else random.choice(files)
            write(file, [random.randrange(256) for _ in range(random.choice([2, 2, 3]))], card=random.random() < 0.7)
            os.utime(file, (clock, clock))
        truth = []
        for file in sorted(folder.glob("*.parquet")):
            for data in pq.ParquetFile(file).read()["image"].to_pylist():
                truth.append(load_image(data).getpixel((0, 0))[0])
        assert values_of(folder) == truth


def test_rows_are_compared_with_the_footers(tmp_path, monkeypatch):
    """A cache that is wrong all the same, such as one that another program wrote to."""
    file = write(tmp_path / "scans" / "part.parquet", [1, 2])
    monkeypatch.setattr(tables, "_state_of_files", lambda builder: "always the same")
    assert values_of(file.parent) == [1, 2]
    write(file, [1, 2, 3])
    with pytest.raises(DataError, match=r"hold 3 rows in split train, and the cache of `datasets` holds 2. Remove /"):
        values_of(file.parent)


# Code data sets


def by_path(codes: Path) -> list[list[int]]:
    return datasets.load_dataset(str(codes), split="train")["codes"][:]


def by_stream(codes: Path) -> list[list[int]]:
    return [row["codes"] for row in datasets.load_dataset(str(codes), split="train", streaming=True)]


def by_snippet(codes: Path) -> list[list[int]]:
    card = (codes / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER_OR_REPO", str(codes)), names)
    return names["codes"]["codes"][:]


def by_open(codes: Path) -> list[list[int]]:
    data = open_codes(codes)
    return data.codes(range(len(data))).tolist()


WAYS = (by_path, by_stream, by_snippet, by_open)


def truth_of(codes: Path) -> list[list[int]]:
    return [
        row for shard in read_manifest(codes).shards for row in pq.read_table(codes / shard.file)["codes"].to_pylist()
    ]


def test_codes_that_have_grown(tokenizer_folder, pictures, tmp_path):
    source = tmp_path / "pictures"
    shutil.copytree(pictures / "noise", source / "noise")
    config = TokenizationConfig(str(tokenizer_folder), DataConfig(str(source)), str(tmp_path / "codes"), device="cpu")
    for kind in ("noise", "noise again", "stripes"):
        if kind == "stripes":  # more of a class that is there
            for file in (pictures / "stripes").iterdir():
                shutil.copyfile(file, source / "noise" / f"more{file.name}")
        codes = tokenize_dataset(config)
        for way in WAYS:
            assert way(codes) == truth_of(codes), (kind, way)
    assert len(truth_of(codes)) == 12


def test_codes_of_two_projects_with_one_folder_name(tokenizer_folder, pictures, tmp_path):
    for project, kind in (("a", "noise"), ("b", "stripes")):
        config = TokenizationConfig(
            str(tokenizer_folder), DataConfig(str(pictures / kind)), str(tmp_path / project / "codes"), device="cpu"
        )
        codes = tokenize_dataset(config)
        for way in WAYS:
            assert way(codes) == truth_of(codes), (project, way)


def test_codes_made_anew_in_the_same_place_of_a_strange_name(tokenizer_folder, pictures, tmp_path):
    config = TokenizationConfig(
        str(tokenizer_folder), DataConfig(str(pictures / "noise")), str(tmp_path / "codes[1]"), device="cpu"
    )
    for flip in (False, True):
        shutil.rmtree(tmp_path / "codes[1]", ignore_errors=True)
        codes = tokenize_dataset(replace(config, flip=flip))
        assert by_open(codes) == truth_of(codes)


def test_the_fingerprint_of_a_set_is_that_of_its_codes(codes):
    manifest = read_manifest(codes)
    assert replace(manifest, source="elsewhere").fingerprint() == manifest.fingerprint()
    fewer = replace(manifest, shards=manifest.shards[:-1])
    assert fewer.fingerprint() != manifest.fingerprint()
    assert f"description: fingerprint {manifest.fingerprint()}\n" in codes_card(manifest)


def test_a_set_of_before_gets_its_card_anew(tokenizer_folder, pictures, tmp_path):
    """Cards of 0.1.0 have no fingerprint: running the command again writes one."""
    config = TokenizationConfig(str(tokenizer_folder), DataConfig(str(pictures)), str(tmp_path / "codes"), device="cpu")
    codes = tokenize_dataset(config)
    card = codes / "README.md"
    whole = card.read_text()
    card.write_text("".join(line for line in whole.splitlines(keepends=True) if "description:" not in line))
    assert card.read_text() != whole
    tokenize_dataset(config)
    assert card.read_text() == whole


def test_datasets_of_another_process_read_the_same(codes):
    """Without a line of this project."""
    program = "import datasets, sys; print(datasets.load_dataset(sys.argv[1], split='train')['codes'][:])"
    run = subprocess.run([sys.executable, "-c", program, str(codes)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(truth_of(codes))

"""Row "what is checked late": labels, space and packages are looked at before the folder is claimed.

Channels: tests/cases/test_channels.py. Nets: tests/cases/test_deep_nets.py. Checkpoints come before evaluations:
`fit` (pipelines/training/loop.py), tested here.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from tiny_runs import prior_run, tokenizer_run, write_pictures

from codegrid.errors import CodegridError
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training import checkpoint
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer import train
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior.codes import CodesError

CONDITIONAL = {"class_conditional": True}


def table(file: Path, pictures: list[Path], labels: list, kind) -> None:
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in pictures], "label": labels}
    Dataset.from_dict(rows, Features({"image": Image(), "label": kind})).to_parquet(file)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def a_row_without_a_class(folder: Path, unlabelled: list[int]) -> DataConfig:
    paths = files(write_pictures(folder / "raw"))
    labels = [-1 if place in unlabelled else place % 2 for place in range(len(paths))]
    table(folder / "t.parquet", paths, labels, ClassLabel(names=["cat", "dog"]))
    return DataConfig(str(folder / "t.parquet"), validation_fraction=0.2)


def a_row_of_nan(folder: Path, unlabelled: list[int]) -> DataConfig:
    paths = files(write_pictures(folder / "raw"))
    labels = [None if place in unlabelled else float(place % 2) for place in range(len(paths))]
    table(folder / "t.parquet", paths, labels, Value("float32"))
    return DataConfig(str(folder / "t.parquet"), validation_fraction=0.2)


def a_picture_beside_the_folders(folder: Path, unlabelled: list[int]) -> DataConfig:
    """By a metadata file that does not name it."""
    root = folder / "raw"
    paths = files(write_pictures(root, classes=("all",)) / "all")
    paths += files(write_pictures(folder / "more", classes=("all",), seed=1))
    for place, path in enumerate(paths):
        shutil.copy(path, root / f"{place:02}.png")
    shutil.rmtree(root / "all")
    lines = [f"{place:02}.png,{place % 2}" for place in range(len(paths)) if place not in unlabelled]
    (root / "metadata.csv").write_text("file_name,label\n" + "\n".join(lines) + "\n")
    return DataConfig(str(root), validation_fraction=0.2)


def refused(config, match: str) -> None:
    with pytest.raises(CodegridError, match=match) as error:
        train_tokenizer(config)
    assert "\n" not in str(error.value)
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize("kind", [a_row_without_a_class, a_row_of_nan, a_picture_beside_the_folders])
@pytest.mark.parametrize("seed", [3])
def test_rows_without_a_label_are_named_before_anything_is_claimed(kind, seed, tmp_path):
    draw = random.Random(seed)
    unlabelled = sorted(draw.sample(range(12), draw.randint(1, 3)))
    data = kind(tmp_path, unlabelled)
    config = tokenizer_run(tmp_path / "run", tmp_path, data=data, **CONDITIONAL)
    refused(config, r"[123] of \d+ pictures have no label .*class_conditional is set")
    train_tokenizer(tokenizer_run(tmp_path / "plain", tmp_path, data=data))  # no label is needed there


def test_labels_missing_among_the_validation_pictures(tmp_path):
    for split in ("train", "val"):
        write_pictures(tmp_path / "data" / split)
    for place, path in enumerate(files(tmp_path / "data" / "val")):
        path.rename(tmp_path / "data" / "val" / f"{place}.png")
    for name in ("cat", "dog"):
        (tmp_path / "data" / "val" / name).rmdir()
    data = DataConfig(str(tmp_path / "data"), validation_split="val")
    refused(tokenizer_run(tmp_path / "run", tmp_path, data=data, **CONDITIONAL), "label")


def test_a_checkpoint_that_cannot_fit_is_refused(tmp_path, monkeypatch):
    write_pictures(tmp_path / "data")
    usage = namedtuple("usage", "total used free")
    config = tokenizer_run(tmp_path / "run", tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage(2**40, 2**40, 20_000))
        with pytest.raises(OutputError, match=r"A checkpoint of this run takes about .* has 19.5 KiB free"):
            train_tokenizer(config)
    assert not (tmp_path / "run").exists()
    run = train_tokenizer(config)
    written = sum(path.stat().st_size for path in next((run / "checkpoints").iterdir()).iterdir())
    found = []
    monkeypatch.setattr(checkpoint, "memory", lambda number: found.append(number) or "x")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage(1, 1, 0))
    with pytest.raises(OutputError):
        train_tokenizer(tokenizer_run(tmp_path / "other", tmp_path / "data"))
    assert found[0] == pytest.approx(written, rel=0.2)  # the rest is names and manifests


def test_an_evaluation_that_fails_costs_no_steps(tmp_path, monkeypatch):
    write_pictures(tmp_path / "data")
    config = tokenizer_run(tmp_path / "run", tmp_path / "data", max_steps=3, eval_every=2, save_every=50)

    def failing(*args, **kwargs):
        raise DataError("The evaluation fails.", "Nothing to do.")

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate_reconstruction", failing)
        with pytest.raises(DataError):
            train_tokenizer(config)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002"]
    train_tokenizer(config)


@pytest.mark.parametrize("column", ["codes", "label"])
@pytest.mark.parametrize("seed", [4])
def test_codes_and_labels_out_of_range_are_found_before_anything_is_claimed(column, seed, tmp_path):
    """Of a data set that is whole by its manifest: others wrote it so."""
    tokenizer = train_tokenizer(tokenizer_run(tmp_path / "tokenizer", write_pictures(tmp_path / "data")))
    given = TokenizationConfig(
        str(tokenizer), DataConfig(str(tmp_path / "data")), str(tmp_path / "codes"), device="cpu"
    )
    codes = tokenize_dataset(given)
    (file,) = (codes / "data").glob("*.parquet")
    rows = pq.read_table(file)
    values, place = rows.column(column).to_pylist(), random.Random(seed).randrange(12)
    values[place] = [*values[place][:-1], 16] if column == "codes" else 2
    changed = rows.set_column(
        rows.column_names.index(column), rows.schema.field(column), pa.array(values, rows.schema.field(column).type)
    )
    pq.write_table(changed, file)
    manifest = json.loads((codes / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    shard |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "num_bytes": file.stat().st_size}
    (codes / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CodesError, match="code 16, beyond its codebook" if column == "codes" else "2 is a label"):
        train_prior(prior_run(tmp_path / "run", codes))
    assert not (tmp_path / "run").exists()

"""Images -> a code data set: what its rows are, and that stopping changes none of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, List, Value
from PIL import Image

from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes import shards as code_shards
from codegrid.pipelines.codes import tokenize as tokenization
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.system.files import OutputError, lock_folder
from codegrid.prior.codes import open_codes, read_manifest
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import load_image, prepare, to_model


@pytest.fixture
def config(tokenizer_folder: Path, pictures: Path, tmp_path: Path) -> TokenizationConfig:
    return TokenizationConfig(
        str(tokenizer_folder), DataConfig(str(pictures)), str(tmp_path / "codes"), images_per_shard=7, device="cpu"
    )


def rows_of(folder: Path) -> dict[str, list]:
    shards = [pq.read_table(folder / shard.file) for shard in read_manifest(folder).shards]
    return {name: [value for shard in shards for value in shard[name].to_pylist()] for name in shards[0].column_names}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def encoded(model: VQModel, path: Path, **variant) -> torch.Tensor:
    """The codes [h * w] of one image, by itself."""
    pixels = prepare(load_image(path), model.config.preprocessing_config, 3, **variant)
    return model.encode(to_model(torch.from_numpy(pixels)[None])).flatten()


def test_rows_are_the_codes_of_the_images(config, pictures):
    folder = tokenize_dataset(config)
    model, rows, manifest = load_tokenizer(config.tokenizer), rows_of(folder), read_manifest(folder)
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    assert rows["source_id"] == names
    assert rows["label"] == [index // 6 for index in range(18)]
    assert manifest.class_names == ("gradient", "noise", "stripes")
    assert rows["crop"] == [0] * 18
    assert rows["flip"] == [False] * 18
    for name, row in zip(names, rows["codes"], strict=True):
        assert row == encoded(model, pictures / name).tolist(), name
    assert len({tuple(row) for row in rows["codes"]}) > 9  # not the same for all
    assert (manifest.num_rows, manifest.num_images, manifest.num_skipped) == (18, 18, 0)
    assert [shard.num_rows for shard in manifest.shards] == [7, 7, 4]
    assert manifest.tokenizer_fingerprint == model.fingerprint()
    assert manifest.grid_shape == (4, 4)
    assert (manifest.codebook_size, manifest.code_dtype, manifest.precision) == (32, "uint16", "float32")
    assert (manifest.num_compared, manifest.num_changed) == (0, 0)


def test_codes_that_rounding_changes_are_counted_in_the_first_batch_of_each_shard(config, pictures, capsys):
    folder = tokenize_dataset(replace(config, mixed_precision="bf16", batch_size=3))
    model, rows, manifest = load_tokenizer(config.tokenizer), rows_of(folder), read_manifest(folder)
    changed = 0
    for first in (0, 7, 14):
        for name, row in list(zip(rows["source_id"], rows["codes"], strict=True))[first : first + 3]:
            changed += int((encoded(model, pictures / name) != torch.tensor(row)).sum())
    assert 0 < changed == manifest.num_changed
    assert (manifest.num_compared, manifest.precision) == (3 * 3 * 16, "bfloat16")
    share = f"{changed / 144:.1%}"
    assert f"In bfloat16 {share} of the codes are others than in float32" in capsys.readouterr().out
    assert f"in bfloat16 ({share} others than in float32)" in (folder / "README.md").read_text()


def test_decoding_rows_gives_the_reconstruction_bit_for_bit(config, codes):
    model, data = load_tokenizer(config.tokenizer), open_codes(codes)
    rows = np.arange(len(data))[::2]  # the images themselves; every other row is a mirror image
    records = tokenization.open_image_stream(config.data)
    with torch.no_grad():
        images = next(prepared_batches(model, iter(records), 18)).images
        stored = torch.from_numpy(data.codes(rows)).reshape(-1, 4, 4)
        assert torch.equal(model.decode(stored), model.decode(model.encode(images)))
        assert torch.equal(model.decode(stored), model(images).reconstruction)


def test_mirror_images(config, pictures, codes):
    model, rows = load_tokenizer(config.tokenizer), rows_of(codes)
    assert rows["flip"] == [False, True] * 18
    assert rows["source_id"][:2] == ["gradient/0.png"] * 2
    for row in (0, 1, 14, 15):
        expected = encoded(model, pictures / rows["source_id"][row], flip=bool(row % 2))
        assert rows["codes"][row] == expected.tolist()
    assert rows["codes"][14] != rows["codes"][15]
    assert read_manifest(codes).flip


def test_ten_crops(config, pictures):
    # Eighteen images of ten variants in batches of 64: one image's variants lie in two batches.
    folder = tokenize_dataset(replace(config, ten_crop=True))
    model, rows = load_tokenizer(config.tokenizer), rows_of(folder)
    assert len(rows["codes"]) == 180
    assert rows["crop"] == list(range(10)) * 18
    assert sum(rows["flip"][:10]) == 5
    for row in (60, 67, 103):
        name = rows["source_id"][row]
        assert rows["codes"][row] == encoded(model, pictures / name, crop=row % 10).tolist()
    manifest = read_manifest(folder)
    assert (manifest.num_rows, manifest.num_images, manifest.ten_crop) == (180, 18, True)
    with pytest.raises(ValueError, match="Leave flip out"):
        replace(config, ten_crop=True, flip=True)


def test_datasets_reads_the_folder_without_this_project(codes, tmp_path):
    script = (
        "import sys, json, datasets\n"
        "data = datasets.load_dataset(sys.argv[1], split='train')\n"
        "assert not {'tokenizer', 'prior', 'pipelines'} & set(sys.modules)\n"
        "print(json.dumps([len(data), str(data.features['codes']), data.features['label'].names, data[14]]))\n"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script, str(codes)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    number, features, names, row = json.loads(result.stdout)
    assert number == 36
    assert features == str(List(Value("uint16"), length=16))
    assert names == ["gradient", "noise", "stripes"]
    rows = rows_of(codes)
    assert row == {name: rows[name][14] for name in rows}


def test_a_job_that_was_stopped_goes_on(config, tmp_path, at_step, monkeypatch):
    whole = tokenize_dataset(config)

    class Stopped(Exception):  # noqa: N818
        pass

    def stop():
        raise Stopped

    parts = replace(config, output_dir=str(tmp_path / "parts"))
    at_step(tokenization, "write_shard", 1, stop)
    with pytest.raises(Stopped):
        tokenize_dataset(parts)
    assert [path.name for path in (tmp_path / "parts" / "data").iterdir()] == ["codes-00000.parquet"]
    first = (tmp_path / "parts" / "data" / "codes-00000.parquet").stat().st_mtime_ns
    tokenize_dataset(parts)
    assert files_of(tmp_path / "parts") == files_of(whole)
    assert (tmp_path / "parts" / "data" / "codes-00000.parquet").stat().st_mtime_ns == first  # not made again


def test_a_torn_shard_is_made_again(config):
    folder = tokenize_dataset(config)
    before = files_of(folder)
    shard = folder / "data" / "codes-00001.parquet"
    shard.write_bytes(before["data/codes-00001.parquet"][:100])
    (folder / "manifest.json").unlink()
    tokenize_dataset(config)
    assert files_of(folder) == before


def test_a_finished_data_set_is_left_alone(config, monkeypatch, capsys):
    folder = tokenize_dataset(config)
    before = files_of(folder)
    monkeypatch.setattr(tokenization, "_write_shards", None)  # would raise if it were called
    tokenize_dataset(config)
    assert "nothing to do" in capsys.readouterr().out
    assert files_of(folder) == before


def test_another_job_in_the_same_folder_is_refused(config, codes, pictures, tiny_vqmodel, tmp_path):
    there = replace(config, output_dir=str(codes), images_per_shard=10_000, flip=True)
    before = files_of(codes)
    assert tokenize_dataset(there) == codes
    tiny_vqmodel.save_pretrained(tmp_path / "other")
    with pytest.raises(OutputError, match="different: tokenizer_fingerprint"):
        tokenize_dataset(replace(there, tokenizer=str(tmp_path / "other")))
    with pytest.raises(OutputError, match="different: flip"):
        tokenize_dataset(replace(there, flip=False))
    with pytest.raises(OutputError, match="different: source, source_fingerprint"):
        tokenize_dataset(replace(there, data=DataConfig(str(pictures / "noise"))))
    assert files_of(codes) == before


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "thesis.tex").write_text("all of it")
    with pytest.raises(OutputError, match="Choose another --output-dir"):
        tokenize_dataset(config)
    assert files_of(tmp_path / "codes") == {"thesis.tex": b"all of it"}
    with pytest.raises(OutputError, match="Choose another --output-dir"):
        tokenize_dataset(replace(config, output_dir=str(tmp_path / "codes" / "thesis.tex")))
    (tmp_path / "empty").mkdir()
    tokenize_dataset(replace(config, output_dir=str(tmp_path / "empty")))


def test_bad_images_are_listed_and_counted(config, pictures, tmp_path):
    source = shutil.copytree(pictures, tmp_path / "pictures")
    (source / "noise" / "text.jpg").write_text("no picture")
    (source / "noise" / "empty.png").write_bytes(b"")
    for index in range(7):  # a whole shard of them
        Image.new("RGB", (8, 8)).save(source / "gradient" / f"small{index}.png")
    folder = tokenize_dataset(replace(config, data=DataConfig(str(source)), images_per_shard=1))
    manifest = read_manifest(folder)
    assert (manifest.num_rows, manifest.num_images, manifest.num_skipped) == (18, 18, 9)
    listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert {entry["source_id"] for entry in listed} >= {"noise/text.jpg", "noise/empty.png", "gradient/small6.png"}
    reasons = {entry["source_id"]: entry["reason"] for entry in listed}
    assert sorted(manifest.skipped_reasons.values()) in ([1, 1, 7], [2, 7])
    assert manifest.skipped_reasons[reasons["gradient/small0.png"]] == 7
    assert all(entry["detail"] for entry in listed)
    data = open_codes(folder)  # with shards of no rows among them
    assert len(data) == 18
    model = load_tokenizer(config.tokenizer)
    assert data.codes(np.array([17])).tolist() == [encoded(model, source / "stripes" / "5.png").tolist()]


def test_no_usable_image_is_an_error(config, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "text.jpg").write_text("no picture")
    for _ in range(2):  # the same when it is run again
        with pytest.raises(DataError, match=r"None of the 1 inputs could be tokenized. The first: text.jpg, "):
            tokenize_dataset(replace(config, data=DataConfig(str(tmp_path / "pictures"))))
    assert not (tmp_path / "codes" / "manifest.json").exists()


def test_images_without_classes_have_no_label_column(config, pictures):
    folder = tokenize_dataset(replace(config, data=DataConfig(str(pictures / "noise"))))
    assert "label" not in rows_of(folder)
    assert read_manifest(folder).class_names is None
    assert open_codes(folder).labels is None


def test_worker_processes_change_nothing(config, tmp_path):
    folder = tokenize_dataset(replace(config, images_per_shard=100))
    other = tokenize_dataset(replace(config, images_per_shard=100, num_workers=1, output_dir=str(tmp_path / "other")))
    assert files_of(folder) == files_of(other)


def test_large_codebooks_take_four_bytes():
    small, large = (code_shards.code_features(size, 4, ["a", "b"]) for size in (65_536, 65_537))
    assert small["codes"] == List(Value("uint16"), length=4)
    assert large["codes"] == List(Value("uint32"), length=4)
    assert large["label"] == ClassLabel(names=["a", "b"])


def test_a_grown_folder_adds_only_what_is_new(config, pictures, tmp_path):
    source = shutil.copytree(pictures, tmp_path / "pictures")
    grown = replace(config, data=DataConfig(str(source)))
    folder = tokenize_dataset(grown)
    before = {name: (folder / name).stat().st_mtime_ns for name in files_of(folder) if name.endswith(".parquet")}
    for kind, name in (("gradient", "0-new.png"), ("stripes", "9.png")):  # new ones lie before old ones in the order
        shutil.copy(source / "noise" / "3.png", source / kind / name)
    (source / "noise" / "text.png").write_text("no picture")
    tokenize_dataset(grown)
    rows, manifest = rows_of(folder), read_manifest(folder)
    assert (manifest.num_rows, manifest.num_images, manifest.num_skipped) == (20, 20, 1)
    assert rows["source_id"][18:] == ["gradient/0-new.png", "stripes/9.png"]
    assert rows["label"][18:] == [0, 2]
    assert rows["codes"][18] == rows["codes"][rows["source_id"].index("noise/3.png")]
    for name, time in before.items():
        assert (folder / name).stat().st_mtime_ns == time  # not made again
    after = files_of(folder)
    tokenize_dataset(grown)
    assert files_of(folder) == after


def test_a_folder_that_has_shrunk_or_changed_is_refused(config, pictures, tmp_path):
    source = shutil.copytree(pictures, tmp_path / "pictures")
    changed = replace(config, data=DataConfig(str(source)))
    before = files_of(tokenize_dataset(changed))
    (source / "noise" / "new.png").write_bytes((source / "noise" / "0.png").read_bytes())
    (source / "noise" / "2.png").write_bytes((source / "noise" / "3.png").read_bytes())
    with pytest.raises(OutputError, match=r"different: source, .*; images can only be added, and shard 1 was made of"):
        tokenize_dataset(changed)
    (source / "noise" / "2.png").unlink()
    with pytest.raises(OutputError, match="images can only be added"):
        tokenize_dataset(changed)
    (source / "another class").mkdir()
    shutil.copy(source / "noise" / "0.png", source / "another class")
    with pytest.raises(OutputError, match="different: source, source_fingerprint, names, class_names"):
        tokenize_dataset(changed)
    assert files_of(tmp_path / "codes") == before


def test_a_damaged_shard_of_a_finished_data_set_is_made_again(config):
    folder = tokenize_dataset(config)
    before = files_of(folder)
    (folder / "data" / "codes-00001.parquet").unlink()
    tokenize_dataset(config)
    assert files_of(folder) == before


def test_one_process_a_folder(config):
    folder = tokenize_dataset(config)
    (folder / "manifest.json").unlink()
    lock = lock_folder(folder, "tokenizing")
    with pytest.raises(OutputError, match="Another process is tokenizing in"):
        tokenize_dataset(config)
    lock.close()
    (folder / "data" / ".codes-00000.parquet.0a1b2c3d.tmp").write_bytes(b"of a killed process")
    tokenize_dataset(config)
    assert not list((folder / "data").glob(".*"))

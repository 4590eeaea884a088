"""Reading code data sets: what is refused, and that codes come back from wherever they lie."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codegrid.prior.codes import CodesError, open_codes, read_manifest


@pytest.fixture
def make(tmp_path: Path):
    """Write a code data set of 2x3 grids of 50; gives its folder. Image i has two variants."""

    def write(sizes=(4, 6, 2), dtype="uint16", codebook_size=50, labelled=True, row_group_size=None, **changes) -> Path:
        folder = tmp_path / f"codes{len(list(tmp_path.iterdir()))}"
        (folder / "data").mkdir(parents=True)
        total = sum(sizes)
        codes = np.arange(total * 6).reshape(total, 6) * 7 % codebook_size
        table = {
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel().astype(dtype)), 6),
            "label": pa.array([index // 2 % 3 - (index == 0) for index in range(total)], pa.int64()),
            "source_id": [f"image{index // 2}.png" for index in range(total)],
            "crop": pa.array([0] * total, pa.uint8()),
            "flip": [bool(index % 2) for index in range(total)],
        }
        if not labelled:
            del table["label"]
        table, shards, start = pa.table(table), [], 0
        for number, size in enumerate(sizes):
            path = folder / "data" / f"codes-{number:05d}.parquet"
            pq.write_table(table.slice(start, size), path, row_group_size=row_group_size)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name = f"data/{path.name}"
            shards.append({"file": name, "num_rows": size, "num_bytes": path.stat().st_size, "sha256": digest})
            start += size
        manifest = {
            "tokenizer": "runs/tokenizer",
            "tokenizer_fingerprint": "f" * 64,
            "codebook_size": codebook_size,
            "grid_shape": [2, 3],
            "class_names": ["a", "b", "c"] if labelled else None,
            "source": "images",
            "source_fingerprint": "0" * 64,
            "num_rows": total,
            "num_images": total // 2,
            "shards": shards,
            "code_dtype": dtype,
            "format": "codegrid-codes",
            "version": 1,
        }
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        return folder

    return write


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_manifest_says_what_a_prior_must_know(make):
    manifest = read_manifest(make())
    assert manifest.grid_shape == (2, 3)
    assert manifest.class_names == ("a", "b", "c")
    assert manifest.shards[1].num_rows == 6
    sequence = manifest.sequence_config()
    assert (sequence.codebook_size, sequence.length, sequence.vocab_size) == (50, 6, 54)
    assert sequence.tokenizer_fingerprint == "f" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest.update(version=2),
            "version 2; this version of codegrid reads 'codegrid-codes', version 1",
        ),
        (lambda manifest: manifest.update(format="other"), "of format 'other'"),
        (lambda manifest: manifest.update(colour="blue"), "Unknown keys in .*: colour"),
        (lambda manifest: manifest.pop("grid_shape"), "is damaged"),
        (lambda manifest: manifest.pop("codebook_size"), "is damaged"),
        (lambda manifest: manifest.update(grid_shape=[4]), "is damaged"),
        (lambda manifest: manifest.update(codebook_size="50"), "is damaged"),
        (lambda manifest: manifest.update(class_names=["a", "a"]), "is damaged"),
        (lambda manifest: manifest.update(shards=[{"file": "x"}]), "is damaged"),
        (lambda manifest: manifest["shards"][0].update(file=7), "is damaged"),
        (lambda manifest: manifest["shards"][0].update(file="../codes.parquet"), "outside of its folder"),
        (lambda manifest: manifest["shards"][0].update(file="/etc/passwd"), "outside of its folder"),
        (lambda manifest: manifest["shards"][0].update(file="data\\..\\..\\x"), "outside of its folder"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(make, change, message):
    folder = make()
    edit(folder, change)
    with pytest.raises(CodesError, match=message):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"'])
def test_a_damaged_manifest_is_refused(make, content):
    folder = make()
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CodesError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_an_unfinished_data_set_is_refused(make, tmp_path):
    folder = make()
    (folder / "manifest.json").unlink()
    with pytest.raises(CodesError, match=r"no finished code data set.*it goes on where it stopped"):
        open_codes(folder)
    with pytest.raises(CodesError, match="neither a folder here nor a data set"):
        open_codes(tmp_path / "missing")


@pytest.mark.parametrize("arrow_bytes", ["500MB", 1])  # of a file of the cache
@pytest.mark.parametrize(
    ("row_group_size", "sizes"), [(None, (12,)), (None, (4, 6, 2)), (2, (4, 6, 2)), (1, (1,) * 12)]
)
def test_random_access_is_sequential_access(make, row_group_size, sizes, arrow_bytes, monkeypatch):
    monkeypatch.setattr(datasets.config, "MAX_SHARD_SIZE", arrow_bytes)
    data = open_codes(make(sizes, row_group_size=row_group_size))
    if sizes == (4, 6, 2):
        assert (len(data._table.cache_files) > 1) == (arrow_bytes == 1)
    assert len(data) == 12
    expected = np.arange(72).reshape(12, 6) * 7 % 50
    codes = data.codes(np.arange(12))
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes, expected)
    for rows in ([11, 0, 5, 4, 4, 9], [3], [10, 10, 11], []):
        np.testing.assert_array_equal(data.codes(np.array(rows, np.int64)), expected[rows])
    np.testing.assert_array_equal(data.labels, [-1, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])


def test_codes_are_mapped_not_copied(make):
    data = open_codes(make((12,)))
    (rows,) = data._rows._rows
    (cached,) = data._table.cache_files
    before = rows[0].tolist(), rows.shape
    assert not rows.flags.owndata
    with open(cached["filename"], "r+b") as file:  # what is written to the file is what is read next
        file.seek(rows.__array_interface__["data"][0] % mmap.PAGESIZE)
        old = file.read(2)
        file.seek(-2, 1)
        file.write(bytes(byte ^ 255 for byte in old))
    assert rows[0].tolist() != before[0]


def test_large_codebooks(make):
    data = open_codes(make((12,), dtype="uint32", codebook_size=200_000))
    np.testing.assert_array_equal(data.codes(np.arange(12)), np.arange(72).reshape(12, 6) * 7)


def test_a_changed_or_missing_shard_is_refused(make):
    folder = make()
    shard = folder / "data" / "codes-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(CodesError, match=r"codes-00001\.parquet is not the one that the manifest describes"):
        open_codes(folder)
    shard.write_bytes(content[:-1])
    with pytest.raises(CodesError, match="is not the one that the manifest describes"):
        open_codes(folder, verify=False)  # the size is always compared
    shard.unlink()
    with pytest.raises(CodesError, match=r"codes-00001\.parquet is missing"):
        open_codes(folder)
    shard.write_bytes(content)
    open_codes(folder)


def test_codes_beyond_the_codebook_are_refused(make):
    folder = make()
    edit(folder, lambda manifest: manifest.update(codebook_size=40))
    data = open_codes(folder)
    data.codes(np.array([0]))  # 0, 7, ..., 35
    with pytest.raises(CodesError, match="beyond its codebook of 40"):
        data.codes(np.arange(12))


def test_shards_that_contradict_the_manifest_are_refused(make):
    with pytest.raises(CodesError, match="The shards hold 12 rows, the manifest says 13"):
        open_codes(make(num_rows=13))
    with pytest.raises(CodesError, match="A row holds 6 codes, the manifest's grid has 4"):
        open_codes(make(grid_shape=[2, 2]))
    with pytest.raises(CodesError, match="holds no codes: none of its 5 inputs"):
        open_codes(make(num_rows=0, num_skipped=5))


def test_the_split_keeps_an_image_together_and_is_always_the_same(make):
    data = open_codes(make((100, 60, 40)))
    kept, held_out = data.split(0.3)
    assert 30 < len(held_out) < 90
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(200))
    assert not {row // 2 for row in kept} & {row // 2 for row in held_out}
    again = open_codes(make((200,))).split(0.3)  # in other shards
    np.testing.assert_array_equal(held_out, again[1])
    assert set(held_out) <= set(data.split(0.5)[1])
    kept, held_out = data.split(0)
    np.testing.assert_array_equal(kept, np.arange(200))
    assert len(held_out) == 0


def test_without_labels(make):
    data = open_codes(make(labelled=False))
    assert data.labels is None
    assert data.manifest.sequence_config().class_names is None
    np.testing.assert_array_equal(data.codes(np.array([1])), [np.arange(6, 12) * 7 % 50])

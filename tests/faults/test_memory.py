"""Ten times the rows take no more memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_commands import PRIOR, Command
from PIL import Image

ROWS = int(os.environ.get("FAULTS_ROWS", 10_000))


def peak(command: Command) -> int:
    """Resident kB at the most, of memory that is the process's own (RssAnon), as sampled until it ended well."""
    most = 0
    while command.poll() is None:
        try:
            status = Path(f"/proc/{command.pid}/status").read_text()
            most = max(most, int(status.split("RssAnon:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        time.sleep(0.02)
    assert command.poll() == 0, command.output
    return most


def images_table(path: Path, rows: int) -> Path:
    """`rows` grey 16x16 PNGs."""
    pictures = []
    for index in range(64):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    with pq.ParquetWriter(path, pa.schema({"image": pa.binary(), "label": pa.int64()})) as writer:
        for first in range(0, rows, 1000):
            part = [pictures[(first + index) % 64] for index in range(1000)]
            writer.write_table(pa.table({"image": pa.array(part, pa.binary()), "label": [i % 2 for i in range(1000)]}))
    return path


def codes_folder(folder: Path, template: Path, rows: int) -> Path:
    """A code data set of `rows` random rows, with the other facts of `template`."""
    manifest = json.loads((template / "manifest.json").read_text())
    schema = pq.read_schema(template / manifest["shards"][0]["file"])
    length, shards = schema.field("codes").type.list_size, []
    (folder / "data").mkdir(parents=True)
    for first in range(0, rows, 50_000):
        count = min(50_000, rows - first)
        codes = np.random.default_rng(first).integers(0, manifest["codebook_size"], count * length, dtype=np.uint16)
        columns = {
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes), length),
            "label": pa.array(np.arange(count) % 2),
            "source_id": pa.array([f"train:{index:09d}" for index in range(first, first + count)]),
            "crop": pa.array(np.zeros(count, np.uint8)),
            "flip": pa.array(np.zeros(count, bool)),
        }
        path = folder / "data" / f"codes-{first:09d}.parquet"
        pq.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.relative_to(folder).as_posix()
        shards.append({"file": name, "num_rows": count, "num_bytes": path.stat().st_size, "sha256": digest})
    manifest.update(num_rows=rows, num_images=rows, num_skipped=0, skipped_reasons={}, shards=shards, flip=False)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.faults
def test_tokenizing_ten_times_the_rows(clean, tmp_path, tally):
    peaks = []
    with tally(f"tokenizing {ROWS:,} and {10 * ROWS:,} rows") as row:
        for rows in (ROWS, 10 * ROWS):
            source = images_table(tmp_path / f"{rows}.parquet", rows)
            arguments = ["--tokenizer", clean / "tokenizer", "--data.source", source, "--images-per-shard", 2000]
            row.tries += 1
            job = Command("tokenize_dataset", *arguments, "--output-dir", tmp_path / str(rows), folder=tmp_path)
            peaks.append(peak(job))
            row.survived += 1
        row.lost = f"{peaks[0] / 1024:.0f} and {peaks[1] / 1024:.0f} MiB"
        assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.faults
def test_training_a_prior_on_ten_times_the_rows(clean, tmp_path, tally):
    peaks = []
    with tally(f"training a prior on {10 * ROWS:,} and {100 * ROWS:,} rows") as row:
        for rows in (10 * ROWS, 100 * ROWS):
            codes = codes_folder(tmp_path / f"codes{rows}", clean / "codes", rows)
            arguments = [*PRIOR.split(), "--codes", codes, "--output-dir", tmp_path / f"run{rows}"]
            arguments += ["--validation-fraction", 0.0001]
            row.tries += 1
            peaks.append(peak(Command("train_prior", *arguments, folder=tmp_path)))
            row.survived += 1
        row.lost = f"{peaks[0] / 1024:.0f} and {peaks[1] / 1024:.0f} MiB"
        assert peaks[1] < 1.1 * peaks[0]


def through_every_command(folder: Path, frames: int) -> dict[str, int]:
    """Peak kB of each command that takes imported codes, of `frames` random frames of 8 levels, as EnCodec has them."""
    folder.mkdir()
    codes = np.random.default_rng(0).integers(0, 1024, (8, frames), dtype=np.uint16)
    np.save(folder / "frames.npy", codes)
    imported, run, archive = folder / "CODES", folder / "RUN", folder / "rows.cga"
    prior = [*PRIOR.replace("--max-steps 150", "--max-steps 2").split(), "--codes", imported, "--output-dir", run]
    read = ["--made-by", "noise", "--codebook-size", "1024", "--axes", "dl", "--length", "75"]
    commands = {
        "import_codes": ["--source", folder / "frames.npy", *read, "--output-dir", imported],
        "train_prior": [*prior, "--num-samples", 0],
        "generate": ["--pipeline", run, "--num-images", 8, "--output-dir", folder / "DRAWN"],
        "evaluate": ["prior", "--prior", run, "--codes", imported, "--validation-fraction", 0],
        "compress": ["--pipeline", run, "--data.source", imported, "--model", "fixed", "--archive", archive],
        "decompress": ["--pipeline", run, "--files", archive, "--output-dir", folder / "BACK"],
    }
    peaks = {name: peak(Command(name, *words, folder=folder)) for name, words in commands.items()}
    back = np.load(folder / "BACK" / "codes.npy", mmap_mode="r", allow_pickle=False)
    assert np.array_equal(back, codes[:, : len(back) * 75].reshape(8, -1, 75).swapaxes(0, 1))
    return peaks


@pytest.mark.slow
def test_ten_times_the_codes_of_others(tmp_path):
    few, many = (through_every_command(tmp_path / str(frames), frames) for frames in (2 * ROWS, 20 * ROWS))
    for name in few:
        print(f"{name}: {few[name] / 1024:.0f} and {many[name] / 1024:.0f} MiB")
    assert all(many[name] < 1.1 * few[name] for name in few)

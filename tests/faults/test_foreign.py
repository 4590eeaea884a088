"""Data that is damaged, of something else, or hostile: refused in a sentence, mended, or left out; never executed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_commands import (
    PRIOR,
    TOKENIZER,
    Ranks,
    different,
    files_of,
    lines,
    make_images,
    run,
    tokenizing,
    training,
    wait_until,
)
from PIL import Image
from safetensors.torch import load_file, save_file


def edit(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def train_on(codes: Path, folder: Path, *more: object, status: int = 1):
    arguments = [*PRIOR.split(), "--codes", codes, "--output-dir", folder / "run", "--max-steps", 4, *more]
    return run("train_prior", *arguments, folder=folder, status=status)


def rewrite(codes: Path, change) -> None:
    """Change the first shard's table and make the manifest agree with the new file."""
    path = codes / "data" / "codes-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    entry = {"num_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    edit(codes / "manifest.json", lambda manifest: manifest["shards"][0].update(entry))


def with_code(table: pa.Table, code: int) -> pa.Table:
    values = table["codes"].combine_chunks().flatten().to_numpy().copy()
    values[0] = code
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 64 if len(values) == 64 * len(table) else 16)
    return table.set_column(table.schema.get_field_index("codes"), table.schema.field("codes"), column)


@pytest.fixture
def codes(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean / "codes", tmp_path / "codes"))


@pytest.mark.faults
def test_damaged_codes_are_refused_and_made_again(clean, codes, tmp_path, tally):
    shard = codes / "data" / "codes-00003.parquet"
    damages = {"corrupted": lambda: shard.write_bytes(shard.read_bytes()[:-9] + bytes(9)), "missing": shard.unlink}
    for name, damage in damages.items():
        with tally(f"a {name} shard") as row:
            damage()
            row.tries += 1
            assert str(shard) in train_on(codes, tmp_path).error
            assert str(shard) in run("verify_codes", "--codes", codes, folder=tmp_path, status=1).error
            run("tokenize_dataset", *tokenizing(clean), "--output-dir", codes, folder=tmp_path)  # mends it
            assert not different(files_of(codes), files_of(clean / "codes"))
            row.survived, row.lost = 1, "0 rows"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a code beyond the codebook", lambda codes: rewrite(codes, lambda t: with_code(t, 32)), "beyond"),
        ("a row twice", lambda codes: rewrite(codes, lambda t: pa.concat_tables([t, t.slice(0, 1)])), "rows"),
        (
            "a wrong grid",
            lambda codes: edit(codes / "manifest.json", lambda m: m.update(grid_shape=[3, 5])),
            "the manifest's grid has 15",
        ),
        (
            "a made-up size",
            lambda codes: edit(codes / "manifest.json", lambda m: m.update(codebook_size=10**12)),
            "more than uint16 can hold",
        ),
        (
            "a shard outside of the folder",
            lambda codes: edit(codes / "manifest.json", lambda m: m["shards"][0].update(file="../x.parquet")),
            "outside of its folder",
        ),
    ],
)
def test_codes_that_lie_are_refused(codes, tmp_path, tally, name, change, message):
    change(codes)
    with tally(f"codes: {name}") as row:
        row.tries += 1
        assert message in run("verify_codes", "--codes", codes, folder=tmp_path, status=1).error
        assert message in train_on(codes, tmp_path, "--max-steps", 150).error
        row.survived = 1


@pytest.mark.faults
def test_codes_of_another_tokenizer_are_refused(clean, codes, tmp_path, tally):
    other = tmp_path / "other"
    shutil.copytree(clean / "tokenizer", other)
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with tally("a wrong fingerprint") as row:
        for sentence in (
            train_on(codes, tmp_path, "--tokenizer", other).error,
            run("verify_codes", "--codes", codes, "--tokenizer", other, folder=tmp_path, status=1).error,
            run(
                "make_pipeline", "--tokenizer", other, "--prior", clean / "prior", "--output-dir", tmp_path / "p",
                folder=tmp_path, status=1,
            ).error,
            run("tokenize_dataset", *tokenizing(clean), "--tokenizer", other, "--output-dir", codes, folder=tmp_path,
                status=1).error,
        ):  # fmt: skip
            row.tries += 1
            assert "fingerprint" in sentence
            row.survived += 1


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.faults
def test_nothing_foreign_is_executed(clean, tmp_path, tally):
    mark = tmp_path / "executed"
    payload = pickle.dumps(Payload(mark))
    pickle.loads(payload)  # the payload itself works
    assert mark.exists()
    mark.unlink()
    with tally("a pickle in place of weights, states, codes, images") as row:
        for part in ("tokenizer", "prior"):
            for name in ("model.safetensors", "pytorch_model.bin"):
                folder = tmp_path / f"pipeline-{part}-{name}"
                shutil.copytree(clean / "pipeline", folder)
                (folder / part / "model.safetensors").unlink()
                (folder / part / name).write_bytes(payload)
                row.tries += 1
                arguments = ["--pipeline", folder, "--num-images", 1, "--output-dir", tmp_path / "samples"]
                assert str(folder / part) in run("generate", *arguments, folder=tmp_path, status=1).error
                assert not mark.exists()
                row.survived += 1
        shutil.copytree(clean / "prior", tmp_path / "run")
        for step in ("148", "150"):  # with a manifest that vouches for it
            folder = tmp_path / "run" / "checkpoints" / f"step-000000{step}"
            (folder / "optimizer.safetensors").write_bytes(payload)
            entry = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
            edit(folder / "manifest.json", lambda m, e=entry: m["files"].update({"optimizer.safetensors": e}))
        row.tries += 1
        assert "optimizer.safetensors" in run(
            "train_prior", *PRIOR.split(), *training(clean, "prior"), "--output-dir", tmp_path / "run", folder=tmp_path
        ).output  # fmt: skip
        assert not mark.exists()
        row.survived += 1
        images = make_images(tmp_path / "images", 4)
        (images / "even" / "payload.png").write_bytes(payload)
        row.tries += 1
        run("tokenize_dataset", "--tokenizer", clean / "tokenizer", "--data.source", images, "--output-dir",
            tmp_path / "codes", folder=tmp_path)  # fmt: skip
        assert [line["source_id"] for line in lines(tmp_path / "codes" / "skipped.jsonl")] == ["even/payload.png"]
        assert not mark.exists()
        row.survived += 1
        row.lost = "0 payloads run"


@pytest.mark.faults
def test_paths_out_of_a_folder_are_refused(clean, tmp_path, tally):
    with tally("`../` in a shard index, a checkpoint, an archive") as row:
        for part in ("tokenizer", "prior"):
            folder = Path(shutil.copytree(clean / "pipeline", tmp_path / part / "pipeline"))
            shutil.move(folder / part / "model.safetensors", folder / "evil.safetensors")
            names = load_file(folder / "evil.safetensors")
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../evil.safetensors")}
            (folder / part / "model.safetensors.index.json").write_text(json.dumps(index))
            row.tries += 1
            arguments = ["--pipeline", folder, "--num-images", 1, "--output-dir", tmp_path / "samples"]
            assert "'../evil.safetensors'" in run("generate", *arguments, folder=tmp_path, status=1).error
            row.survived += 1
        run_folder = Path(shutil.copytree(clean / "prior", tmp_path / "run"))
        newest = run_folder / "checkpoints" / "step-000000150"
        edit(newest / "manifest.json", lambda m: m["files"].update({"../x.safetensors": m["files"]["state.json"]}))
        row.tries += 1
        arguments = [*PRIOR.split(), *training(clean, "prior"), "--output-dir", run_folder]
        assert "Passed over" in run("train_prior", *arguments, folder=tmp_path).output
        row.survived += 1
        picture = (clean / "images" / "even" / "image-0000.png").read_bytes()
        (tmp_path / "tars").mkdir()
        with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
            for name in ("../../escaped.png", "/tmp/escaped.png", "fine.png"):
                member = tarfile.TarInfo(name)
                member.size = len(picture)
                tar.addfile(member, io.BytesIO(picture))
        row.tries += 1
        run("tokenize_dataset", "--tokenizer", clean / "tokenizer", "--data.source", tmp_path / "tars", "--output-dir",
            tmp_path / "codes", folder=tmp_path)  # fmt: skip
        assert not list(tmp_path.rglob("escaped*"))
        assert not Path("/tmp/escaped.png").exists()
        row.survived += 1


@pytest.mark.faults
def test_unknown_classes_are_refused(clean, tmp_path, tally):
    changes = {
        "model_index.json": {"_class_name": "os.system"},
        "model_index.json ": {"prior": ["os", "system"]},
        "tokenizer/config.json": {"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}},
        "prior/config.json": {"architectures": ["Evil"], "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    }
    with tally("a class outside of the allow-list") as row:
        for index, (name, change) in enumerate(changes.items()):
            folder = Path(shutil.copytree(clean / "pipeline", tmp_path / str(index)))
            edit(folder / name.strip(), lambda values, change=change: values.update(change))
            row.tries += 1
            arguments = ["--pipeline", folder, "--num-images", 1, "--output-dir", tmp_path / "samples"]
            assert str(folder) in run("generate", *arguments, folder=tmp_path, status=1).error
            row.survived += 1


@pytest.mark.faults
def test_weights_of_made_up_sizes_are_refused_before_they_are_allocated(clean, tmp_path, tally):
    sizes = {"tokenizer": ("quantizer", "codebook_size", 10**9), "prior": (None, "intermediate_size", 10**6)}
    with tally("a config of made-up sizes") as row:
        for part, (group, field, value) in sizes.items():
            folder = Path(shutil.copytree(clean / "pipeline", tmp_path / part))
            edit(
                folder / part / "config.json",
                lambda c, g=group, f=field, v=value: (c[g] if g else c).update({f: v}),
            )
            row.tries += 1
            arguments = ["--pipeline", folder, "--num-images", 1, "--output-dir", tmp_path / "samples"]
            assert "do not fit" in run("generate", *arguments, folder=tmp_path, status=1).error
            row.survived += 1


@pytest.mark.faults
def test_bad_pictures_are_left_out_by_name(clean, tmp_path, tally):
    images = make_images(tmp_path / "images", 6)
    good = (images / "odd" / "image-0001.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg")
    bad = {
        "empty.png": (b"", "empty_file"),
        "text.png": (b"no picture at all", "not_an_image"),
        "short.png": (good[: len(good) // 2], "truncated"),
        "short.jpg": ((tmp_path / "whole.jpg").read_bytes()[:900], "truncated"),
    }
    for name, (content, _) in bad.items():
        (images / "odd" / name).write_bytes(content)
    Image.new("1", (15_000, 15_000)).save(images / "odd" / "bomb.png")
    Image.new("L", (1, 2000)).save(images / "odd" / "strip.png")
    reasons = {f"odd/{name}": reason for name, (_, reason) in bad.items()}
    reasons |= {"odd/bomb.png": "too_many_pixels", "odd/strip.png": "extreme_aspect"}
    with tally("pictures that are none, cut short, bombs or strips") as row:
        row.tries = len(reasons)
        folder = tmp_path / "codes"
        arguments = ["--tokenizer", clean / "tokenizer", "--data.source", images]
        run("tokenize_dataset", *arguments, "--output-dir", folder, folder=tmp_path)
        skipped = {line["source_id"]: line["reason"] for line in lines(folder / "skipped.jsonl")}
        assert skipped == reasons
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["num_images"], manifest["num_skipped"]) == (6, len(reasons))
        checked = run(
            "verify_codes", "--codes", folder, "--tokenizer", clean / "tokenizer", "--source", images, folder=tmp_path
        )
        assert "6 rows were encoded again: 0 of" in checked.output
        training_arguments = [*TOKENIZER.split(), "--data.source", images, "--max-steps", 4]
        run("train_tokenizer", *training_arguments, "--output-dir", tmp_path / "run", folder=tmp_path)
        row.survived, row.lost = len(reasons), "0 good rows"


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_that_has_grown_is_gone_on_with(ranks, clean, tmp_path, tally):
    """Kills on both sides of the growth: nothing is lost, nothing twice, no old shard is made again."""
    images, folder = make_images(tmp_path / "images", 40), tmp_path / "codes"
    arguments = ["--tokenizer", clean / "tokenizer", "--data.source", images, "--images-per-shard", 2]
    arguments += ["--output-dir", folder]

    def done() -> int:
        return len(list((folder / ".shards").glob("*.json")))

    with tally(f"images added, with kills before and after, {ranks} rank{'s' * (ranks > 1)}") as row:
        for step, wanted in enumerate((5, 23)):
            job = Ranks(ranks, "tokenize_dataset", *arguments, folder=tmp_path)
            assert wait_until(lambda wanted=wanted: done() >= wanted, job.running), job.output
            job.kill(list(range(ranks)))
            row.tries += 1
            # (A shard whose record the kill forestalled is made again.)
            recorded = [folder / f"data/codes-{path.stem}.parquet" for path in (folder / ".shards").glob("*.json")]
            old = {path: path.stat().st_mtime_ns for path in recorded}
            make_images(images, 15, first=100 + 15 * step)
            row.survived += 1
        assert set(Ranks(ranks, "tokenize_dataset", *arguments, folder=tmp_path).wait()) == {0}
        assert old
        assert all(path.stat().st_mtime_ns == time for path, time in old.items())
        row.tries += 1
        output = run(
            "verify_codes", "--codes", folder, "--tokenizer", clean / "tokenizer", "--source", images,
            "--num-samples", 0, folder=tmp_path,
        ).output  # fmt: skip
        assert "70 rows were encoded again: 0 of" in output
        row.survived, row.lost = row.survived + 1, "0 rows"

"""What verify_codes finds."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codegrid.errors import CodegridError
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.commands import main
from codegrid.pipelines.data.records import PicturesConfig
from codegrid.prior.codes import CodesError


@pytest.fixture
def config(codes, tokenizer_folder, pictures, tmp_path) -> VerificationConfig:
    copy = shutil.copytree(codes, tmp_path / "codes")
    return VerificationConfig(str(copy), str(tokenizer_folder), PicturesConfig(str(pictures)), num_samples=0)


def rewrite(folder: Path, change, rows: int = 0) -> None:
    """Change the table, and the manifest as a liar would."""
    path, manifest = folder / "data" / "codes-00000.parquet", json.loads((folder / "manifest.json").read_text())
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    entry = {"num_rows": len(table), "num_bytes": path.stat().st_size}
    manifest["shards"][0].update(entry, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    manifest["num_rows"] = len(table)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_data_set(config, capsys):
    verify_codes(config)
    said = capsys.readouterr().out
    assert "36 rows in 1 shards are as the manifest says; 18 images, 0 left out" in said
    assert "36 rows were encoded again: 0 of 576 codes differ." in said
    verify_codes(replace(config, num_samples=5))
    assert "5 rows were encoded again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: pa.concat_tables([table, table.slice(3, 1)]), "an image twice"),
        (lambda table: table.slice(1), "not all 2 variants"),
        (lambda table: table.slice(2), "17 images and 0 lines"),
        (
            lambda table: table.set_column(0, table.schema.field(0), table["codes"].take([*range(1, 36), 0])),
            "codes of 36",
        ),
    ],
)
def test_rows_that_are_lost_doubled_or_wrong(config, change, message):
    rewrite(Path(config.codes), change)
    with pytest.raises(CodesError, match=message):
        verify_codes(config)


def test_a_shard_that_nobody_named(config):
    shutil.copy(
        Path(config.codes) / "data" / "codes-00000.parquet", Path(config.codes) / "data" / "codes-00001.parquet"
    )
    with pytest.raises(CodesError, match=r"does not name: data/codes-00001\.parquet"):
        verify_codes(config)


def test_another_tokenizer(config, tiny_vqmodel, tmp_path):
    tiny_vqmodel.save_pretrained(tmp_path / "other")
    with pytest.raises(CodesError, match=r"^The tokenizer .* and the codes in .* do not fit each other: .*fingerprint"):
        verify_codes(replace(config, tokenizer=str(tmp_path / "other")))


def test_what_is_read_of_the_pictures_is_said_and_the_options_are_those_of_tokenizing(
    codes, pictures, tmp_path, capsys
):
    images = shutil.copytree(pictures, tmp_path / "images")
    for line in (
        ["--data.source", str(images), "--data.split", "train", "--data.follow-links"],
        ["--source", str(images), "--split=train"],
        ["--data.source", str(images), "--data.label-column", "none", "--data.validation-fraction", "0.2"],
    ):
        main(["verify-codes", "--codes", str(codes), *line])
        said = capsys.readouterr().out
        assert "Read as: folder of images, split train 18 (this one)." in said
        assert "The bytes of 18 images are those that were tokenized." in said
        assert said.index("Read as") < said.index("as the manifest says")
    with pytest.raises(SystemExit):
        main(["verify-codes", "--codes", str(codes), "--data.source", str(images), "--data.limit", "5"])
    assert "Give the --data options of the tokenizing" in capsys.readouterr().err
    (images / "noise" / "3.png").unlink()
    with pytest.raises(CodesError, match=r"noise/3\.png, which shard 0 was made of, is not in"):
        verify_codes(VerificationConfig(str(codes), data=PicturesConfig(str(images))))


def test_impossible_numbers():
    with pytest.raises(CodegridError, match="num_samples is -1"):
        VerificationConfig("codes", num_samples=-1)
    with pytest.raises(CodegridError, match=r"max_differing is 1\.5"):
        VerificationConfig("codes", max_differing=1.5)


def test_its_help_describes_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["verify-codes", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for text in (
        "folder of the code data set",
        "--data.source",
        "--data.follow-links",
        "rows to encode again",
        "the first level",
    ):
        assert text in said

"""Compressed files on disk, from the command to pictures and back: what goes on, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from codegrid.errors import CodegridError, MissingFileError
from codegrid.pipelines.compression import to_files
from codegrid.pipelines.compression.from_files import codec_info, decompress
from codegrid.pipelines.compression.to_files import compress
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.files import OutputError

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"
ONE = SAVED / "images" / "disc" / "1.png"


@pytest.fixture
def files(pipeline: Path, tmp_path: Path) -> Path:
    return compress(str(pipeline), DataConfig(str(SAVED / "images")), str(tmp_path / "files"), model="context")


@pytest.fixture
def other_decoder(pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline with the same codes and another decoder, as of `--finetune-decoder`."""
    pipe, other = (ImageGenerationPipeline.from_pretrained(pipeline) for _ in range(2))
    with torch.no_grad():
        other.tokenizer.last_layer.mul_(1.5)
    other.tokenizer.keep_codes_of(pipe.tokenizer)
    other.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", ["prior", "context", "fixed"])
def test_one_picture_goes_into_one_file_and_comes_back(model, pipeline, codec, tmp_path):
    folder = compress(str(pipeline), DataConfig(str(ONE)), str(tmp_path / "one"), model=model)
    (file,) = folder.glob("*.cgc")
    archive = compress(str(pipeline), DataConfig(str(ONE)), archive=str(tmp_path / "one.cga"), model=model)
    assert torch.equal(codec.codes(file.read_bytes())[None], codec.codes(archive.read_bytes()))
    for number, path in enumerate((file, archive)):
        back = decompress(str(path), str(pipeline), str(tmp_path / f"back{number}"))
        (made,) = pixels(back).values()
        assert np.array_equal(made, np.asarray(codec.decompress(file.read_bytes())[0]))


def test_a_stopped_decompression_goes_on_with_what_is_missing(files, pipeline, tmp_path):
    out = decompress(str(files), str(pipeline), str(tmp_path / "out"))
    expected, gone = pixels(out), sorted(out.glob("*.png"))[4]
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    decompress(str(files), str(pipeline), str(out))
    assert same(pixels(out), expected)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    # More files of the same pipeline may come into the folder.
    decompress(str(shutil.copy(sorted(files.glob("*.cgc"))[0], tmp_path / "more.cgc")), str(pipeline), str(out))
    assert len(pixels(out)) == len(expected) + 1
    assert len(json.loads((out / "decompressed.json").read_text())) == len(expected) + 1


def test_two_decoders_pictures_are_not_mixed(files, pipeline, other_decoder, tmp_path):
    out = decompress(str(files), str(pipeline), str(tmp_path / "out"))
    expected = pixels(out)
    sorted(out.glob("*.png"))[-1].unlink()
    with pytest.raises(OutputError, match=r"000000.*\.png is there already, made by another decoder\..*--output-dir"):
        decompress(str(files), str(other_decoder), str(out))
    assert len(pixels(out)) == len(expected) - 1
    fresh = decompress(str(files), str(other_decoder), str(tmp_path / "fresh"))
    assert pixels(fresh).keys() == expected.keys()
    assert not same(pixels(fresh), expected)
    for path in out.glob("*.png"):  # without pictures there is nothing to mix
        path.unlink()
    decompress(str(files), str(other_decoder), str(out))
    assert same(pixels(out), pixels(fresh))


def test_pictures_of_other_files_or_of_nobody_are_not_taken_for_done(files, pipeline, tmp_path):
    out = decompress(str(files), str(pipeline), str(tmp_path / "out"))
    first, second = sorted(files.glob("*.cgc"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(OutputError, match="made from another file than this 000000"):
        decompress(str(files), str(pipeline), str(out))
    (out / "decompressed.json").write_text("[]")
    with pytest.raises(OutputError, match=r"no decompressed\.json beside it says"):
        decompress(str(files), str(pipeline), str(out))


def test_an_archive_goes_on_after_a_stop_and_names_what_was_left_out_before(pipeline, tmp_path, monkeypatch, capsys):
    images = Path(shutil.copytree(SAVED / "images", tmp_path / "images"))
    (images / "disc" / "0.png").write_bytes(b"no picture")
    data, archive = DataConfig(str(images)), tmp_path / "all.cga"
    whole = compress(str(pipeline), data, archive=str(tmp_path / "whole.cga"), model="context", batch_size=4)
    join = to_files._join
    monkeypatch.setattr(to_files, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        compress(str(pipeline), data, archive=str(archive), model="context", batch_size=4)
    capsys.readouterr()
    monkeypatch.setattr(to_files, "_join", join)
    compress(str(pipeline), data, archive=str(archive), model="context", batch_size=4)
    assert "1 pictures are left out: disc/0.png (in an earlier try)." in capsys.readouterr().out
    assert archive.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("tokenizer", "do not fit each other"),
        ("prior", "another model"),
        ("truncated", "cannot be read"),
        ("future", "version 9"),
        ("flipped", "checksum"),
        ("empty", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said_and_gives_no_picture(what, words, pipeline, tmp_path, capsys):
    folder = compress(str(pipeline), DataConfig(str(ONE)), str(tmp_path / "one"))
    (file,) = folder.glob("*.cgc")
    data, given = bytearray(file.read_bytes()), Path(shutil.copytree(pipeline, tmp_path / "given"))
    if what in ("tokenizer", "prior"):
        change_a_weight(given / what / "model.safetensors")
    elif what == "truncated":
        data = data[: len(data) // 2]
    elif what == "future":
        data[2] = 9
    elif what == "flipped":
        data[-3] ^= 4
    else:
        data = bytearray()
    file.write_bytes(data)
    with pytest.raises(CodegridError) as refused:
        decompress(str(file), str(given), str(tmp_path / "out"))
    assert words in refused.value.what
    assert what == "tokenizer" or file.name in refused.value.what  # a pipeline that does not fit itself is not loaded
    assert not (tmp_path / "out").exists()
    if what in ("truncated", "future", "empty"):
        with pytest.raises(CodegridError, match=file.name):
            codec_info(str(file))
    else:
        codec_info(str(file))
        assert "one image" in capsys.readouterr().out


def change_a_weight(path: Path) -> None:
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 0.01
    save_file(weights, path, {"format": "pt"})


def test_a_file_that_is_none_is_named(pipeline, tmp_path):
    for call in (lambda: codec_info(str(tmp_path)), lambda: decompress(str(tmp_path), str(pipeline), str(tmp_path))):
        with pytest.raises(MissingFileError, match=tmp_path.name):
            call()

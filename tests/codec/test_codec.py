"""Pictures to files and back, by the pipeline that be0a219 saved and by the commands."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageCodec
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.codec.file_format import FileFormatError, unpack
from codegrid.pipelines.commands import main
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior.codes import open_codes

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"
FILES = Path(__file__).parent / "files_of_version_1"
MODELS = ("fixed", "context", "prior")


@pytest.fixture(scope="module")
def codes(codec: ImageCodec) -> torch.Tensor:
    data = open_codes(str(SAVED / "codes"))
    return torch.from_numpy(data.codes(np.arange(len(data)))).reshape(-1, *codec.pipe.sequence.grid_shape)


@pytest.mark.parametrize("model", MODELS)
def test_pictures_come_back_as_their_reconstructions(codec, model):
    paths = sorted((SAVED / "images").rglob("*.png"))
    labels = [path.parent.name for path in paths]
    blobs = codec.compress(paths, labels, model)
    encoded = codec.pipe.encode(paths)
    assert all(torch.equal(codec.codes(blob), grid) for blob, grid in zip(blobs, encoded, strict=True))
    images = codec.decompress(blobs, "pt")
    one_by_one = torch.cat([codec.pipe.decode(grid[None]) for grid in encoded])  # files are decoded one by one
    assert torch.equal(images, one_by_one)
    assert [unpack(blob).entries[0].label for blob in blobs] == [int(label == "square") for label in labels]
    # Without classes, too; the sizes of the outputs are those of `__call__`.
    assert isinstance(codec.decompress(codec.compress(paths[0], model=model))[0], Image.Image)


@pytest.mark.parametrize("model", MODELS)
def test_an_archive_is_read_from_any_place(codec, codes, model):
    blob = codec.archive(codes, 0, model, names=[str(index) for index in range(len(codes))])
    assert torch.equal(codec.codes(blob), codes)
    assert torch.equal(codec.codes(blob, [5, 2]), codes[[5, 2]])
    single = codec.compress_codes(codes, 0, model)
    assert len(blob) < sum(map(len, single))
    assert len(codec.decompress(blob, "np")) == len(codes)


@pytest.mark.parametrize("model", MODELS)
def test_files_of_version_1_are_read(codec, codes, model):
    """tests/codec/files_of_version_1 was written by `write_files` below, and must be read by every later version."""
    for kind, expected in (("cgc", codes[0]), ("cga", codes[:3])):
        for name in (f"{model}.{kind}", f"short-{model}.{kind}"):
            assert torch.equal(codec.codes((FILES / name).read_bytes()), expected)
    assert torch.equal(codec.codes((FILES / f"whole-{model}.cgc").read_bytes()), a_larger_grid()[0])


def a_larger_grid() -> torch.Tensor:
    return torch.arange(35).reshape(1, 5, 7) * 7 % 32


def write_files(codec: ImageCodec, codes: torch.Tensor) -> None:
    """Those without a prefix were written before a byte held the grid and bits the index; this writes the others."""
    for model in MODELS:
        (FILES / f"short-{model}.cgc").write_bytes(codec.compress_codes(codes[:1], 1, model)[0])
        (blob,) = codec.compress_codes(a_larger_grid(), 1, model, added=(3, 1))
        (FILES / f"whole-{model}.cgc").write_bytes(blob)
        (FILES / f"short-{model}.cga").write_bytes(codec.archive(codes[:3], [0, 1, 0], model, names=["a", "b", "c"]))


@pytest.mark.parametrize("model", MODELS)
def test_no_changed_file_passes_for_a_right_one(codec, codes, model):
    draw = np.random.default_rng(0)
    blob = codec.compress_codes(codes[:1], 1, model)[0]
    read = 0
    for _ in range(150 if model == "prior" else 400):
        changed = bytearray(blob)
        changed[draw.integers(len(blob))] ^= 1 << int(draw.integers(8))
        try:
            found = codec.codes(bytes(changed))
        except CodegridError:
            continue
        read += 1
        assert torch.equal(found, codes[0])  # a bit behind the last decision, which no decoder reads
    assert read < 20
    for length in range(len(blob) - 1):
        with pytest.raises(CodegridError):
            codec.codes(blob[:length])


def test_another_pipeline_is_refused(codec, codes, pipeline):
    other = ImageGenerationPipeline.from_pretrained(pipeline)
    blobs = {model: codec.compress_codes(codes[:1], None, model)[0] for model in MODELS}
    with torch.no_grad():
        next(other.prior.parameters()).add_(1e-3)
    with pytest.raises(FileFormatError, match="another model"):
        ImageCodec(other).codes(blobs["prior"])
    assert torch.equal(ImageCodec(other).codes(blobs["fixed"]), codes[0])
    data = bytearray(blobs["fixed"])
    data[4] ^= 1
    with pytest.raises(FileFormatError, match="another tokenizer"):
        codec.codes(bytes(data))


def test_a_decoder_trained_on_reads_the_same_files(codec, codes, pipeline):
    other = ImageGenerationPipeline.from_pretrained(pipeline)
    with torch.no_grad():
        other.tokenizer.last_layer.mul_(1.5)
    blobs = {model: codec.compress_codes(codes[:1], None, model)[0] for model in MODELS}
    with pytest.raises(FileFormatError, match="another tokenizer"):  # nobody recorded that the codes are the same
        ImageCodec(other).codes(blobs["fixed"])
    other.tokenizer.keep_codes_of(codec.pipe.tokenizer)
    for model, blob in blobs.items():
        assert torch.equal(ImageCodec(other).codes(blob), codes[0])
        assert ImageCodec(other).compress_codes(codes[:1], None, model) == [blob]
    assert not torch.equal(ImageCodec(other).decompress(blob, "pt"), codec.decompress(blob, "pt"))
    with torch.no_grad():
        next(other.tokenizer.encoder.parameters()).add_(1)
    with pytest.raises(FileFormatError, match="another tokenizer"):
        ImageCodec(other).codes(blobs["fixed"])


def test_what_cannot_be_meant_is_refused(codec, codes, tmp_path):
    bare = ImageCodec.from_pretrained(SAVED / "pipeline")
    for call, words in (
        (lambda: bare.compress_codes(codes, None, "context"), "--context"),
        (lambda: codec.compress_codes(codes.float()), "integers"),
        (lambda: codec.compress_codes(codes[0]), "codes is"),
        (lambda: codec.compress_codes(codes, [0, 1]), "labels"),
        (lambda: codec.compress_codes(codes, "cat"), "cat"),
        (lambda: codec.compress_codes(codes, None, "best"), "fixed"),
        (lambda: codec.archive(codes[:0]), "no images"),
        (lambda: codec.decompress(b"", "jpg"), "output_type"),
    ):
        with pytest.raises(CodegridError, match=words):
            call()
    with pytest.raises(LoadingError):
        make_pipeline(
            str(SAVED / "pipeline" / "tokenizer"),
            str(SAVED / "pipeline" / "prior"),
            str(tmp_path / "p"),
            context=_codes_of_another_tokenizer(tmp_path),
        )
    assert not (tmp_path / "p").exists()


def _codes_of_another_tokenizer(folder: Path) -> str:
    copy = shutil.copytree(SAVED / "codes", folder / "codes")
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace("2dd92afa6e3ed299", "3dd92afa6e3ed299"))
    return str(copy)


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["codegrid", *map(str, arguments)])
    try:
        main([*map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_commands(pipeline, tmp_path, monkeypatch, capsys):
    given = ["--pipeline", pipeline, "--data.source", SAVED / "images"]
    assert run(monkeypatch, "compress", *given, "--output-dir", tmp_path / "each") == 0
    files = sorted((tmp_path / "each").glob("*.cgc"))
    assert len(files) == 12
    assert "disc_0.png" in files[0].name
    # Going on writes what is missing, and nothing else.
    files[3].unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    assert run(monkeypatch, "compress", *given, "--output-dir", tmp_path / "each") == 0
    assert files[3].exists()
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    assert run(monkeypatch, "compress", *given, "--output-dir", tmp_path / "each", "--model", "fixed") != 0
    assert run(monkeypatch, "compress", *given, "--archive", tmp_path / "all.cga", "--names") == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    for source, name in (("each", "000000-disc_0.png.png"), ("all.cga", "all-000000-disc_0.png.png")):
        out = tmp_path / f"from-{source}"
        assert (
            run(monkeypatch, "decompress", "--pipeline", pipeline, "--files", tmp_path / source, "--output-dir", out)
            == 0
        )
        assert len(list(out.glob("*.png"))) == 12
        assert (out / name).is_file()
    capsys.readouterr()
    assert run(monkeypatch, "codec-info", tmp_path / "all.cga") == 0
    assert "12 images" in capsys.readouterr().out
    one = SAVED / "images" / "disc" / "1.png"
    assert (
        run(monkeypatch, "compress", "--pipeline", pipeline, "--data.source", one, "--output-dir", tmp_path / "o") == 0
    )
    assert len(list((tmp_path / "o").glob("*.cgc"))) == 1
    for bad in (["codec-info", tmp_path], ["codec-info", one], ["compress", *given]):
        assert run(monkeypatch, *bad) != 0


def test_names_in_an_archive_never_leave_the_folder(codec, codes, pipeline, tmp_path, monkeypatch):
    blob = codec.archive(codes[:2], None, "fixed", names=["../../evil", "/etc/passwd"])
    (tmp_path / "a.cga").write_bytes(blob)
    out = tmp_path / "deep" / "out"
    assert (
        run(monkeypatch, "decompress", "--pipeline", pipeline, "--files", tmp_path / "a.cga", "--output-dir", out) == 0
    )
    assert sorted(path.parent for path in tmp_path.rglob("*.png")) == [out, out]


def test_the_pipeline_keeps_its_context(pipeline, tmp_path):
    pipe = ImageGenerationPipeline.from_pretrained(pipeline)
    pipe.save_pretrained(tmp_path / "copy")
    again = ImageGenerationPipeline.from_pretrained(tmp_path / "copy")
    assert again.context.fingerprint == pipe.context.fingerprint

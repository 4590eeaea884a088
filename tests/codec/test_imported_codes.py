"""Codes without pictures as files: they come back exactly, in every shape and by every model, or are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageCodec
from codegrid.pipelines.codec.file_format import FileFormatError, unpack
from codegrid.pipelines.codes.bring import ImportCodesConfig, import_codes
from codegrid.pipelines.compression.from_files import decompress
from codegrid.pipelines.compression.to_files import compress
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.prior import PriorConfig, make_prior, save_prior
from codegrid.prior.codes import open_codes, read_manifest

MODELS = ("fixed", "context", "prior")
SIZES = {"l": 7, "h": 3, "w": 4, "d": 2, "t": 3}
AXES = ("l", "dl", "ld", "hw", "hwd", "dhw", "thw", "thwd")


def rows_of(axes: str, number: int, codebook_size: int = 11) -> np.ndarray:
    shape = (number, *(SIZES[axis] for axis in axes))
    return np.random.default_rng(len(axes)).integers(0, codebook_size, shape).astype(np.uint16)


def made(folder: Path, axes: str, number: int = 40) -> tuple[np.ndarray, Path]:
    """Rows, their code data set in CODES, and in PIPE an untrained prior of them with a context model."""
    rows = rows_of(axes, number)
    np.save(folder / "rows.npy", rows)
    import_codes(ImportCodesConfig(str(folder / "rows.npy"), "a test", 11, str(folder / "CODES"), axes))
    sequence = read_manifest(folder / "CODES").sequence_config()
    torch.manual_seed(0)
    sizes = PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5)
    save_prior(make_prior(sizes, sequence), sequence, folder / "RUN")
    make_pipeline("none", str(folder / "RUN"), str(folder / "PIPE"), context=str(folder / "CODES"))
    return rows, folder / "PIPE"


@pytest.mark.parametrize("axes", AXES)
def test_rows_of_every_shape_come_back_exactly(axes, tmp_path):
    rows, pipe = made(tmp_path, axes)
    codec = ImageCodec.from_pretrained(pipe)
    for model in MODELS:
        for source, archive in (("CODES", f"{model}.cga"), ("rows.npy", f"{model}-rows.cga")):
            compress(str(pipe), DataConfig(str(tmp_path / source)), archive=str(tmp_path / archive), model=model)
        assert (tmp_path / f"{model}.cga").read_bytes() == (tmp_path / f"{model}-rows.cga").read_bytes()
        decompress(str(tmp_path / f"{model}.cga"), str(pipe), str(tmp_path / f"back-{model}"))
        back = np.load(tmp_path / f"back-{model}" / "codes.npy", allow_pickle=False)
        assert np.array_equal(back, rows)
    # A file of one row, in Python; nothing of the archives' bytes depends on which road they took.
    sequence, first = codec.pipe.sequence, open_codes(tmp_path / "CODES").codes(np.arange(1))
    grid = torch.from_numpy(first).reshape(1, *sequence.grid_shape, *([sequence.depth] if sequence.depth > 1 else []))
    for model in MODELS:
        (blob,) = codec.compress_codes(grid, model=model)
        assert torch.equal(codec.codes(blob), grid[0])
        archive = unpack((tmp_path / f"{model}.cga").read_bytes())
        assert archive.entries[0] == unpack(blob).entries[0]


def test_damaged_files_and_files_of_others_are_refused(tmp_path):
    _, pipe = made(tmp_path, "dl")
    codec = ImageCodec.from_pretrained(pipe)
    draw = np.random.default_rng(0)
    codes = torch.from_numpy(draw.integers(0, 11, (3, 1, 7, 2)))
    for model in MODELS:
        for blob, right in (
            (codec.archive(codes, model=model), codes),
            (codec.compress_codes(codes, model=model)[0], codes[0]),
        ):
            refused = 0
            for _ in range(60):
                changed = bytearray(blob)
                changed[draw.integers(len(blob))] ^= 1 << int(draw.integers(8))
                try:
                    found = codec.codes(bytes(changed))
                except CodegridError:
                    refused += 1
                    continue
                assert torch.equal(found, right)  # a bit of the pipeline's name, or behind the last decision
            assert refused > 30
    # The same codes of the same codebook in another shape are others.
    (tmp_path / "other").mkdir()
    other = ImageCodec.from_pretrained(made(tmp_path / "other", "ld")[1])
    with pytest.raises(FileFormatError, match="another tokenizer"):
        other.codes(codec.compress_codes(codes, model="fixed")[0])
    (tmp_path / "long.cgc").write_bytes(codec.compress_codes(codes.repeat(1, 1, 2, 1), model="context")[0])
    with pytest.raises(FileFormatError, match=r"holds grids of \(1, 14\)"):
        decompress(str(tmp_path / "long.cgc"), str(pipe), str(tmp_path / "X"))
    assert not (tmp_path / "X" / "codes.npy").exists()
    with pytest.raises(CodegridError, match="at most 65536 a side"):  # no file is written that nobody could read
        codec.compress_codes(torch.zeros(1, 1, 2**16 + 1, 2, dtype=torch.int64), model="fixed")
    with pytest.raises(CodegridError, match="no pictures"):
        codec.decompress(codec.compress_codes(codes))
    with pytest.raises(CodegridError, match="no pictures"):
        codec.compress(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("source", "options", "whole", "message"),
    [
        ("wide.npy", {}, False, r"wide.npy:0 has the shape \(8,\), and a row is to have \(7,\)"),
        ("high.npy", {}, False, "high.npy:1 holds the code 11, and the codebook has 11"),
        ("rows.npy", {"split": "test"}, False, "data.source is what is read"),
        ("rows.npy", {}, True, "these are codes"),
        ("OTHERS", {}, False, "do not fit each other"),
    ],
)
def test_other_codes_are_refused_and_leave_nothing(source, options, whole, message, tmp_path):
    _, pipe = made(tmp_path, "l")
    np.save(tmp_path / "wide.npy", np.arange(16).reshape(2, 8) % 11)
    np.save(tmp_path / "high.npy", np.arange(14).reshape(2, 7) % 12)
    import_codes(ImportCodesConfig(str(tmp_path / "rows.npy"), "others", 11, str(tmp_path / "OTHERS"), "l"))
    with pytest.raises(CodegridError, match=message):
        compress(str(pipe), DataConfig(str(tmp_path / source), **options), str(tmp_path / "X"), whole=whole)
    assert not list(tmp_path.glob("X/*.cgc"))

"""Codes of others: what is read of arrays, tables and text, what is refused, and that a prior gives them back."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features

from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.codes.bring import ImportCodesConfig, import_codes
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.compression.evaluation import evaluate_compression
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.evaluation.prior import evaluate_prior
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.generation import to_folder
from codegrid.pipelines.generation.codes_only import as_imported
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import generate_images
from codegrid.pipelines.importing.checkpoints import export_diffusers
from codegrid.pipelines.report.report import report
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.prior.presets import quickstart_prior
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.prior import PriorConfig, SequenceConfig, load_prior, make_prior, sample_codes, save_prior, to_tokens
from codegrid.prior.codes import open_codes
from codegrid.prior.sequence_config import AXES

SIZES = {"l": 5, "h": 3, "w": 4, "d": 2, "t": 3}


def imported(source: Path, folder: Path, **options) -> Path:
    return import_codes(
        ImportCodesConfig(str(source), "a test", options.pop("codebook_size", 50), str(folder), **options)
    )


def saved(folder: Path, array: np.ndarray, name: str = "codes.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_every_shape_comes_back_as_it_was(axes, dtype, tmp_path):
    codes = np.random.default_rng(0).integers(0, 50, (7, *(SIZES[axis] for axis in axes))).astype(dtype)
    data = open_codes(imported(saved(tmp_path, codes), tmp_path / "codes", axes=axes))
    sequence = data.manifest.sequence_config()
    assert sequence.axes == {axis: SIZES[axis] for axis in axes}
    assert SequenceConfig(**json.loads(json.dumps(sequence.to_dict()))) == sequence
    assert np.array_equal(as_imported(data.codes(np.arange(7)), sequence), codes)


@pytest.mark.parametrize("axes", AXES)
def test_codes_of_a_position_lie_side_by_side(axes, tmp_path):
    """A prior reads all codes of a position before the next: codes that count positions are sorted."""
    places = {axis: SIZES[axis] for axis in ("t", "l", "h", "w") if axis in axes}
    counted = np.arange(np.prod(list(places.values()))).reshape(*places.values())
    if "d" in axes:
        counted = np.repeat(counted[None] if axes[0] == "d" else counted[..., None], 2, 0 if axes[0] == "d" else -1)
    data = open_codes(imported(saved(tmp_path, counted[None]), tmp_path / "codes", axes=axes))
    assert data.codes(np.arange(1))[0].tolist() == sorted(counted.flatten().tolist())


def test_a_stream_is_cut_and_its_end_is_counted(tmp_path, capsys):
    stream = np.random.default_rng(0).integers(0, 50, (3, 1007))  # three levels, as EnCodec's
    data = open_codes(imported(saved(tmp_path, stream), tmp_path / "codes", axes="dl", length=10))
    assert (len(data), data.manifest.grid_shape, data.manifest.depth) == (100, (1, 10), 3)
    assert "7 positions at the ends were left out" in capsys.readouterr().out
    together = as_imported(data.codes(np.arange(100)), data.manifest.sequence_config())  # [100, 3, 10]
    assert np.array_equal(np.concatenate(list(together), axis=1), stream[:, :1000])
    training, held_out = data.split(0.2)
    assert min(len(training), len(held_out)) > 0  # windows of one stream are held out one by one


def test_text_is_its_bytes(tmp_path):
    text = "Im Anfang schuf Gott Himmel und Erde. Und die Erde war wüst und leer. " * 3
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    data = open_codes(imported(tmp_path / "book.txt", tmp_path / "codes", codebook_size=256, length=8))
    assert data.codes(np.arange(len(data))).astype(np.uint8).tobytes() in text.encode()


def test_tables_with_rows_of_any_length_and_classes(tmp_path, capsys):
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 9, int(length)).tolist() for length in draw.integers(3, 40, 200)]
    labels = [["oboe", "harp", None][index % 3] for index in range(200)]
    pq.write_table(pa.table({"tokens": rows, "what": labels}), tmp_path / "rows.parquet")
    options = {"codes_column": "tokens", "label_column": "what", "length": 6, "codebook_size": 9}
    folder = imported(tmp_path / "rows.parquet", tmp_path / "codes", **options)
    data = open_codes(folder)
    cut = [
        (row[6 * part : 6 * part + 6], label)
        for row, label in zip(rows, labels, strict=True)
        for part in range(len(row) // 6)
    ]
    assert data.codes(np.arange(len(data))).tolist() == [codes for codes, _ in cut]
    names = data.manifest.class_names
    assert names == ("harp", "oboe")
    assert [None if label < 0 else names[label] for label in data.labels] == [label for _, label in cut]
    short = sum(len(row) < 6 for row in rows)
    assert data.manifest.num_skipped == short > 0
    assert f"{short} sequences left out" in capsys.readouterr().out
    # Windows of a row are on one side of the split.
    sides = [{data._table["source_id"][int(row)] for row in part} for part in data.split(0.3)]
    assert not sides[0] & sides[1]
    verify_codes(VerificationConfig(str(folder)))


def test_a_folder_has_splits_and_a_column_its_own_classes(tmp_path):
    features = Features({"codes": Array2D((2, 3), "int16"), "label": ClassLabel(names=["oboe", "harp"])})
    (tmp_path / "rows").mkdir()
    for first, split in enumerate(("train", "test")):
        grids = np.arange(24).reshape(4, 2, 3) + first
        table = Dataset.from_dict({"codes": grids.tolist(), "label": [1, 0, None, 1]}, features)
        table.to_parquet(str(tmp_path / "rows" / f"{split}-0.parquet"))
    folder = imported(tmp_path / "rows", tmp_path / "codes", axes="hw", label_column="label", split="test")
    data = open_codes(folder)
    assert data.manifest.class_names == ("oboe", "harp")
    assert data.labels.tolist() == [1, 0, -1, 1]
    assert data.codes(np.arange(4)).reshape(4, 2, 3).tolist() == (np.arange(24).reshape(4, 2, 3) + 1).tolist()


REFUSED = [
    ("codes.npy", {}, "4 x 50.*--axes l reads 4 rows.*--axes dl reads a sequence"),
    ("codes.npy", {"axes": "thw"}, "4 x 50, which is not --axes thw"),
    ("codes.npy", {"axes": "l", "codebook_size": 20}, "holds the code .*, and the codebook has 20"),
    ("codes.npy", {"axes": "hw", "length": 2}, "Only sequences and frames are cut"),
    ("codes.npy", {"axes": "l", "length": 51}, "No row of 51 positions"),
    ("codes.npy", {"axes": "l", "label_column": "x"}, "has no columns"),
    ("floats.npy", {"axes": "l"}, "holds float64, not whole numbers"),
    ("objects.npy", {"axes": "l"}, "cannot be read"),
    ("negative.npy", {}, "holds the code -1"),
    ("nested.parquet", {}, "in lists, 2 deep.*--axes hw reads rows, each a grid"),
    ("nested.parquet", {"codes_column": "x"}, "has no column x.*codes"),
    ("ragged.parquet", {}, "has the shape .3,., and a row is to have .2,."),
    ("ragged.parquet", {"codes_column": "names"}, "names is string in lists"),
    ("ragged.parquet", {"label_column": "names"}, "names of ragged.* has no classes: it is List"),
    ("holes.parquet", {}, "has no codes"),
    ("odd.parquet", {"codes_column": "uneven", "axes": "hw"}, "odd.parquet:0 has lists of several lengths"),
    ("odd.parquet", {"codes_column": "null"}, "A code of odd.parquet:0, or of a row behind it, is null"),
    ("odd.parquet", {"codes_column": "whole", "label_column": "half"}, "has no classes: 0.5 is no class"),
    ("odd.parquet", {"codes_column": "whole", "label_column": "unknown"}, "has no classes: all are unknown"),
    ("floats.csv", {}, "is no .npy, .txt or .parquet file"),
    ("zero.npy", {"axes": "l"}, "zero.npy:0 has no codes"),
    ("unlike", {}, "unlike .train. cannot be read .*truncated"),
    ("empty.txt", {}, "cannot be read .cannot mmap an empty file"),
    ("none/at-all", {}, "neither a file nor a folder here"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    saved(folder, np.random.default_rng(0).integers(0, 50, (4, 50)))
    saved(folder, np.ones((2, 3)), "floats.npy")
    np.save(folder / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    saved(folder, np.array([3, -1, 2]), "negative.npy")
    pq.write_table(pa.table({"codes": [[[1, 2], [3, 4]]]}), folder / "nested.parquet")
    pq.write_table(pa.table({"codes": [[1, 2], [1, 2, 3]], "names": [["a"], ["b"]]}), folder / "ragged.parquet")
    pq.write_table(pa.table({"codes": [[1, 2], None]}), folder / "holes.parquet")
    odd = {"uneven": [[[1, 2], [3]]], "null": [[1, None]], "whole": [[1, 2]], "half": [0.5]}
    pq.write_table(pa.table({**odd, "unknown": pa.array([None], pa.int64())}), folder / "odd.parquet")
    (folder / "floats.csv").write_text("1,2")
    (folder / "empty.txt").write_text("")
    saved(folder, np.zeros((3, 0), np.int64), "zero.npy")
    (folder / "unlike").mkdir()
    for name, codes in (("a", [[1, 2]]), ("b", [[0.5, 2.0]])):
        pq.write_table(pa.table({"codes": codes}), folder / "unlike" / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(("name", "options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_ambiguous_or_wrong_is_refused_and_leaves_nothing(
    name, options, message, sources, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = name if name.startswith("none/") else sources / name
    with pytest.raises(ValueError, match=f"(?s){message}"):
        imported(source, tmp_path / "codes", **options)
    assert not list(tmp_path.iterdir())


def test_the_same_command_again_does_nothing_and_another_source_is_refused(tmp_path, capsys):
    source = saved(tmp_path, np.arange(40) % 7)
    folder = imported(source, tmp_path / "codes", length=5)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    imported(source, tmp_path / "codes", length=5)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(OutputError, match="another source or settings"):
        imported(source, tmp_path / "codes", length=8)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_prior_learns_them_scores_them_and_gives_them_back(tmp_path, tokenizer_folder, capsys):
    """Two steps of every command; what needs pictures says that there are none."""
    draw = np.random.default_rng(0)
    rows = {"codes": draw.integers(0, 16, (40, 2, 6)).tolist(), "label": [index % 2 for index in range(40)]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    options = {"axes": "dl", "label_column": "label", "codebook_size": 16}
    folder = imported(tmp_path / "rows.parquet", tmp_path / "codes", **options)
    config = quickstart_prior(str(folder), str(tmp_path / "run"))
    for name, value in {"max_steps": 2, "batch_size": 4, "validation_fraction": 0.2}.items():
        object.__setattr__(config, name, value)
    train_prior(config)
    said = capsys.readouterr().out
    assert "a test gives no pictures" in said
    assert "12 codes of 16 a row" in said
    scores = json.loads((evaluate_prior(str(tmp_path / "run"), str(folder)) / "prior.json").read_text())
    assert scores["results"][0]["bits_per_pixel"] is None
    made = generate_images(str(tmp_path / "run"), str(tmp_path / "made"), num_images=5, batch_size=2, seed=3)
    codes = np.load(made / "codes.npy", allow_pickle=False)
    assert codes.shape == (5, 2, 6)
    assert codes.max() < 16
    fewer = generate_images(str(tmp_path / "run"), str(tmp_path / "fewer"), num_images=3, batch_size=3, seed=3)
    assert np.array_equal(np.load(fewer / "codes.npy", allow_pickle=False), codes[:3])
    run, pictures = str(tmp_path / "run"), DataConfig(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match="codes without pictures"):
        make_pipeline(str(tokenizer_folder), run, str(tmp_path / "pipeline"))
    with pytest.raises(ValueError, match="no pictures"):  # of edit, demo and the evaluations of pictures
        ImageGenerationPipeline.from_pretrained(run)
    with pytest.raises(ValueError, match="no pictures"):
        evaluate_compression(run, pictures)
    for command in (
        lambda: reconstruct(run, pictures, str(tmp_path / "no")),
        lambda: export_diffusers(run, str(tmp_path / "no")),
        lambda: tokenize_dataset(TokenizationConfig(run, pictures, str(tmp_path / "no"))),
    ):
        with pytest.raises(LoadingError, match=r"holds a prior of codes that .*: they have no pictures"):
            command()
    assert "they have no pictures" in report(run).read_text()
    for card in (tmp_path / "run" / "README.md", folder / "README.md"):
        assert "image" not in card.read_text()
        assert "tokenizer" not in card.read_text()
    known = evaluate_prior(run, str(folder), str(tmp_path / "known"), given=8) / "prior.json"
    behind = json.loads(known.read_text())["results"][0]["nats_per_code"]
    model, sequence = load_prior(run)
    rows = open_codes(folder).split(0.2)[1]
    data = open_codes(folder)
    codes, (labels, _) = torch.from_numpy(data.codes(rows)), data.condition_values(rows)
    with torch.no_grad():  # of the stock model: each code behind the eighth
        tokens = to_tokens(codes, labels, None, sequence)
        scores = model(tokens).logits[:, :-1, :16].double().log_softmax(-1)
    chosen = scores.gather(-1, tokens[:, 1:, None])[:, 8:, 0]
    assert behind == pytest.approx(-chosen.mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="given is 12"):
        evaluate_prior(run, str(folder), str(tmp_path / "known"), given=12)


def test_drawing_goes_on_after_a_stop(tmp_path, monkeypatch):
    sequence = SequenceConfig(16, (1, 6), 2, axes={"d": 2, "l": 6})
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    save_prior(prior, sequence, tmp_path / "run")

    def draw(folder: Path) -> Path:
        return generate_images(str(tmp_path / "run"), str(folder), num_images=5, seed=3, batch_size=2)

    whole, stopped = draw(tmp_path / "whole"), tmp_path / "stopped"
    drawn = []

    def draw_one(*arguments, generators, **options):
        if drawn:
            raise RuntimeError("stopped")
        drawn.append(len(generators))
        return sample_codes(*arguments, generators=generators, **options)

    monkeypatch.setattr(to_folder, "sample_codes", draw_one)
    for left in (2, 1, 0):
        with pytest.raises(RuntimeError, match="stopped") if left else nullcontext():
            draw(stopped)
        assert (stopped / "codes.npy").exists() == (not left)
        assert drawn == [2 if left else 1]
        drawn.clear()
    assert (stopped / "codes.npy").read_bytes() == (whole / "codes.npy").read_bytes()
    assert sorted(path.name for path in stopped.iterdir()) == ["codes.npy", "generation.json"]
    draw(stopped)
    assert not drawn  # all are there

"""Row "what a model is follows from how it was trained": null class, guidance, dtype, fingerprint.

`class_dropout` 0 on labelled rows, and chains of casts: tests/pipelines/test_casting.py.
"""

import copy
import io
import pickle
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_runs import prior_run

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.training.prior import train
from codegrid.prior.codes import open_codes
from codegrid.tokenizer import VQModel

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"


def codes_with(folder: Path, labels: list[str | None]) -> Path:
    """A code data set of noise with these labels; None is unknown."""
    draw, rows = np.random.default_rng(3), []
    for _ in labels:
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append(buffer.getvalue())
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": rows, "label": pa.array(labels, pa.string())}), folder / "pictures.parquet")
    config = TokenizationConfig(
        str(SAVED / "tokenizer"), DataConfig(str(folder / "pictures.parquet")), str(folder / "codes"), device="cpu"
    )
    return tokenize_dataset(config)


def held_out_of(codes: Path) -> list[int]:
    return open_codes(codes).split(0.3)[1].tolist()


TWO = ["cat", "dog"] * 8


def drawn(seed: int) -> tuple[list[str | None], dict]:
    draw = random.Random(seed)
    labels = [draw.choice(["cat", "dog", "owl"]) for _ in range(draw.randint(12, 20))]
    if draw.random() < 0.5:
        labels[draw.randrange(len(labels))] = None
    return labels, {"class_dropout": draw.choice([0.0, 1e-3, 0.02]), "max_steps": draw.randint(1, 4), "seed": seed}


CASES = {
    "a share that no sample of a short run meets": (lambda labels: labels, {"class_dropout": 1e-9}),
    "unlabelled rows that are all held out": ("held out", {"class_dropout": 0.0}),
    "one unlabelled row to train on": ("trained", {"class_dropout": 0.0, "max_steps": 4}),
    **{f"drawn from {seed}": (seed, {}) for seed in (2, 3, 7)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_null_class_is_there_where_it_was_trained(tmp_path, monkeypatch, case):
    how, changes = CASES[case]
    labels = list(TWO)
    if isinstance(how, int):
        labels, changes = drawn(how)
    elif isinstance(how, str):
        held_out = held_out_of(codes_with(tmp_path / "first", labels))  # by the rows' names, which stay
        chosen = held_out if how == "held out" else [row for row in range(len(labels)) if row not in held_out][:1]
        for row in chosen:
            labels[row] = None
    codes, seen = codes_with(tmp_path / "data", labels), []
    original = train.prior_loss

    def watched(model, codes, labels, drop, *rest, **options):
        if model.training:
            seen.append(drop is not None and bool(drop.any()))
        return original(model, codes, labels, drop, *rest, **options)

    monkeypatch.setattr(train, "prior_loss", watched)
    run = train.train_prior(prior_run(tmp_path / "prior", codes, validation_fraction=0.3, **changes))
    assert seen, case
    sequence = load_prior_and_sequence(run)[1]
    assert sequence.null_class == any(seen), (case, changes, labels)
    assert sequence.can_be_guided == any(seen)
    pipe = ImageGenerationPipeline.from_pretrained(
        make_pipeline(str(SAVED / "tokenizer"), str(run), str(tmp_path / "pipe"))
    )
    assert (pipe.sampling.guidance_scale == 1.0) == (not any(seen)), case
    if not any(seen):
        with pytest.raises(CodegridError, match="no null class"):
            pipe("cat", guidance_scale=1.5, progress=False)


def test_classes_that_no_row_is_of_are_said(tmp_path, capsys):
    first = held_out_of(codes_with(tmp_path / "all", ["cat"] * 20))[0]
    codes = codes_with(tmp_path / "data", ["owl" if row == first else "cat" for row in range(20)])
    train.train_prior(prior_run(tmp_path / "prior", codes, validation_fraction=0.3))
    assert "is of 1 of the 2 classes, which the prior cannot learn: owl." in capsys.readouterr().out


ACTS = {
    "half": lambda model, folder: model.half(),
    "bfloat16": lambda model, folder: model.to(torch.bfloat16),
    "double": lambda model, folder: model.double(),
    "type": lambda model, folder: model.type(torch.float16),
    "move": lambda model, folder: model.to("cpu").cpu(),
    "channels last": lambda model, folder: model.to(memory_format=torch.channels_last),
    "copy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "train": lambda model, folder: model.train().eval(),
    "freeze": lambda model, folder: model.requires_grad_(False),
    "save": lambda model, folder: load_tokenizer(save(model, folder)),
    "shards": lambda model, folder: VQModel.from_pretrained(save(model, folder, max_shard_size="20KB")),
    "load as": lambda model, folder: VQModel.from_pretrained(save(model, folder), dtype="float32"),
}


def save(model: VQModel, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


WRITTEN = (
    ["half", "pickle", "shards", "channels last"],
    ["double", "load as", "bfloat16", "save", "copy"],
    ["freeze", "type", "train", "save", "move", "load as"],
)


@pytest.mark.parametrize("acts", [*WRITTEN, random.Random(23).choices(list(ACTS), k=7)], ids="-".join)
def test_what_happens_to_a_model_leaves_its_fingerprint(tmp_path, acts):
    model = load_tokenizer(SAVED / "tokenizer")
    before = model.fingerprint()
    for number, act in enumerate(acts):
        model = ACTS[act](model, tmp_path / str(number))
        assert model.fingerprint() == before, (acts, number)
    with torch.no_grad():
        model.decoder.conv_out.bias.add_(1)
    assert model.fingerprint() != before, acts
    other = load_tokenizer(save(model, tmp_path / "changed"))
    assert other.fingerprint() == model.fingerprint(), acts

"""Training a prior: what a run leaves behind, and that breaking it off changes nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from codegrid.errors import CodegridError
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.files import sha256
from codegrid.pipelines.training.checkpoint import load_newest_checkpoint
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.prior import train as train_prior
from codegrid.pipelines.training.run import TrainingError
from codegrid.prior import bits_per_code, load_prior
from codegrid.prior.codes import CodesError, open_codes


class Broken(Exception):  # noqa: N818
    """Stands for whatever kills a run between two steps."""


def break_off() -> None:
    raise Broken


def relabelled(codes, folder, labels):
    """A copy of a code data set with other labels; None for no labels at all."""
    shutil.copytree(codes, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    path = folder / shard["file"]
    table = pq.read_table(path)
    place = table.column_names.index("label")
    if labels is None:
        table, manifest["class_names"] = table.remove_column(place), None
    else:
        table = table.set_column(place, table.schema.field("label"), pa.array(labels, pa.int64()))
    pq.write_table(table, path)
    shard["sha256"], shard["num_bytes"] = sha256(path), path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_run_leaves_a_prior_and_metrics(prior_folder, codes, read_metrics):
    model, sequence = load_prior(prior_folder)
    manifest = open_codes(codes).manifest
    assert sequence == manifest.sequence_config()
    assert sequence.class_names == ("gradient", "noise", "stripes")
    other = AutoModelForCausalLM.from_pretrained(prior_folder)  # as others would load it
    tokens = torch.tensor([[32, 1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)
    train, validation = read_metrics(prior_folder)
    assert (train["step"], validation["step"]) == (2, 2)
    assert {"loss", "grad_norm", "learning_rate"} <= set(train)
    assert validation["cross_entropy"] == pytest.approx(math.log(32), abs=0.3)
    assert validation["bits_per_code"] == pytest.approx(bits_per_code(validation["cross_entropy"]))
    assert manifest.tokenizer_fingerprint in (prior_folder / "README.md").read_text()


def test_a_run_that_was_broken_off_equals_one_that_was_not(prior_config, tmp_path, at_step, monkeypatch, read_metrics):
    """Killed after step 3, then stopped by SIGTERM."""
    changes = {
        "max_steps": 8,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "log_every": 3,
        "eval_every": 4,  # each saves a checkpoint as well
        "save_every": 2,
        "class_dropout": 0.4,
        "label_smoothing": 0.1,
        "model": {"attention_dropout": 0.3, "tie_word_embeddings": True},
    }
    whole = train_prior.train_prior(prior_config(tmp_path / "whole", **changes))
    config = prior_config(tmp_path / "parts", **changes)
    with monkeypatch.context():
        at_step(train_prior, "seed_step", 3, break_off)
        with pytest.raises(Broken):
            train_prior.train_prior(config)
    assert read_metrics(tmp_path / "parts")[-1]["step"] == 3
    at_step(train_prior, "seed_step", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        train_prior.train_prior(config)
    assert stop.value.code == 143
    assert load_newest_checkpoint(tmp_path / "parts" / "checkpoints").step == 5
    parts = train_prior.train_prior(config)

    for name in ("model.safetensors", "metrics.jsonl", "config.json", "sequence_config.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (load_newest_checkpoint(folder / "checkpoints") for folder in (whole, parts))
    assert {"model", "optimizer", "ema"} <= set(one.groups) == set(other.groups)
    for group, tensors in one.groups.items():
        assert all(torch.equal(tensor, other.groups[group][name]) for name, tensor in tensors.items()), group


MODELS = [{"positions": "rotary_2d", "hidden_size": 32}, {"qk_norm": True}, {"positions": "learned"}]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_architecture_is_trained_and_sampled_from_its_folder(model, prior_config, tokenizer_folder, tmp_path):
    config = prior_config(tmp_path / "run", model=model, tokenizer=str(tokenizer_folder), eval_every=2, num_samples=2)
    folder = train_prior.train_prior(config)
    made = make_pipeline(str(tokenizer_folder), str(folder), str(tmp_path / "pipeline"))
    pipeline = ImageGenerationPipeline.from_pretrained(made)
    assert type(pipeline.prior) is type(load_prior(folder)[0])
    assert pipeline(0, output_type="codes").codes.shape == (1, 4, 4)


def test_codes_of_another_tokenizer_are_refused(prior_config, tokenizer_folder, tiny_vqmodel, tmp_path):
    tiny_vqmodel.save_pretrained(tmp_path / "other")
    with pytest.raises(CodesError, match=r"do not fit each other: .*fingerprint of the tokenizer"):
        train_prior.train_prior(prior_config(tmp_path / "run", tokenizer=str(tmp_path / "other")))
    assert not (tmp_path / "run").exists()
    train_prior.train_prior(prior_config(tmp_path / "run", tokenizer=str(tokenizer_folder), max_steps=1))


def test_codes_without_labels_train_an_unconditional_prior(prior_config, codes, tmp_path):
    unlabelled = relabelled(codes, tmp_path / "codes", None)
    folder = train_prior.train_prior(prior_config(tmp_path / "run", codes=str(unlabelled), max_steps=1))
    model, sequence = load_prior(folder)
    assert sequence.class_names is None
    assert model.config.vocab_size == 33  # the codes and null


def test_classes_are_dropped_to_null_and_unknown_labels_train_it(prior_config, codes, tmp_path, monkeypatch):
    labels = [-1, 1] * 18
    prefixes = []
    original = train_prior.prior_loss

    def watched(model, batch, labels, drop, sequence, **options):
        prefixes.append((model.training, labels.tolist(), drop.tolist()))
        return original(model, batch, labels, drop, sequence, **options)

    monkeypatch.setattr(train_prior, "prior_loss", watched)
    folder = relabelled(codes, tmp_path / "codes", labels)
    for dropout in (0.0, 0.5):
        prefixes.clear()
        train_prior.train_prior(
            prior_config(tmp_path / str(dropout), codes=str(folder), class_dropout=dropout, max_steps=4)
        )
        training = [row for mode, *row in prefixes if mode]
        known = [drop for _, drops in training for label, drop in zip(_, drops, strict=True) if label == 1]
        unknown = [drop for _, drops in training for label, drop in zip(_, drops, strict=True) if label == 0]
        assert all(unknown)
        assert len(unknown) > 4
        assert (0.2 < np.mean(known) < 0.8) if dropout else not any(known)
        evaluation = [row for mode, *row in prefixes if not mode]
        assert evaluation
        for found, drops in evaluation:  # with its class, wherever there is one
            assert [label == 0 for label in found] == drops


def test_balanced_classes_come_equally_often(prior_config, codes, tmp_path, monkeypatch):
    folder = relabelled(codes, tmp_path / "codes", [0] * 30 + [1] * 5 + [-1])
    taken = []
    original = train_prior.prior_loss

    def watched(model, batch, labels, drop, sequence, **options):
        if model.training:
            taken.extend(label if not lost else -1 for label, lost in zip(labels.tolist(), drop.tolist(), strict=True))
        return original(model, batch, labels, drop, sequence, **options)

    monkeypatch.setattr(train_prior, "prior_loss", watched)
    shares = {}
    for balance in (0.0, 1.0):
        taken.clear()
        run = tmp_path / str(balance)
        train_prior.train_prior(
            prior_config(run, codes=str(folder), class_balance=balance, class_dropout=0.0, max_steps=36)
        )
        shares[balance] = np.mean([label == 1 for label in taken if label >= 0])
    assert shares[0.0] < 0.25
    assert 0.35 < shares[1.0] < 0.65


def test_classes_that_are_not_there_cannot_be_balanced(prior_config, codes, tmp_path):
    unlabelled = relabelled(codes, tmp_path / "codes", None)
    with pytest.raises(CodegridError, match=r"class_balance is 0\.5, and these codes have no classes"):
        train_prior.train_prior(prior_config(tmp_path / "run", codes=str(unlabelled), class_balance=0.5))
    assert not (tmp_path / "run").exists()


def test_gradients_that_are_not_finite_change_no_weight_and_end_the_run(prior_config, tmp_path, monkeypatch):
    original, seen = train_prior.prior_loss, []

    def broken(model, *args, **options):
        seen.append([value.clone() for value in model.parameters()])
        return original(model, *args, **options) * math.nan

    monkeypatch.setattr(train_prior, "prior_loss", broken)
    monkeypatch.setattr("codegrid.pipelines.training.run._MOST_BAD_STEPS", 3)
    with pytest.raises(TrainingError, match="3 steps in a row up to step 2"):
        train_prior.train_prior(prior_config(tmp_path / "run", max_steps=9))
    assert len(seen) == 3
    assert all(torch.equal(first, last) for first, last in zip(seen[0], seen[-1], strict=True))


def test_holding_everything_out_is_an_error(prior_config, tmp_path):
    with pytest.raises(CodesError, match="Lower validation_fraction"):
        train_prior.train_prior(prior_config(tmp_path / "run", validation_fraction=0.9999))


def test_training_starts_from_another_priors_weights(prior_config, tmp_path, capsys):
    first = train_prior.train_prior(prior_config(tmp_path / "first", max_steps=1))
    config = prior_config(
        tmp_path / "second", init_from=str(first), max_steps=1, optimizer=OptimizerConfig(learning_rate=1e-9)
    )
    second = train_prior.train_prior(config)
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert "another tokenizer" not in capsys.readouterr().out

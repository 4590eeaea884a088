"""Row "training longer, with less memory": more steps and other micro-batches go on, and it is said."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tokenizer_run, write_pictures

from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.run import read_metrics
from codegrid.pipelines.training.tokenizer.train import train_tokenizer

CHANGES = {
    "longer": {"max_steps": 5},
    "smaller parts": {"gradient_accumulation_steps": 4},
    "both, and recomputed": {"max_steps": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("changes", [*CHANGES, 8])
def test_it_goes_on_and_says_what_changed(changes, tmp_path, capsys):
    if isinstance(changes, int):
        draw = random.Random(changes)
        given = {"max_steps": draw.randint(3, 6), "gradient_accumulation_steps": draw.choice([1, 2, 4])}
    else:
        given = CHANGES[changes]
    config = tokenizer_run(tmp_path / "run", write_pictures(tmp_path / "data"), save_every=1, log_every=1)
    train_tokenizer(config)
    capsys.readouterr()
    train_tokenizer(replace(config, **given))
    said = capsys.readouterr().out
    for name, value in given.items():
        if name != "gradient_checkpointing" and value != getattr(config, name):
            assert f"{name} was {getattr(config, name)}, is {value}" in said, given
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert steps == list(range(1, given.get("max_steps", 2) + 1)), given


def test_parts_of_a_batch_give_the_whole_batchs_weights(tmp_path):
    """Without a codebook that is restarted on the batch's features, only rounding differs."""
    data = write_pictures(tmp_path / "data")
    weights = []
    for parts in (1, 2, 4):
        config = tokenizer_run(
            tmp_path / str(parts),
            data,
            gradient_accumulation_steps=parts,
            optimizer=OptimizerConfig(learning_rate=1e-4),
        )
        weights.append(load_file(train_tokenizer(config) / "model.safetensors"))
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight"):
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=4e-4)
        torch.testing.assert_close(weights[2][name], weights[0][name], rtol=0, atol=4e-4)


@pytest.mark.parametrize("changes", [{"batch_size": 8}, {"seed": 2}, {"max_steps": 1}, {"ema_decay": 0.9}])
def test_what_cannot_go_on_names_the_way(changes, tmp_path):
    config = tokenizer_run(tmp_path / "run", write_pictures(tmp_path / "data"), save_every=1)
    train_tokenizer(config)
    (name,) = changes
    with pytest.raises(OutputError, match=f"Different are: {name} was .*--init-from .*run"):
        train_tokenizer(replace(config, **changes))

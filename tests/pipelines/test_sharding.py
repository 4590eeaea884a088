"""A prior that two ranks divide (FSDP2): the losses, weights and files of one that is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codegrid.errors import CodegridError
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.prior.train import PriorStage, train_prior
from codegrid.prior import PriorConfig

CODES = Path(__file__).resolve().parents[1] / "saved_by_be0a219" / "codes"
STEPS = 4
LLAMA = PriorTrainingConfig(
    codes=str(CODES),
    output_dir="llama",
    max_steps=STEPS,
    batch_size=4,  # a row for each rank and micro-step
    gradient_accumulation_steps=2,
    gradient_checkpointing=True,
    mixed_precision="no",
    device="cpu",
    tracking=(),
    log_every=1,
    save_every=2,
    keep_last=9,
    validation_fraction=0.4,
    ema_decay=0.9,
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1),
    model=PriorConfig(hidden_size=18, num_hidden_layers=3, num_attention_heads=3, intermediate_size=30),
    sharding="fsdp2",
)
# Blocks that are called as modules, and one table for input and output.
GPT2 = replace(
    LLAMA,
    output_dir="gpt2",
    max_steps=2,
    gradient_checkpointing=False,
    model=PriorConfig(
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        architecture="gpt2",
        tie_word_embeddings=True,
    ),
)
RANKS = """
import json, os, shutil, sys
from dataclasses import replace
from pathlib import Path
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

os.chdir(sys.argv[1])
sys.path.append(sys.argv[2])
from test_sharding import GPT2, LLAMA, before_step
from codegrid.pipelines.training import learner
from codegrid.pipelines.training.prior import train

evaluate = train.PriorStage.evaluate

def watched(stage, done):
    stage.held_out = stage.held_out[:3]
    if done == LLAMA.max_steps and stage.config.output_dir == "llama":
        weights = list(stage.model.parameters()) + list(stage.ema.weights.values())
        weights += [each for slots in stage.learner.optimizer.state.values() for each in slots.values() if each.dim()]
        assert all(isinstance(weight, DTensor) for weight in weights)
        units = [name for name, module in stage.objective.named_modules() if isinstance(module, FSDPModule)]
        mine = sum(weight.to_local().numel() for weight in weights)
        share = mine / sum(weight.numel() for weight in weights)
        Path(f"rank{stage.run.accelerator.process_index}.json").write_text(json.dumps([share, units]))
    return evaluate(stage, done)

train.PriorStage.evaluate = watched
train.train_prior(LLAMA)
host_looks = learner.looks
learner.looks = train.looks = lambda step, device: False  # the device decides, as it does on a GPU
train.train_prior(GPT2)
learner.looks = train.looks = host_looks
if os.environ["RANK"] == "0":
    before_step(Path("llama"), Path("resumed"), 2)
torch.distributed.barrier()
train.train_prior(replace(LLAMA, output_dir="resumed"))
"""


def before_step(run: Path, copy: Path, step: int) -> None:
    """A copy of a finished run as it was after `step`."""
    shutil.copytree(run, copy)
    for path in copy.iterdir():
        if path.name not in ("checkpoints", "training_config.json", "made_from.json", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of the runs that two ranks divided, and in whole/ those of one process."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "script.py").write_text(RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, folder / "script.py", folder, Path(__file__).parent],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    for config in (LLAMA, GPT2):
        train_with_three_held_out(replace(config, output_dir=str(folder / "whole" / config.output_dir), num_samples=0))
    return folder


def train_with_three_held_out(config: PriorTrainingConfig) -> None:
    """Two ranks have two and one of them."""
    evaluate = PriorStage.evaluate

    def of_three(stage: PriorStage, done: int | None) -> dict[str, float]:
        stage.held_out = stage.held_out[:3]
        return evaluate(stage, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriorStage, "evaluate", of_three)
        train_prior(config)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.pop("kind"), one.keys()) == (other.pop("kind"), other.keys())
        assert one == pytest.approx(other, rel=1e-5)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_ranks_that_divide_a_prior_train_the_same_one(runs, name):
    assert_close(lines(runs / name), lines(runs / "whole" / name))
    one, other = weights(runs / name), weights(runs / "whole" / name)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5, msg=key)


def test_each_rank_holds_its_part_and_each_layer_is_a_unit(runs):
    found = [json.loads((runs / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    shares = [share for share, _ in found]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) <= 0.55
    assert found[0][1] == ["", *(f"model.model.layers.{layer}" for layer in range(3))]


def test_a_resumed_run_has_the_same_bits(runs):
    assert lines(runs / "resumed") == lines(runs / "llama")
    for file in sorted((runs / "llama" / "checkpoints" / "step-000000004").glob("*.safetensors")):
        other = runs / "resumed" / "checkpoints" / "step-000000004" / file.name
        assert file.read_bytes() == other.read_bytes(), file.name
    assert (runs / "resumed" / "model.safetensors").read_bytes() == (runs / "llama" / "model.safetensors").read_bytes()


def test_one_process_goes_on_with_what_two_divided(runs):
    before_step(runs / "llama", runs / "alone", 2)
    train_with_three_held_out(replace(LLAMA, output_dir=str(runs / "alone"), num_samples=0))  # one rank divides nothing
    assert_close(lines(runs / "alone"), lines(runs / "llama"))


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(CodegridError, match=r"optimizer\.type 'muon', which orthogonalizes whole matrices"):
        replace(LLAMA, optimizer=OptimizerConfig(type="muon"))
    with pytest.raises(CodegridError, match="compile is on"):
        replace(LLAMA, gradient_checkpointing=False, compile=True)
    with pytest.raises(CodegridError, match="sharding is 'zero'"):
        replace(LLAMA, sharding="zero")

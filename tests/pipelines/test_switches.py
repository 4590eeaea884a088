"""The switches of stage one: what they change, and what they leave as it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codegrid.pipelines.training import switches
from codegrid.pipelines.training.checkpoint import load_newest_checkpoint
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.layers import lay_out

SWITCHES = [{"channels_last": False}, {"gradient_checkpointing": True}, {"compile": True}]
OBJECTIVE = {"adversarial_weight": 0.5, "adversarial_start": 1, "adversarial_warmup": 0, "r1_weight": 1.0}


@pytest.fixture
def without_code(monkeypatch):
    """torch.compile only traces, and leaves out the making of code, which takes minutes."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))


@pytest.fixture(scope="module")
def plain(tokenizer_config, tmp_path_factory):
    """A run of three steps with every switch as it is by default."""
    config = tokenizer_config(
        tmp_path_factory.mktemp("plain") / "run",
        max_steps=3,
        log_every=1,
        save_every=1,
        keep_last=3,
        ema_decay=0.5,
        objective=OBJECTIVE,
        backbone={"mid_attention": True},
    )
    train_tokenizer(config)
    return config


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: next(iter(switch)))
def test_a_switch_changes_neither_the_training_nor_the_names(switch, plain, tmp_path, without_code, read_metrics):
    """Of a run that goes on with the switch after the first step: a resume may set it."""
    config = replace(plain, output_dir=str(tmp_path / "run"), **switch)
    shutil.copytree(plain.output_dir, config.output_dir)
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:09d}")
    folder = train_tokenizer(config)
    one, other = (load_newest_checkpoint(path / "checkpoints") for path in (folder, Path(plain.output_dir)))
    assert {group: list(tensors) for group, tensors in one.groups.items()} == {
        group: list(tensors) for group, tensors in other.groups.items()
    }
    # The step that follows is the same but for rounding, down to its gradients; AdamW then magnifies what is rounded.
    line, expected = (
        next(line for line in read_metrics(path) if line["step"] == 2) for path in (folder, Path(plain.output_dir))
    )
    assert line.pop("kind") == expected.pop("kind")
    assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)
    VQModel.from_pretrained(folder)


def test_channels_last_off_keeps_every_layout_plain(tiny_vqmodel):
    images = torch.rand(2, 3, 16, 16)
    expected = tiny_vqmodel(images)
    seen = []
    tiny_vqmodel.decoder.conv_out.register_forward_hook(lambda module, args, output: seen.append(output))
    found = lay_out(tiny_vqmodel, channels_last=False)(images)
    assert seen[0].is_contiguous()
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-5)
    lay_out(tiny_vqmodel)(images)
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


def test_gradient_checkpointing_keeps_less_for_the_same_gradients(tiny_vqmodel):
    images, kept, gradients = torch.rand(2, 3, 16, 16), [], []
    tiny_vqmodel.train()
    for _ in range(2):
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = tiny_vqmodel(images).reconstruction.square().mean()
        kept.append(sum(sizes))
        gradients.append(torch.autograd.grad(loss, list(tiny_vqmodel.encoder.parameters())))
        switches.checkpoint_blocks(tiny_vqmodel)
    assert kept[1] < 0.6 * kept[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_compiling_without_a_compiler_ends_in_one_sentence(tokenizer_config, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"there is no C\+\+ compiler"):
        train_tokenizer(tokenizer_config(tmp_path / "run", compile=True))

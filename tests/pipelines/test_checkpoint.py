"""Checkpoints: what comes back, and what happens to the older ones when something breaks."""

from __future__ import annotations

import errno
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training import checkpoint as checkpoint_module
from codegrid.pipelines.training import loop
from codegrid.pipelines.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_newest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    what_is_wrong,
)
from codegrid.pipelines.training.optim import OptimizerConfig, make_optimizer


def make(step: int, **groups) -> Checkpoint:
    groups = groups or {"model": {"weight": torch.full((3, 2), float(step))}, "window": {"loss": torch.tensor(0.5)}}
    return Checkpoint(step, groups, {"images": step * 8})


def steps(folder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def test_all_comes_back_bit_for_bit(tmp_path):
    groups = {
        "model": {
            "a.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
            "b": torch.randn(5).bfloat16(),
            "nan": torch.tensor([float("nan"), -0.0]),
            "turned": torch.randn(3, 2).t(),
        },
        "window": {"steps": torch.ones(()), "counts": torch.arange(4)},
    }
    groups["model"]["tied"] = groups["model"]["b"]
    path = save_checkpoint(tmp_path, Checkpoint(7, groups, {"names": ["ä"]}), keep_last=1)
    assert path.name == "step-000000007"
    assert what_is_wrong(path) is None
    loaded = load_newest_checkpoint(tmp_path)
    assert (loaded.step, loaded.state) == (7, {"names": ["ä"]})
    assert {name: set(tensors) for name, tensors in loaded.groups.items()} == {
        name: set(tensors) for name, tensors in groups.items()
    }
    for name, tensors in groups.items():
        for key, tensor in tensors.items():
            found = loaded.groups[name][key]
            assert found.dtype == tensor.dtype
            torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path, memory_format):
    def make_model():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=memory_format)
        return model, make_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.1))

    def step(model, optimizer, seed):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        model(images).pow(3).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make_model()
    step(model, optimizer, 0)
    groups = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer, model)}
    assert {"exp_avg/0.weight", "step/1.bias"} <= set(groups["optimizer"])
    save_checkpoint(tmp_path, make(1, **groups), keep_last=1)
    step(model, optimizer, 1)

    resumed, other = make_model()
    loaded = load_newest_checkpoint(tmp_path)
    resumed.load_state_dict(loaded.groups["model"])
    load_optimizer_tensors(other, resumed, loaded.groups["optimizer"])
    step(resumed, other, 1)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["model.safetensors", "window.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "zero", "delete", "empty"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, name, damage):
    for step in (5, 10):
        save_checkpoint(tmp_path, make(step), keep_last=2)
    path = tmp_path / "step-000000010" / name
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"truncate": content[: len(content) // 2], "zero": bytes(len(content)), "empty": b""}[damage])
    said = []
    loaded = load_newest_checkpoint(tmp_path, said.append)
    assert loaded.step == 5
    assert torch.equal(loaded.groups["model"]["weight"], torch.full((3, 2), 5.0))
    assert len(said) == 1
    assert "step-000000010" in said[0]
    assert name in said[0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's own memory")
def test_a_checkpoint_is_read_by_mapping(tmp_path):
    """Its pages are the file's: a prior of 3B parameters has 50 GB of them, and eight ranks read it."""

    def own() -> int:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    path = save_checkpoint(tmp_path, make(1, model={"weight": torch.rand(2**23)}), 1)  # 32 MiB
    before = own()
    weight = load_checkpoint(path).groups["model"]["weight"]
    assert weight.sum() > 1
    assert own() - before < 2**23


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("step"),
        lambda manifest: manifest.update(step="10"),
        lambda manifest: manifest.update(files={}),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"].pop("state.json"),
        lambda manifest: manifest["files"].update({"model.safetensors": None}),
        lambda manifest: manifest["files"].update({"../step-000000005/state.json": manifest["files"]["state.json"]}),
        lambda manifest: manifest["files"].update({"/etc/hostname": {"bytes": 1, "sha256": ""}}),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path, change):
    for step in (5, 10):
        save_checkpoint(tmp_path, make(step), keep_last=2)
    path = tmp_path / "step-000000010" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert what_is_wrong(path.parent)
    assert load_newest_checkpoint(tmp_path, lambda message: None).step == 5


def test_a_file_that_its_manifest_vouches_for_and_nobody_can_read_is_passed_over(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, make(step), keep_last=2)
    path = tmp_path / "step-000000010"
    (path / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = {
        "sha256": checkpoint_module.sha256(path / "model.safetensors"),
        "bytes": (path / "model.safetensors").stat().st_size,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    said = []
    assert load_newest_checkpoint(tmp_path, said.append).step == 5
    assert "step-000000010: it cannot be read (model.safetensors" in said[0]


def test_without_a_good_checkpoint_there_is_none(tmp_path):
    assert load_newest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "step-000000003").mkdir()
    (tmp_path / ".tmp-step-4").mkdir()
    said = []
    assert load_newest_checkpoint(tmp_path, said.append) is None
    assert len(said) == 1


def test_the_newest_and_the_multiples_are_kept(tmp_path):
    for step in range(1, 8):
        save_checkpoint(tmp_path, make(step), keep_last=2, keep_every=3)
    assert steps(tmp_path) == [3, 5, 6, 7]
    save_checkpoint(tmp_path, make(8), keep_last=1)
    assert steps(tmp_path) == [8]


def test_a_damaged_newer_checkpoint_does_not_drive_out_a_good_one(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, make(step), keep_last=2)
    (tmp_path / "step-000000010" / "model.safetensors").unlink()
    save_checkpoint(tmp_path, make(7), keep_last=1)  # resumed from 5, stopped at 7
    assert load_newest_checkpoint(tmp_path, lambda message: None).step == 7
    assert steps(tmp_path) == [7]


def test_folders_of_other_names_are_left_alone(tmp_path):
    (tmp_path / "step-best").mkdir()
    (tmp_path / "step-000000001.bak").mkdir()
    save_checkpoint(tmp_path, make(2), keep_last=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-best", "step-000000001.bak", "step-000000002"}
    assert load_newest_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, make(5), keep_last=1)
    written = []

    def full(tensors, path):
        if written:
            path.write_bytes(b"half a file")
            raise error
        written.append(path)
        path.write_bytes(b"a file")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OutputError, match=r"No space left on device.*The earlier .*are intact"):
        save_checkpoint(tmp_path, make(10), keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    assert load_newest_checkpoint(tmp_path).step == 5


def test_a_file_that_does_not_read_back_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(5), keep_last=1)
    count = itertools.count()  # never twice the same
    monkeypatch.setattr(checkpoint_module, "sha256", lambda path: str(next(count)))
    with pytest.raises(OutputError, match="does not read back"):
        save_checkpoint(tmp_path, make(10), keep_last=1)
    assert steps(tmp_path) == [5, 10]


def test_what_an_earlier_crash_left_is_no_obstacle(tmp_path):
    (tmp_path / ".tmp-step-5").mkdir()
    (tmp_path / ".tmp-step-5" / "stray.safetensors").write_bytes(b"half")
    (tmp_path / "step-000000005").mkdir()  # without a manifest
    path = save_checkpoint(tmp_path, make(5), keep_last=1)
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "state.json",
        "window.safetensors",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["step-000000005"]


def test_one_rank_verifies_and_the_others_read_what_it_names(tmp_path, monkeypatch):
    for step in (5, 10):
        save_checkpoint(tmp_path / "checkpoints", make(step), keep_last=2)
    (tmp_path / "checkpoints" / "step-000000010" / "model.safetensors").unlink()
    box, said, hashed = [], [], []
    original = checkpoint_module.sha256
    monkeypatch.setattr(checkpoint_module, "sha256", lambda path: (hashed.append(path), original(path))[1])

    class Stands:
        def load(self, groups):
            loaded.append(groups["model"]["weight"])

    loaded = []
    for rank in (0, 1):

        def on_main(act, rank=rank):  # the others get what the first one returns
            if rank == 0:
                box.append(act())
            return box[0]

        run = SimpleNamespace(
            checkpoints=tmp_path / "checkpoints",
            folder=tmp_path,
            log=said.append,
            on_main=on_main,
            accelerator=SimpleNamespace(num_processes=1, device=torch.device("cpu"), process_index=0),
            forget_metrics_after=lambda step: None,
            start_trackers=lambda step: None,
        )
        before = len(hashed)
        assert loop.resume(run, Stands(), {}) == 5
        assert (len(hashed) > before) == (rank == 0)
    assert torch.equal(*loaded)
    assert sum("step-000000010" in line for line in said) == 1

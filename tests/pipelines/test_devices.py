"""One policy says how a device computes; it is printed and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from codegrid.pipelines.system.devices import Policy, computes_bf16, make_accelerator, product_rate, wait_patiently
from codegrid.pipelines.training.run import TrainingError, check_distribution
from codegrid.prior.codes import read_manifest

ROOT = Path(__file__).resolve().parents[2]


def test_a_cpu_has_bf16_where_it_computes_in_it():
    assert make_accelerator("cpu").policy == Policy("cpu")
    wanted = "bfloat16" if computes_bf16(cpu=True) else "float32"
    accelerator = make_accelerator("cpu", "auto", training=True, deterministic=True)
    assert accelerator.policy == Policy("cpu", wanted, tf32=False, deterministic=True)
    assert str(accelerator.policy) == f"cpu, {wanted}, deterministic"


def test_a_gpu_is_asked_for_bf16_that_it_does_not_emulate(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or False)
    assert not computes_bf16(cpu=False)
    assert asked == [{"including_emulation": False}]


def test_tf32_is_for_training_on_nvidia_alone(monkeypatch):
    """Codes of TF32 are no codes of float32: a CPU would not make them again."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert Policy.decide("auto", "no", training=True, deterministic=False).tf32
    assert not Policy.decide("auto", "no", training=False, deterministic=False).tf32
    assert not Policy.decide("auto", "no", training=True, deterministic=True).tf32
    assert not Policy.decide("cpu", "no", training=True, deterministic=False).tf32
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert Policy.decide("auto", "auto", training=True, deterministic=False) == Policy("mps", "bfloat16")


def test_a_code_data_set_says_how_it_was_computed(codes):
    expected = {"device": "cpu", "precision": "float32", "tf32": False, "deterministic": False}
    assert read_manifest(codes).policy == expected
    assert json.loads((codes / "manifest.json").read_text())["precision"] == "float32"


def test_the_rate_of_products_is_a_rate():
    assert 1e6 < product_rate(torch.device("cpu"), torch.float32, rows=64, width=64) < 1e15


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_wrappers_that_shard_parameters_are_refused(kind):
    """The optimizer is made of the bare parameters, which they would replace."""
    with pytest.raises(TrainingError, match=f"Accelerate's config says {kind}") as caught:
        check_distribution(SimpleNamespace(distributed_type=DistributedType[kind]))
    assert "torchrun" in caught.value.remedy
    for known in ("NO", "MULTI_CPU", "MULTI_GPU"):
        check_distribution(SimpleNamespace(distributed_type=DistributedType[known]))


def test_ranks_wait_patiently_where_one_may_work_alone():
    waited = []
    wait_patiently(SimpleNamespace(num_processes=1))
    wait_patiently(SimpleNamespace(num_processes=2, patiently=lambda: waited.append(1)))
    assert waited == [1]
    assert make_accelerator("cpu").patiently() is None
    hasty = [path for path in (ROOT / "pipelines").rglob("*.py") if "wait_for_everyone(" in path.read_text()]
    assert hasty == []

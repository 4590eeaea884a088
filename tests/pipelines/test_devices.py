"""Which device and which precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from codegrid.pipelines.system.devices import computes_bf16


@pytest.mark.parametrize(
    ("device", "in_hardware", "expected"), [("cuda", False, False), ("cuda", True, True), ("mps", False, True)]
)
def test_bf16_is_taken_only_where_the_device_has_it(device, in_hardware, expected, monkeypatch):
    """By default torch says yes on every CUDA device: older ones emulate it, and have no bf16 convolutions."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type=device))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware
    )
    assert computes_bf16(cpu=False) is expected

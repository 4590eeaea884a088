"""A step that does not fit into memory is answered with the settings that fit, and these continue the same command."""

from __future__ import annotations

import pytest
import torch

from codegrid.pipelines.training import out_of_memory as module
from codegrid.pipelines.training.memory_estimate import MemoryEstimate
from codegrid.pipelines.training.out_of_memory import fitting_parts, is_out_of_memory
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer import train as train_tokenizer

GB = 2**30


@pytest.mark.parametrize(
    ("fixed", "step", "micro_batch", "parts"),
    [
        (10, 100, 64, 2),  # 10 + 100 / 2 of 80 GB, of which 72 are lent
        (10, 300, 64, 8),
        (10, 20, 64, 2),  # the estimate is too low: it took at least the other 70
        (10, 300, 15, 5),
        (10, 300, 7, 7),
        (10, 100, 1, 0),
        (75, 100, 64, 0),  # the weights alone do not fit
    ],
)
def test_the_largest_micro_batch_that_fits(fixed, step, micro_batch, parts):
    estimate = MemoryEstimate(GB, (fixed - 1) * GB, step * GB)
    assert fitting_parts(estimate, micro_batch, 80 * GB) == parts
    if parts:
        assert micro_batch % parts == 0
        assert fixed + max(step, 80 - fixed) / parts <= 72


def test_what_is_no_lack_of_memory_is_not_taken_for_one():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: not enough memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_run_says_what_fits_and_goes_on_with_it(tokenizer_config, tmp_path, monkeypatch):
    original, size = train_tokenizer.train_step, []

    def step_of(learners, config, micro_batches, step, accelerator, labels=None):
        size.append(len(micro_batches[0]))
        if size[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(learners, config, micro_batches, step, accelerator, labels=labels)

    monkeypatch.setattr(train_tokenizer, "train_step", step_of)
    config = tokenizer_config(tmp_path / "run")
    whole = config.batch_size
    monkeypatch.setattr(module, "_total_memory", lambda device: 10**9)  # the estimate is far below
    with pytest.raises(TrainingError, match=f"Step 1 does not fit into the .* with a micro-batch of {whole}") as caught:
        train_tokenizer.train_tokenizer(config)
    assert "--gradient-accumulation-steps 2: micro-batches of" in caught.value.remedy
    assert f"the same {whole} samples" in caught.value.remedy
    parts = next(number for number in range(2, whole + 1) if whole % number == 0 and whole // number <= 2)
    train_tokenizer.train_tokenizer(tokenizer_config(tmp_path / "run", gradient_accumulation_steps=parts))
    assert size[-1] == whole // parts
    assert (tmp_path / "run" / "model.safetensors").is_file()

"""A trace of some steps."""

from __future__ import annotations

import json

import pytest

from codegrid.errors import CodegridError
from codegrid.pipelines.training.profiling import TRACE_NAME
from codegrid.pipelines.training.tokenizer.train import train_tokenizer


def test_a_trace_of_the_steps_after_the_third(tokenizer_config, tmp_path, capsys):
    train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=6, profile=2))
    trace = json.loads((tmp_path / "run" / TRACE_NAME).read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sorted(name for name in set(names) if name.startswith("ProfilerStep")) == [
        "ProfilerStep#3",
        "ProfilerStep#4",
    ]
    assert any("conv" in name for name in names)
    assert f"The trace of 2 steps is {tmp_path / 'run' / TRACE_NAME}" in capsys.readouterr().out


def test_without_it_there_is_none_and_a_run_may_ask_for_it_later(tokenizer_config, tmp_path):
    train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=1))
    assert not (tmp_path / "run" / TRACE_NAME).exists()
    train_tokenizer(tokenizer_config(tmp_path / "run", max_steps=6, profile=1))
    assert (tmp_path / "run" / TRACE_NAME).exists()
    with pytest.raises(CodegridError, match="profile is 101"):
        tokenizer_config(tmp_path / "run", profile=101)

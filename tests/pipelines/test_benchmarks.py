"""The benchmarks: that each runs, and that what is compared gives the same."""

from __future__ import annotations

import json
import time
from typing import get_args, get_type_hints

import pytest
import torch

from pipelines.benchmarks import BENCHMARKS, autoencoding, benchmark, nearest_codes, train_step
from pipelines.benchmarks.memory import peak_extra_bytes
from pipelines.benchmarks.report import in_turn


def test_the_nearest_codes_are_compared_with_all_distances_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(nearest_codes, "_SHAPES", ((30, 700, 3), (5, 20, 8)))
    monkeypatch.setattr(nearest_codes, "_TRAINED_SHAPES", ((30, 700, 3),))
    benchmark("nearest-codes", repeats=1, output=str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {(row["rows"], row["codes"], row["width"]) for row in report["rows"]} == {(30, 700, 3), (5, 20, 8)}
    assert {row["search"] for row in report["rows"]} == {"all at once", "ours", "all at once, trained", "ours, trained"}
    assert all(row["same codes"] == 1 for row in report["rows"])
    assert report["settings"]["repeats"] == 1
    printed = capsys.readouterr().out
    assert all(f"{row['search']}" in printed for row in report["rows"])


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_encoding_and_decoding_are_timed(what, monkeypatch, tmp_path):
    for name, value in {"_CH": 32, "_SIDE": 32, "_CODES": 16, "_WIDTH": 8, "_BATCHES": (1, 2)}.items():
        monkeypatch.setattr(autoencoding, name, value)
    benchmark(what, repeats=1, output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    ours = [row for row in rows if row["model"] == "ours"]
    assert [(row["batch"], row["ratio"], row["same"]) for row in ours] == [
        (1, 1, what == "encode"),
        (2, 1, what == "encode"),
    ]


def test_a_training_step_is_timed(monkeypatch, tmp_path):
    for name, value in {"_CH": 32, "_SIDE": 32, "_BATCH": 1, "_CODES": 16}.items():
        monkeypatch.setattr(train_step, name, value)
    benchmark("train-step", repeats=1, output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"ours"}
    assert all(row["images/s"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("peer", "url"), [("taming", "CompVis/taming-transformers"), ("llamagen", "FoundationVision/LlamaGen")]
)
def test_a_folder_that_is_no_clone_of_a_peer_is_named(peer, url, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no .*: clone https://github.com/{url}"):
        benchmark("encode", repeats=1, **{peer: str(tmp_path)})


def test_every_benchmark_can_be_asked_for():
    assert set(get_args(get_type_hints(benchmark)["what"])) == set(BENCHMARKS)


def test_runs_take_turns_and_are_compared_with_the_first():
    order = []

    def sleeping(name: str, seconds: float):
        return lambda: (order.append(name), time.sleep(seconds))

    timings = in_turn({"slow": sleeping("slow", 0.03), "fast": sleeping("fast", 0.003)}, repeats=3)
    assert order == ["slow", "fast"] * 4  # once untimed
    assert timings["slow"].ratio == 1
    assert timings["slow"].seconds >= 0.03
    assert timings["fast"].ratio > 1


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="repeats is 0"):
        benchmark("nearest-codes", repeats=0)


def test_extra_memory_is_what_a_call_takes_at_its_peak():
    held = torch.ones(30_000_000)  # 120 MB that are there before
    for count in (5_000_000, 20_000_000):
        taken = peak_extra_bytes(lambda count=count: torch.ones(count).mul_(2).sum() + held[0])
        if taken is None:
            pytest.skip("this system does not tell a process's peak")
        assert taken == pytest.approx(4 * count, rel=0.2)

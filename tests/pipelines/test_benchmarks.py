"""The benchmarks: that each runs, and that what is compared gives the same."""

from __future__ import annotations

import json
import sys
import time
import types
from dataclasses import fields

import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.benchmarks import (
    BENCHMARKS,
    autoencoding,
    benchmark,
    codes_reading,
    few_steps,
    nearest_codes,
    prior_step,
    rounded_weights,
    sampling,
    tokenizing,
    train_step,
)
from codegrid.pipelines.benchmarks.memory import peak_extra_bytes
from codegrid.pipelines.benchmarks.peers import taming_model, taming_prior
from codegrid.pipelines.benchmarks.report import Timing, _spread, in_turn, print_row
from codegrid.pipelines.commands import main
from codegrid.prior import (
    PriorConfig,
    PriorObjective,
    SequenceConfig,
    linear_maps,
    make_prior,
    prior_loss,
    sample_codes,
    save_prior,
    to_tokens,
)
from codegrid.prior.decoding import read_weights


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


def test_a_folder_of_jpegs_is_timed_beside_its_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizing, "_MADE", 3)
    monkeypatch.setattr(tokenizing, "_SHAPE", (66, 90))
    benchmark("tokenizing", repeats=1, only=("small64",), output=str(tmp_path / "report.json"))
    rows = {row["what"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert {name: row["pictures"] for name, row in rows.items()} == {"reading": 3, "encoding": 3, "job": 3}
    bound = rows["reading"]["ms"] + rows["encoding"]["ms"]
    assert rows["job"]["ratio"] == pytest.approx(bound / rows["job"]["ms"])


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
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no .*\. Clone https://github.com/{url}"):
        benchmark("encode", repeats=1, **{peer: str(tmp_path)})


@pytest.mark.parametrize("what", ["encode", "sampling", "train-step"])
def test_a_folder_that_is_not_of_the_first_version_is_named(what, monkeypatch, tmp_path):
    """Nor is one of today's, which also has a folder of each name."""
    monkeypatch.setattr(sampling, "_SHAPES", (sampling.Shape("tiny", 32, 1, 2, 16, 2),))
    for name in ("tokenizer", "prior", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "pipelines" / "codegrid").mkdir()
    with pytest.raises(CodegridError, match=rf"{tmp_path} is no checkout of be0a219\. Make one: git worktree add"):
        benchmark(what, repeats=1, before=str(tmp_path))


def test_the_first_version_runs_beside(monkeypatch, tmp_path):
    """A stand-in for it, whose sampler tells what it was asked for."""
    asked = []
    earlier = types.SimpleNamespace(
        PriorConfig=PriorConfig,
        SequenceConfig=SequenceConfig,
        make_prior=make_prior,
        sample_codes=lambda *given, **options: asked.append((given[0].state_dict(), options)),
    )
    monkeypatch.setattr(sampling, "first_version", lambda folder, module: earlier)
    monkeypatch.setattr(sampling, "_SHAPES", (sampling.Shape("tiny", 32, 1, 2, 16, 2),))
    monkeypatch.setattr(sampling, "_BATCHES", (1,))
    benchmark("sampling", repeats=1, before="x", output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert (rows[0]["sampler"], rows[0]["ratio"]) == ("be0a219", 1)
    assert asked[0][1] == {"guidance_scale": 4.0, "seeds": range(1), "batch_size": 1}


def test_the_peers_prior_finds_the_function_that_transformers_has_no_more(monkeypatch, tmp_path):
    folder = tmp_path / "taming" / "modules" / "transformer"
    folder.mkdir(parents=True)
    source = "import torch\nfrom transformers import top_k_top_p_filtering\n"
    source += "class GPT(torch.nn.Module):\n    def __init__(self, *sizes, **more):\n        super().__init__()\n"
    (folder / "mingpt.py").write_text(source)
    # transformers puts another module in its own place when it is imported from several sides.
    again = types.ModuleType("transformers")
    monkeypatch.setitem(sys.modules, "transformers", again)
    for name in ("taming", "taming.modules", "taming.modules.transformer", "taming.modules.transformer.mingpt"):
        monkeypatch.setitem(sys.modules, name, None)  # what it was is put back
        del sys.modules[name]
    assert taming_prior(str(tmp_path), 1, 32, 2, 16, 4).training
    assert not hasattr(again, "top_k_top_p_filtering")


def test_sampling_is_compared_with_generate(monkeypatch, tmp_path):
    monkeypatch.setattr(sampling, "_SHAPES", (sampling.Shape("tiny", 32, 1, 2, 16, 2),))
    monkeypatch.setattr(sampling, "_BATCHES", (1, 3))
    benchmark("sampling", repeats=1, output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    float32 = [row for row in rows if row["dtype"] == "float32"]
    samplers = {row["sampler"] for row in float32}
    assert samplers >= {"transformers, dynamic", "transformers, static", "ours"}
    assert len(float32) == 2 * len(samplers)
    assert all(row["tokens/s"] == pytest.approx(4 * row["images/s"]) for row in rows)
    assert all(0 < row["of bound"] < 1 and row["GB/s"] > 0 for row in rows)
    with pytest.raises(ValueError, match="is no clone of LlamaGen"):
        benchmark("sampling", llamagen=str(tmp_path), repeats=1)


@torch.no_grad()
def test_generate_is_guided_as_ours():
    sequence = SequenceConfig(16, (2, 2), class_names=tuple("abc"))
    config = PriorConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5)
    model, labels = make_prior(config, sequence).eval(), torch.tensor([0, 1, 2, 1])
    expected = sample_codes(model, sequence, labels, guidance_scale=4.0, temperature=0)
    assert not torch.equal(sample_codes(model, sequence, labels, temperature=0), expected)
    for cache in ("dynamic", "static"):
        assert torch.equal(sampling.generate(model, sequence, labels, cache), expected)


@torch.no_grad()
def test_the_cost_of_rounded_weights_is_their_cross_entropy():
    sequence = SequenceConfig(16, (2, 3), class_names=tuple("abc"))
    config = PriorConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    model = make_prior(config, sequence).eval()
    codes, labels = torch.randint(0, 16, (7, 6)), torch.arange(7) % 3
    expected = float(prior_loss(model, codes, labels, None, sequence))
    tokens = to_tokens(codes, labels, None, sequence)
    for weights, tolerance in (("exact", 1e-6), ("float16", 1e-3), ("int8", 0.1)):
        nats = rounded_weights.cross_entropy(read_weights(model, 16, 6, weights=weights), tokens)
        assert nats == pytest.approx(expected, rel=tolerance), weights


def test_rounded_weights_are_of_a_prior_and_its_codes(capsys):
    with pytest.raises(SystemExit):
        main(["dev", "benchmark", "rounded-weights"])
    said = capsys.readouterr().err
    assert all(option in said for option in ("needs", "--prior", "--codes"))
    with pytest.raises(TypeError, match="'prior' and 'codes'"):
        benchmark("rounded-weights")


def test_few_steps_are_timed_beside_raster_order(monkeypatch, tmp_path):
    monkeypatch.setattr(few_steps, "_BATCHES", (1, 3))
    sequence = SequenceConfig(16, (2, 3), class_names=("a", "b"))
    for architecture in ("llama", "any_order_llama"):
        config = PriorConfig(32, 1, 2, architecture=architecture)
        save_prior(make_prior(config, sequence), sequence, tmp_path / architecture)
    options = {"prior": str(tmp_path / "any_order_llama"), "raster": str(tmp_path / "llama"), "steps": (6, 2)}
    benchmark("few-steps", **options, repeats=1, output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["batch"], row["steps"]) for row in rows] == [(n, s) for n in (1, 3) for s in ("raster", "6", "2")]
    assert all(row["images/s"] == pytest.approx(row["batch"] / (row["ms"] / 1e3)) for row in rows)
    with pytest.raises(CodegridError, match=r"steps are \[0\]"):
        benchmark("few-steps", **options | {"steps": (0,)})


def test_a_step_of_the_prior_is_compared_with_transformers(monkeypatch, tmp_path):
    sizes = {"_LAYERS": 1, "_WIDTH": 32, "_HEADS": 2, "_CODES": 16, "_GRID": 2, "_BATCH": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(prior_step, name, value)
    benchmark("prior-step", repeats=1, output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"transformers", "ours"}
    assert all(row["tokens/s"] == pytest.approx(2 * 4 / (row["ms"] / 1e3)) for row in rows)
    for peer in ("taming", "llamagen"):
        with pytest.raises(ValueError, match="holds no"):
            benchmark("prior-step", repeats=1, **{peer: str(tmp_path)})


def test_reading_codes_is_compared_with_hugging_faces_reader(monkeypatch, tmp_path):
    for name, value in {"_ROWS": 40, "_READ": 8, "_LENGTH": 4, "_CODES": 16, "_BATCH": 8}.items():
        monkeypatch.setattr(codes_reading, name, value)
    benchmark("codes-reading", repeats=1, output=str(tmp_path / "report.json"))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["reader"] for row in rows] == ["datasets, torch format", "ours"]
    assert all(row["rows/s"] == pytest.approx(8 / (row["ms"] / 1e3)) for row in rows)


def test_the_stock_loss_is_ours():
    sequence = SequenceConfig(16, (2, 2), class_names=tuple("abc"))
    model, tokens = make_prior(PriorConfig(32, 2, 4, initializer_range=0.2), sequence), torch.randint(0, 16, (3, 5))
    expected = PriorObjective(model, 16)(tokens)
    torch.testing.assert_close(prior_step.stock_loss(model, tokens, 16), expected)


COMMON = {"threads", "output"}
TIMED = COMMON | {"repeats", "only"}
BESIDE_PEERS = TIMED | {"device", "taming", "llamagen", "compile"}


def test_every_benchmark_can_be_asked_for_with_the_options_that_it_reads(capsys):
    assert {name: {option.name for option in fields(kind)} for name, kind in BENCHMARKS.items()} == {
        "nearest-codes": TIMED | {"device"},
        "train-step": BESIDE_PEERS | {"before"},
        "encode": BESIDE_PEERS | {"before"},
        "decode": BESIDE_PEERS | {"before"},
        "tokenizing": TIMED | {"device", "pictures", "num_workers"},
        "sampling": TIMED | {"device", "llamagen", "before"},
        "few-steps": TIMED | {"device", "prior", "raster", "steps"},
        "prior-step": BESIDE_PEERS,
        "codes-reading": TIMED,
        "rounded-weights": COMMON | {"prior", "codes"},
    }
    with pytest.raises(SystemExit) as end:
        main(["dev", "benchmark", "--help"])
    assert end.value.code == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, _ in shown] == list(BENCHMARKS)
    assert len({line for _, line in shown}) == len(BENCHMARKS)
    for line, said in (("encodee", "Did you mean 'encode'?"), ("sampling --taming x", "has no option --taming")):
        with pytest.raises(SystemExit) as end:
            main(["dev", "benchmark", *line.split()])
        assert end.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no benchmark 'encodee'\. It is one of nearest-codes"):
        benchmark("encodee")


def test_a_command_runs_its_benchmark_and_reports_its_options(monkeypatch, tmp_path):
    for name, value in {"_ROWS": 40, "_READ": 8, "_LENGTH": 4, "_CODES": 16, "_BATCH": 8}.items():
        monkeypatch.setattr(codes_reading, name, value)
    path, threads = tmp_path / "report.json", torch.get_num_threads()
    main(["dev", "benchmark", "codes-reading", "--repeats", "2", "--threads", str(threads), "--output", str(path)])
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "settings", "rows"}
    options = {"repeats": 2, "threads": threads, "output": str(path), "only": []}
    assert report["settings"] == {"what": "codes-reading", **options}
    assert f"{threads} threads" in report["machine"]


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_benchmark_measures_the_device_that_it_computes_on(device, monkeypatch, tmp_path):
    monkeypatch.setattr(nearest_codes, "_SHAPES", ((3000, 7000, 8),))
    monkeypatch.setattr(nearest_codes, "_TRAINED_SHAPES", ((3000, 7000, 8),))
    benchmark("nearest-codes", repeats=1, device=device, output=str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (torch.cuda.get_device_name() in report["machine"]) == (device == "auto")
    whole = [row for row in report["rows"] if row["search"].startswith("all at once")]
    assert len(whole) == 2
    assert all(row["extra MB"] >= 3000 * 7000 * 4 / 1e6 for row in whole)  # the matrix of distances


def test_runs_take_turns_and_are_compared_with_the_first():
    order = []

    def sleeping(name: str, seconds: float):
        return lambda: (order.append(name), time.sleep(seconds))

    timings = in_turn({"slow": sleeping("slow", 0.03), "fast": sleeping("fast", 0.003)}, repeats=3)
    assert order == ["slow", "fast"] * 4  # once untimed
    assert timings["slow"].ratio == 1
    assert timings["slow"].seconds >= 0.03
    assert timings["fast"].ratio > 1


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ((), {("25M", "1"), ("25M", "8"), ("100M", "1"), ("100M", "8")}),
        (("25M",), {("25M", "1"), ("25M", "8")}),
        (("8",), {("25M", "8"), ("100M", "8")}),
        (("100M", "1"), {("100M", "1")}),
        (("25M", "100M", "8"), {("25M", "8"), ("100M", "8")}),
    ],
)
def test_a_benchmark_runs_in_parts(only, expected):
    asked = BENCHMARKS["sampling"](only=only)
    wanted = {(shape, batch) for shape in ("25M", "100M") for batch in "18" if asked.wants(shape, "float32", batch)}
    assert wanted == expected


def test_a_part_that_is_not_asked_for_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(nearest_codes, "_SHAPES", ((30, 700, 3), (5, 20, 8)))
    monkeypatch.setattr(nearest_codes, "_TRAINED_SHAPES", ((30, 700, 3),))
    monkeypatch.setattr(BENCHMARKS["nearest-codes"], "parts", (("700x3", "20x8"),))
    benchmark("nearest-codes", repeats=1, only=("20x8",), output=str(tmp_path / "report.json"))
    assert {row["codes"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]} == {20}
    with pytest.raises(CodegridError, match="sampling has no part 3B") as caught:
        benchmark("sampling", only=("3B",))
    assert "25M, 100M, float32" in caught.value.remedy


@pytest.mark.parametrize(("rounds", "expected"), [([1.0], 0), ([1.0, 1.0, 1.0], 0), ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 3)])
def test_the_spread_is_that_of_the_middle_half(rounds, expected):
    assert _spread(rounds) == pytest.approx(expected)
    assert Timing(2.0, 1.5, expected).columns() == {"ms": 2000, "spread": f"{expected:.0%}", "ratio": 1.5}


@pytest.mark.parametrize("name", ["requests", "omegaconf.nodes"])
def test_a_package_that_a_peer_imports_is_named(name, tmp_path, monkeypatch):
    clone = tmp_path / "taming" / "models"
    clone.mkdir(parents=True)
    (clone / "vqgan.py").write_text(f"import {name}_of_nobody")
    (tmp_path / "taming" / "__init__.py").touch()
    (clone / "__init__.py").touch()
    for module in [module for module in sys.modules if module.partition(".")[0] == "taming"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(CodegridError, match=r"imports the package \w+, which is not installed") as caught:
        taming_model(str(tmp_path), 32, 32, 16, 8, None)
    assert f"pip install {name.partition('.')[0]}" in caught.value.remedy
    for module in ("taming.models", "taming"):
        sys.modules.pop(module, None)


def test_a_layout_says_what_is_packed_and_what_rows_are_padded_to(monkeypatch):
    model = make_prior(
        PriorConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4), SequenceConfig(24, (2, 2))
    )
    said = sampling.describe_layout(read_weights(model, 24, 4, pack=False))
    assert said.startswith("qkv, out, head, gate_up, down not packed; rows padded to a multiple of ")
    monkeypatch.setattr(linear_maps, "_steady_multiple", lambda *_: 2)
    said = sampling.describe_layout(read_weights(model, 24, 4))
    assert "rows padded to a multiple of 2 (qkv 2, out 2, head 2, gate_up 2, down 2)" in said


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="repeats is 0"):
        benchmark("nearest-codes", repeats=0)


def test_extra_memory_is_that_of_the_device_that_computes(monkeypatch):
    if peak_extra_bytes(lambda: None, "cpu") is None:
        pytest.skip("this system does not tell a process's peak")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU that is not used
    assert peak_extra_bytes(lambda: torch.ones(20_000_000), "cpu") > 70e6
    assert peak_extra_bytes(lambda: None, "mps") is None


def test_extra_memory_is_what_a_call_takes_at_its_peak():
    held = torch.ones(30_000_000)  # 120 MB that are there before
    for count in (5_000_000, 20_000_000):
        taken = peak_extra_bytes(lambda count=count: torch.ones(count).mul_(2).sum() + held[0], "cpu")
        if taken is None:
            pytest.skip("this system does not tell a process's peak")
        assert taken == pytest.approx(4 * count, rel=0.2)


def test_a_row_has_numbers_for_people(capsys):
    print_row(
        {"what": "x", "ms": 1270.4, "ratio": 0.1 + 0.2, "none": None, "size": 65536},
        dict.fromkeys(("what", "ms", "ratio", "none", "size"), 0),
    )
    assert capsys.readouterr().out.split() == ["x", "1,270", "0.3", "-", "65536"]

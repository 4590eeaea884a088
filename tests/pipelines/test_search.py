"""The search for a recipe on a few tiny pictures: rungs, the table and the chart, going on, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.comparison import search
from codegrid.pipelines.comparison.findings import Findings, Trial, chart, markdown
from codegrid.pipelines.comparison.search import search_recipe
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.system.files import OutputError

TINY = ["backbone.ch=8", "backbone.z_channels=8", "batch_size=4", "quantizer.codebook_size=16"]


@pytest.fixture
def find(pictures: Path, tmp_path: Path):
    """`find(**changes)`: two rungs of one and two steps on 18 pictures, two of them held out."""
    data = DataConfig(str(pictures), validation_fraction=0.1)

    def run(**changes) -> Path:
        given = {"data": data, "output_dir": str(tmp_path / "out"), "preset": "quickstart", "steps": 1, "rungs": 2}
        candidates = (" ".join(TINY), " ".join([*TINY, "optimizer.learning-rate=5e-4"]))
        return search_recipe(**{**given, "candidates": candidates, **changes})

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The trainings that are called: the run's folder below the search's, and its steps."""
    calls: list[tuple[str, int]] = []
    original = search.train_tokenizer

    def train(config):
        calls.append(("/".join(Path(config.output_dir).parts[-2:]), config.max_steps))
        return original(config)

    monkeypatch.setattr(search, "train_tokenizer", train)
    return calls


def test_the_better_ones_go_on_and_a_second_call_repeats_nothing(find, trained, capsys):
    folder = find(seeds=2)
    first = [(f"candidate-00{number}/rung-1-0", 1) for number in range(3)]
    assert trained[:3] == first
    report = json.loads((folder / "search.json").read_text())
    scores = [trial["results"]["0.0"]["psnr"] for trial in report["trials"]]
    best = sorted(range(3), key=lambda number: -scores[number])[:2]
    assert trained[3:] == [(f"candidate-00{number}/rung-2-{seed}", 2) for number in best for seed in (0, 1)]
    table = (folder / "search.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count(" ± ") == 2
    assert Image.open(folder / "search.png").width > 100
    model = load_tokenizer(str(folder / "candidate-001" / "rung-1-0"))  # a normal run
    assert model.config.backbone_config.ch == 8
    trained.clear()
    find(seeds=2)
    assert trained == []
    (folder / "search.json").write_text(
        json.dumps({**report, "trials": [{**t, "results": {}} for t in report["trials"]]})
    )
    find(seeds=2)  # the runs are there: each is read, and none trains again
    again = json.loads((folder / "search.json").read_text())
    assert [trial["results"]["0.0"]["psnr"] for trial in again["trials"]] == scores
    with pytest.raises(OutputError, match="another search"):
        find(seeds=2, steps=3)
    with pytest.raises(OutputError, match="candidates"):
        find(seeds=2, candidates=("backbone.ch=16",))


def test_what_contradicts_itself_is_a_row_and_the_others_go_on(find):
    bad = " ".join([*TINY, "backbone.norm_groups=3"])
    folder = find(candidates=(" ".join(TINY), bad), rungs=1)
    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [bool(trial["error"]) for trial in trials] == [False, False, True]
    assert "norm_groups" in trials[2]["error"]
    assert "failed: CodegridError" in (folder / "search.md").read_text()


def test_seconds_become_steps_of_each_candidate(find, monkeypatch):
    monkeypatch.setattr(search, "steps_within", lambda seconds, config: 3 if config.backbone.ch == 8 else 1)
    folder = find(candidates=(" ".join(TINY),), seconds=2.0)
    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [trial["steps"] for trial in trials] == [1, 3]
    last = next(trial for trial in trials if "1.0" in trial["results"])
    assert last["results"]["1.0"]["steps"] == 2 * last["steps"]  # twice the seconds: half of the candidates


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"candidates": ()}, "nothing to try"),
        ({"candidates": ("backbone.chh=8",)}, "no field backbone.chh"),
        ({"vary": ("backbone.ch",)}, "gives no field its values"),
        ({"vary": ("backbone.ch=[",)}, "gives no field its values"),
        ({"candidates": ("backbone.ch=8,16",)}, "several values"),
        ({"preset": "small"}, "preset is 'small'"),
        ({"keep": 1.0}, "keep is 1.0"),
        ({"trials": 0}, "trials is 0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"vary": ("seed=" + ",".join(map(str, range(1001))),)}, "1,001 combinations"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(find, changes, says, tmp_path):
    with pytest.raises(CodegridError, match=says):
        find(**changes)
    assert not (tmp_path / "out").exists()


def test_nothing_held_out_is_refused(find, pictures):
    with pytest.raises(CodegridError, match="are held out"):
        find(data=DataConfig(str(pictures), validation_fraction=0.0))


def test_combinations_and_how_many_of_them_are_drawn():
    axes = ("optimizer.learning_rate=1e-3,0.003", "--backbone.ch-mult=[1,1],[1,2],[2,2]")
    every = search._drawn(axes, (), 16, 0)
    assert every[0] == {}
    assert len(every) == 7
    assert {"optimizer.learning_rate": 1e-3, "backbone.ch_mult": [1, 2]} in every
    some = search._drawn(axes, ("batch_size=8",), 5, 0)
    assert some[:2] == [{}, {"batch_size": 8}]
    assert len(some) == 5
    assert some == search._drawn(axes, ("batch_size=8",), 5, 0)


def test_table_and_chart_put_first_what_went_furthest():
    settings = {"preset": "p", "metric": "psnr", "rungs": 2, "seconds": None, "steps": 5, "keep": 0.5}
    result = {"steps": 5, "seconds": 1.0, "ssim": 0.5}
    trials = [
        Trial({}, results={"0.0": {**result, "psnr": 20.0}}),
        Trial({"a": 1}, results={"0.0": {**result, "psnr": 19.0}, "1.0": {**result, "steps": 10, "psnr": 21.0}}),
        Trial({"a": 2}, error="broken | pipe"),
    ]
    findings = Findings(settings, "a machine", trials)
    rows = markdown(findings).splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| a 1", "| the preset", "| a 2"]
    assert rows[0] == "| a 1 | 19.000 | 21.000 | 10 | 1 |"
    assert "broken \\| pipe" in rows[2]
    assert [list(series.points) for series in chart(findings).series] == [[(5, 19.0), (10, 21.0)], [(5, 20.0)], []]

"""The comparison of quantizers on a few tiny pictures: its table and sheet, going on after a stop, and failures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.comparison import compare_quantizers, rows
from codegrid.pipelines.comparison.report import BEGIN, END, Report, Row, markdown, write_page
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import split_images
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.run import TrainingError


@pytest.fixture
def compare(pictures: Path, tmp_path: Path):
    """`compare(**changes)`: two steps with vq and fsq on 18 pictures, two of them held out."""
    data = DataConfig(str(pictures), validation_fraction=0.1)

    def run(**changes) -> Path:
        settings = {"data": data, "output_dir": str(tmp_path / "out"), "steps": 2, "only": ("vq", "fsq")}
        return compare_quantizers(**{**settings, "num_pictures": 2, **changes})

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the quantizers whose training is called, in order; a name in `failing` fails in it."""
    names: list[str] = []
    original = rows.train_tokenizer

    def train(config):
        name = Path(config.output_dir).name
        names.append(name)
        if name in train.failing:
            raise RuntimeError("no | luck\ntoday")
        return original(config)

    train.failing = set()
    monkeypatch.setattr(rows, "train_tokenizer", train)
    return names


def read(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}


def test_the_table_has_what_each_tokenizer_reaches(compare, pictures, tmp_path, capsys):
    folder = compare(only=("fsq", "vq"))
    found = read(folder)
    assert list(found) == ["vq", "fsq"]  # in the order of VARIANTS
    table = (folder / "comparison.md").read_text()
    assert table in capsys.readouterr().out
    for name, codes in {"vq": 1024, "fsq": 1000}.items():
        model = load_tokenizer(str(folder / name))
        assert model.config.grid_shape == (8, 8)
        assert found[name]["steps"] == 2
        assert found[name]["bits"] == pytest.approx(64 * math.log2(codes))
        assert found[name]["parameters"] == sum(p.numel() for p in model.parameters())
        assert found[name]["seconds"] > 0
        (line,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"| {found[name]['scores']['psnr']:.2f} |" in line
    # The scores are those of the held-out pictures, as the command for reconstructions has them.
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    for number, record in enumerate(split_images(DataConfig(str(pictures), validation_fraction=0.1))[1]):
        (held_out / f"{number}{record.data.suffix}").write_bytes(record.data.read_bytes())
    scored = reconstruct(str(folder / "vq"), DataConfig(str(held_out)), str(tmp_path / "scored"))
    scores = json.loads((scored / "scores.json").read_text())
    assert scores["num_images"] == found["vq"]["scores"]["num_images"] == 2
    assert scores["psnr"] == pytest.approx(found["vq"]["scores"]["psnr"], abs=1e-3)
    # A row of originals and one for each quantizer; two pictures of 32 pixels, enlarged to 64.
    sheet = Image.open(folder / "reconstructions.png")
    assert sheet.height == 3 * 66 + 2
    assert sheet.width > 2 * 66


def test_what_is_done_is_not_repeated_and_what_is_missing_is_added(compare, trained):
    folder = compare(only=("vq",))
    before = read(folder)["vq"]
    compare()
    assert trained == ["vq", "fsq"]
    found = read(folder)
    assert found["vq"] == before
    assert found["fsq"]["scores"]["num_images"] == 2


def test_a_stopped_comparison_goes_on_where_it_was(compare, trained, monkeypatch):
    original = rows._score

    def stop(comparison, row):
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "_score", stop)
    with pytest.raises(KeyboardInterrupt):
        compare()
    monkeypatch.setattr(rows, "_score", original)
    folder = compare()
    assert trained == ["vq", "vq", "fsq"]
    steps = [line for line in (folder / "vq" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(steps) == 1  # the two steps were not made again


def test_a_quantizer_that_fails_leaves_the_others_their_rows(compare, trained, tmp_path):
    rows.train_tokenizer.failing.add("vq")
    with pytest.raises(TrainingError, match="1 of 2 quantizers failed \\(vq\\)"):
        compare()
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert "| `vq` | failed: RuntimeError: no \\| luck today |" in table
    assert read(tmp_path / "out")["fsq"]["scores"]["psnr"] > 0
    assert Image.open(tmp_path / "out" / "reconstructions.png").height == 2 * 66 + 2
    rows.train_tokenizer.failing.clear()
    compare()
    assert trained == ["vq", "fsq", "vq"]
    assert "failed" not in (tmp_path / "out" / "comparison.md").read_text()


def test_another_comparison_in_the_folder_is_refused(compare, trained):
    compare(only=("vq",))
    with pytest.raises(OutputError, match="max_steps was 2, is 3"):
        compare(steps=3)
    with pytest.raises(OutputError, match="seconds was None, is 1"):
        compare(seconds=1.0)
    assert trained == ["vq"]


def test_a_budget_of_seconds_is_turned_into_steps_once(compare, trained, monkeypatch):
    monkeypatch.setattr(rows, "_TRIALS", (1, 3))
    clock = iter([0.0, 10.0, 20.0, 34.0, 50.0, 57.5])  # the trials take 10 and 14 seconds: 2 a step; the training 7.5
    monkeypatch.setattr(rows, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    folder = compare(only=("vq",), seconds=5.0)
    assert (read(folder)["vq"]["steps"], read(folder)["vq"]["seconds"]) == (2, 7.5)
    assert "5 seconds for each" in (folder / "comparison.md").read_text()
    compare(only=("vq",), seconds=5.0)
    assert trained == ["1", "3", "vq"]


def test_a_net_adds_its_distance_later_without_training_again(compare, monkeypatch):
    class Mean:
        def to(self, device):
            return self

        def __call__(self, images, other):
            return (images - other).abs().mean((1, 2, 3))

    folder = compare(only=("vq",))
    assert read(folder)["vq"]["feature_net"] is None
    monkeypatch.setattr("codegrid.pipelines.comparison.FeatureDistance", lambda config: Mean())
    compare(only=("vq",), feature_net="squeezenet1_1")
    row = read(folder)["vq"]
    assert row["feature_net"] == "squeezenet1_1"
    assert f"| {row['scores']['feature_distance']:.4f} |" in (folder / "comparison.md").read_text()
    lines = (folder / "comparison.md").read_text().splitlines()
    assert "distance (squeezenet1_1)" in lines[2]
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")


def test_mistakes_are_told_before_anything_is_trained(compare, trained, pictures):
    for changes, message in [
        ({"only": ("vq", "vqq")}, "only has vqq, which is no quantizer. There are vq, vq-sphere"),
        ({"steps": 0}, "steps is 0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"feature_net": "squeezenet1_1", "feature_weights": "nowhere.pth"}, "nowhere.pth"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            compare(**changes)
    with pytest.raises(DataError, match="No images are held out"):
        compare(data=DataConfig(str(pictures), validation_fraction=0.0))
    assert trained == []


def test_a_page_gets_the_table_and_the_sheet_between_its_marks(tmp_path, capsys):
    row = Row("vq", {}, 2, 3.4, 640.0, 12345, {"psnr": 20.126, "ssim": None, "code_usage": 0.5, "code_perplexity": 7.6})
    report = Report({"seconds": None, "batch_size": 4}, "small64", "9 images.", "a machine", {"vq": row})
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    with pytest.raises(OutputError, match=r"holds no comparison\.json"):
        write_page(str(tmp_path), str(page))
    report.save(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "reconstructions.png")
    for _ in range(2):  # the second time there is something to replace
        write_page(str(tmp_path), str(page))
    text = page.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith(f"{END}\n\nThe end.\n")
    assert "old" not in text
    assert text.count("| `vq` | 20.13 |  | 50.0% | 8 | 640 | 12,345 | 2 | 3 |") == 1
    assert markdown(report) in text
    assert "(page.png)" in text
    assert Image.open(tmp_path / "page.png").size == (4, 4)
    # A second table of its own name, without the sheet; the first stays.
    page.write_text(f"{text}\n<!-- beside: begin -->\n<!-- beside: end -->\n")
    write_page(str(tmp_path), str(page), mark="beside")
    assert page.read_text() == f"{text}\n<!-- beside: begin -->\n{markdown(report)}<!-- beside: end -->\n"
    page.write_text("# Title\n")
    with pytest.raises(OutputError, match="lacks the lines"):
        write_page(str(tmp_path), str(page))
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(OutputError, match="is no report of a comparison"):
        write_page(str(tmp_path), str(page))

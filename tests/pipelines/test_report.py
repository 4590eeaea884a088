"""The page of a run: what is in it, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.pipelines.artifacts.loading import LoadingError, load_tokenizer
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.report.codes import CodedImages, code_sheet, codebook_atlas, coded_images, colours, usage
from codegrid.pipelines.report.report import metric_charts, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Says of every picture how many grey levels it has where it is drawn, and of every chart how large it is.
_PROBE = """<script>
const levels = image => {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(data.filter((_, index) => index % 4 == 1)).size;
};
addEventListener("load", () => {
  const found = {
    images: [...document.images].map(image => [image.alt, image.clientWidth, levels(image)]),
    charts: [...document.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect().width),
    wide: document.documentElement.scrollWidth > innerWidth,
  };
  document.body.insertAdjacentHTML("beforeend", `<pre id="probe">${JSON.stringify(found)}</pre>`);
});
</script>"""


@pytest.fixture(scope="module")
def whole_run(tokenizer_folder, prior_folder, tmp_path_factory) -> Path:
    """A folder of a tokenizer's and a prior's run and their pipeline, with an evaluation and a report.json."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for name, source in (("tokenizer", tokenizer_folder), ("prior", prior_folder)):
        shutil.copytree(source, folder / name)
    make_pipeline(str(tokenizer_folder), str(prior_folder), str(folder / "pipeline"))
    (folder / "report.json").write_text('{"generation": {"class_agreement": 0.875}}')
    (folder / "pipeline" / "evaluation").mkdir()
    rows = [{"guidance_scale": scale, "temperature": 1.0, "fid": 30 / scale} for scale in (1.0, 2.0)]
    result = {"kind": "generation", "results": rows, "data": {"description": "some <pictures>"}, "seed": 5}
    (folder / "pipeline" / "evaluation" / "generation.json").write_text(json.dumps(result))
    return folder


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_page_of_a_whole_run(whole_run):
    page = report(str(whole_run)).read_text()
    assert headings(page) == [
        "Summary",
        "Pipeline: Samples",
        "Tokenizer: Model",
        "Tokenizer: Curves",
        "Tokenizer: Pictures of training",
        "Tokenizer: Codes",
        "Tokenizer: Codebook atlas",
        "Prior: Curves",
        "Prior: Pictures of training",
        "Pipeline: Evaluation of generation",
        "Tokenizer: Configuration",
        "Prior: Configuration",
    ]
    assert 'aria-label="fid"' in page  # the sweep's chart
    assert not re.search(r">[^<]*\d\.\d{6,}", re.sub(r"(?s)<svg.*?</svg>|<details>.*?</details>", "", page))
    assert "some &lt;pictures&gt;" in page
    assert "<td>0.875</td>" in page
    assert "<td>15</td>" in page
    assert 'aria-label="psnr"' in page
    assert not re.search(r'(src|href)="(?!data:|#)|url\(|<script|@import', page)  # nothing is fetched, nothing runs


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH")
def test_a_browser_draws_every_picture(whole_run, tmp_path):
    page = report(str(whole_run), str(tmp_path / "page.html"))
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", f"{_PROBE}</body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    flags += ["--window-size=1250,900", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    shown = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(unescape(re.findall(r'<pre id="probe">(.*?)</pre>', shown, re.DOTALL)[-1]))
    named = {name: (width, levels) for name, width, levels in found["images"]}
    assert len(found["images"]) > 20
    assert all(width > 0 for width, _ in named.values())
    for name in ("samples", "images, code maps, reconstructions and differences"):
        assert named[name][0] > 300
        assert named[name][1] > 10
    assert max(levels for name, (_, levels) in named.items() if name.startswith("mean patch")) > 1
    assert len(found["charts"]) > 8
    assert min(found["charts"]) > 200
    assert not found["wide"]


def test_the_page_of_each_stage_alone(tokenizer_folder, prior_folder, whole_run, tmp_path):
    page = report(str(tokenizer_folder), str(tmp_path / "tokenizer.html")).read_text()
    assert headings(page)[0] == "Model"
    page = report(str(prior_folder), str(tmp_path / "prior.html")).read_text()
    assert headings(page) == ["Samples", "Curves", "Pictures of training", "Configuration"]
    assert 'alt="samples"' in page
    page = report(str(whole_run / "pipeline"), str(tmp_path / "pipeline.html")).read_text()
    assert headings(page) == ["Samples", "Evaluation of generation"]


def test_what_is_missing_is_said_and_the_rest_is_shown(tokenizer_folder, prior_folder, tmp_path):
    run = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
    config = json.loads((run / "training_config.json").read_text())
    config["data"]["source"] = str(tmp_path / "gone")
    (run / "training_config.json").write_text(json.dumps(config))
    page = report(str(run)).read_text()
    assert "The images cannot be read" in page
    assert "Curves" in headings(page)
    (run / "config.json").unlink()
    assert "Training is not finished" in report(str(run)).read_text()
    prior = Path(shutil.copytree(prior_folder, tmp_path / "prior"))
    config = json.loads((prior / "training_config.json").read_text())
    (prior / "training_config.json").write_text(json.dumps({**config, "codes": str(tmp_path / "gone")}))
    assert "There are no samples" in report(str(prior)).read_text()
    with pytest.raises(LoadingError, match="holds no run"):
        report(str(tmp_path / "gone"))


def test_a_colour_is_a_code():
    grid = np.array([[3, 5], [5, 100_000]])
    map_ = colours(grid)
    assert map_.dtype == np.uint8
    assert (map_[0, 1] == map_[1, 0]).all()
    assert len({tuple(colour) for colour in map_.reshape(-1, 3)}) == 3
    assert (colours(np.array([[5]]))[0, 0] == map_[0, 1]).all()  # in any map


def test_the_atlas_shows_mean_patches_and_where_a_code_is_used(tokenizer_folder, pictures):
    model = load_tokenizer(tokenizer_folder)
    coded = coded_images(model, open_images(DataConfig(str(pictures))), 11)
    assert coded.codes.shape == (11, 4, 4, 1)
    atlas = codebook_atlas(coded, 5)
    counts = torch.bincount(coded.codes.flatten(), minlength=32)
    shares = (counts.double() / counts.sum()).sort(descending=True).values.tolist()
    assert [entry.share for entry in atlas] == shares[: len(atlas)]
    assert usage(coded, 32)[: len(atlas)].tolist() == pytest.approx([entry.share for entry in atlas])
    for entry in atlas:
        patches = [
            coded.images[n, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            for n, y, x in (coded.codes[..., 0] == entry.code).nonzero().tolist()
        ]
        expected = (torch.stack(patches).mean(0) + 1) * 127.5
        np.testing.assert_allclose(np.asarray(entry.mean).transpose(2, 0, 1), expected, atol=0.51)
        # The frame lies around a position of an image that has this code: 16 pixels are shown as 96.
        shown = np.asarray(entry.context).astype(int)
        red = (shown == (0xDC, 0x26, 0x26)).all(-1).nonzero()
        middles = [(int(side.min()) + int(side.max()) + 1) / 2 / 24 for side in red]
        y, x = (min(3, int(middle)) for middle in middles)
        assert shown.shape == (96, 96, 3)
        assert (coded.codes[:, y, x, 0] == entry.code).any()


def test_several_codes_a_position_have_a_map_each():
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    single = CodedImages(images, torch.randint(0, 9, (2, 2, 2, 1)), images)
    double = CodedImages(images, torch.randint(0, 9, (2, 2, 2, 2)), images)
    assert code_sheet(double).height > code_sheet(single).height
    assert usage(double, 9).sum().item() == pytest.approx(1)


def test_a_metric_of_both_kinds_is_one_chart_and_zeros_are_none():
    lines = [
        {"step": 1, "kind": "train", "l2": 0.5, "usage": 0.1, "skipped_steps": 0},
        {"step": 2, "kind": "train", "l2": 0.4, "usage": 0.2, "skipped_steps": 0},
        {"step": 2, "kind": "validation", "usage": 0.3, "num_images": 7},
    ]
    charts = {chart.title: chart for chart in metric_charts(lines)}
    assert list(charts) == ["l2", "usage"]
    assert [series.name for series in charts["usage"].series] == ["train", "validation"]
    assert charts["usage"].series[1].points == [(2, 0.3)]

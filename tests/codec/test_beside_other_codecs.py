"""`codegrid evaluate compression`: what is counted, what is said, and what is shown."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.compression.beside import Example, curves, markdown, notes, side_by_side
from codegrid.pipelines.compression.codec import ImageCodec
from codegrid.pipelines.compression.evaluation import evaluate_compression
from codegrid.pipelines.compression.others import OTHERS, coded_bytes
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.report.report import report

SAVED = Path(__file__).resolve().parents[1] / "saved_by_be0a219"


def noise(side: int, seed: int, mode: str = "RGB") -> Image.Image:
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def without_its_coded_bytes(name: str, file: bytes) -> int:
    """The header's size, got another way: by what markers and boxes the formats' specifications put around."""
    if name == "jpeg":  # SOS, its length, and the end marker
        start = file.index(b"\xff\xda")
        return start + 2 + int.from_bytes(file[start + 2 : start + 4], "big") + 2
    if name == "webp":
        place = max(file.find(b"VP8 "), file.find(b"VP8L"))
        return len(file) - int.from_bytes(file[place + 4 : place + 8], "little")
    if name == "avif":
        return file.index(b"mdat") + 4
    return file.index(b"\xff\x90\x00\x0a")


@pytest.mark.parametrize("name", list(OTHERS))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_headers_are_told_from_coded_bytes(name: str, mode: str) -> None:
    other = OTHERS[name]
    if not other.is_there:
        pytest.skip(f"this Pillow lacks {name}")
    for seed, (_, options) in enumerate(other.settings[::2]):
        file = other.saved(noise(48, seed, mode), options)
        assert coded_bytes(name, file) == len(file) - without_its_coded_bytes(name, file)
        assert np.asarray(Image.open(io.BytesIO(file))).shape[:2] == (48, 48)
    for damaged in (b"", file[:3], file[:20], b"\xff\xd8\xff\xda" + bytes(2), bytes(100)):
        with pytest.raises(CodegridError):
            coded_bytes(name, damaged)


def test_progressive_scans_and_restarts_are_counted() -> None:
    file = io.BytesIO()
    noise(64, 3).save(file, format="JPEG", progressive=True, quality=50)
    data = file.getvalue()
    assert data.count(b"\xff\xda") > 1
    assert 100 < coded_bytes("jpeg", data) < len(data) - 200


ROWS = [
    {"codec": "prior", "bytes": 50.0, "bytes_without_headers": 44.0, "psnr": 23.0, "information": 43.0},
    {"codec": "context", "bytes": 60.0, "bytes_without_headers": 54.0, "psnr": 23.0},
    {"codec": "fixed", "bytes": 86.0, "bytes_without_headers": 80.0, "psnr": 23.0},
    {"codec": "zstd", "bytes": 72.0, "bytes_without_headers": 72.0, "psnr": 23.0},
    {"codec": "webp", "bytes": 180.0, "bytes_without_headers": 150.0, "psnr": 22.0},
    {"codec": "webp", "bytes": 6000.0, "bytes_without_headers": 5900.0, "psnr": 40.0},
    {"codec": "jpeg", "bytes": 900.0, "bytes_without_headers": 280.0, "psnr": 21.0},
]


def test_what_is_said_follows_from_the_numbers() -> None:
    said = " ".join(notes(ROWS, {"tokenizer": 1_200_000, "prior": 15_000_000}))
    assert "tokenizer 1.2 MB, prior 15.0 MB" in said
    assert "2.3% above" in said
    assert "context is 32.5% below fixed" in said
    assert "0.750 times what zstd" in said
    assert "1.227 times what prior" in said
    assert "webp does not go below 180 bytes" in said
    assert "avif" not in said
    assert "1.2" not in " ".join(notes(ROWS[-1:], {}))


def test_curves_are_of_codecs_and_end_where_nothing_is_compared() -> None:
    charts = curves(ROWS)
    assert [(chart.title, chart.x_label) for chart in charts] == [
        ("psnr", "bytes a picture"),
        ("psnr", "bytes a picture without headers"),
    ]
    lines = {series.name: series.points for series in charts[0].series}
    assert list(lines) == ["prior", "context", "fixed", "webp", "jpeg"]
    assert lines["webp"] == [(180.0, 22.0)]
    assert lines["jpeg"] == [(900.0, 21.0)]  # a codec that cannot go as low is shown at its smallest
    table = markdown(ROWS, ["A note."])
    assert table.count("|\n") == len(ROWS) + 2
    assert table.endswith("\nA note.\n")


def test_pictures_side_by_side_are_those_nearest_in_bytes() -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    shades = {("prior", ""): (50, 40), ("webp", "q0"): (180, 90), ("webp", "q9"): (900, 200)}
    examples = [Example(*name, pixels + shade, [size, size + 2]) for name, (size, shade) in shades.items()]
    sheet = np.asarray(side_by_side(pixels, examples))
    areas = {shade: (sheet == shade).all(-1).sum() for _, shade in shades.values()}  # letters have greys, too
    assert areas[40] >= 2 * 88**2
    assert areas[90] >= 2 * 88**2
    assert areas[200] < 88**2


def test_the_command_and_the_report(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(shutil.copytree(pipeline, tmp_path / "pipeline"))
    data = DataConfig(str(SAVED / "images"))
    folder = evaluate_compression(str(own), data, others=("webp", "jpeg"), num_images=9)
    assert folder == tmp_path / "pipeline-evaluation"
    assert "Whoever reads files of the pipeline needs it" in capsys.readouterr().out
    for place in (folder, own / "evaluation"):
        assert {path.name for path in place.iterdir()} == {
            *("compression.json", "compression.md", "compression.png", "compression_pictures.png")
        }
    record = json.loads((folder / "compression.json").read_text())
    rows = {row["codec"]: row for row in record["results"]}
    assert list(rows) == ["prior", "context", "fixed", "zstd", "webp", "jpeg"]
    assert all(row["bytes_without_headers"] <= row["bytes"] for row in rows.values())
    assert record["bytes_of_the_pipeline"].keys() == {"tokenizer", "prior", "context"}
    weights = (own / "tokenizer" / "model.safetensors").stat().st_size
    assert record["bytes_of_the_pipeline"]["tokenizer"] == pytest.approx(weights, rel=0.2)
    assert rows["prior"]["information"] < rows["prior"]["bytes_without_headers"]
    page = report(str(own)).read_text()
    assert "Evaluation of compression" in page
    assert "pictures by each codec" in page
    assert page.count("<svg") == len(curves(record["results"]))
    assert "jpeg2000" not in page
    before = (own / "evaluation" / "compression.json").read_bytes()
    evaluate_compression(str(own), data, models=("fixed",), others=("webp",), num_images=2, whole=True)
    assert (own / "evaluation" / "compression.json").read_bytes() == before
    page = report(str(own)).read_text()
    assert page.count("pictures by each codec") == 2
    assert "Evaluation of compression, pictures in their own size" in page


def test_pictures_that_cannot_be_used_are_named(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("damaged.png", "broken.png"):
        (folder / name).write_bytes(b"no picture")
    data, scores = DataConfig(str(folder)), tmp_path / "scores"
    with pytest.raises(CodegridError, match=r"None of the 2 images .*2 not an image \(broken\.png, damaged\.png\)"):
        evaluate_compression(str(pipeline), data, str(scores), others=())
    noise(40, 0, "RGB").save(folder / "good.png")
    evaluate_compression(str(pipeline), data, str(scores), ("fixed",), others=())
    assert "Left out of the pictures: 2: 2 not an image (broken.png, damaged.png)." in capsys.readouterr().out
    record = json.loads((scores / "compression.json").read_text())
    assert record["data"]["num_images"] == 1
    assert record["data"]["left_out"]["number"] == 2


def test_whole_pictures_are_compared_in_their_own_size(pipeline: Path, codec: ImageCodec, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    images = [noise(40, seed, "RGB").crop((0, 0, 37, 21)) for seed in range(3)]
    for seed, image in enumerate(images):
        image.save(folder / f"{seed}.png")
    (folder / "damaged.png").write_bytes(b"no picture")
    evaluate_compression(str(pipeline), DataConfig(str(folder)), str(tmp_path / "scores"), others=("jpeg",), whole=True)
    record = json.loads((tmp_path / "scores" / "compression_whole.json").read_text())
    assert record["data"]["left_out"]["names"] == {"not_an_image": ["damaged.png"]}
    assert record["notes"][-1] == "Left out of the pictures: 1: 1 not an image (damaged.png)."
    rows = {row["codec"]: row for row in record["results"]}
    assert record["data"]["num_images"] == 3
    mode = "L" if codec.pipe.tokenizer.config.backbone_config.in_channels == 1 else "RGB"
    for model in ("prior", "context", "fixed"):
        blobs = codec.compress(images, model=model, whole=True)
        assert rows[model]["bytes"] == rows[model]["bytes_of_a_file"] == pytest.approx(sum(map(len, blobs)) / 3)
        errors = [
            np.square(np.subtract(np.asarray(a.convert(mode)), np.asarray(b.convert(mode)), dtype=float)).mean()
            for a, b in zip(images, codec.decompress(blobs), strict=True)
        ]
        assert rows[model]["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / np.array(errors))), abs=1e-3)
    noise(40, 9).save(folder / "larger.png")
    with pytest.raises(CodegridError, match="2 sizes, such as 37x21 and 40x40"):
        evaluate_compression(str(pipeline), DataConfig(str(folder)), str(tmp_path / "other"), whole=True)

"""The evaluations as commands run them: on a tiny run, with a net that needs no weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as HFImage
from PIL import Image
from safetensors.numpy import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation import generation, tokenizer
from codegrid.pipelines.evaluation.distances import frechet_distance, precision_recall
from codegrid.pipelines.evaluation.features import FeatureNet
from codegrid.pipelines.evaluation.generation import evaluate_generation, sweep_charts
from codegrid.pipelines.evaluation.picture_sets import Cut, FolderPictures
from codegrid.pipelines.evaluation.reconstruction import evaluate_reconstruction, pixel_scores
from codegrid.pipelines.evaluation.tokenizer import evaluate_tokenizer
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.tokenizer import metrics
from codegrid.tokenizer.images import Preprocessing


@pytest.fixture(autouse=True)
def small_net(monkeypatch, tmp_path) -> list[int]:
    """A feature net of twelve numbers an image, in place of the big ones; gives how many images it has seen."""
    seen = []

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(images))
        features = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, 5 * features[:, :4]

    for module in (generation, tokenizer):
        monkeypatch.setattr(module, "load_feature_net", lambda *_: FeatureNet("small", forward, "2x2", "0"))
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))
    return seen


@pytest.fixture
def edges_net(monkeypatch) -> None:
    """A feature net that sees what tells the classes of `pictures` apart: how much neighbours differ, by direction."""

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.float() / 255
        steps = [images.diff(dim=dim).abs().flatten(1) for dim in (2, 3)]
        features = torch.stack([f(step) for step in steps for f in (lambda x: x.mean(1), lambda x: x.std(1))], 1)
        return features, features

    monkeypatch.setattr(generation, "load_feature_net", lambda *_: FeatureNet("edges", forward, "none", "0"))


@pytest.fixture
def own_tokenizer(tokenizer_folder, tmp_path) -> Path:
    """A copy of the tokenizer, whose card may change."""
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))


@pytest.fixture
def pipeline(tokenizer_folder, prior_folder, tmp_path) -> Path:
    return make_pipeline(str(tokenizer_folder), str(prior_folder), str(tmp_path / "pipe"))


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_reconstruction_scores_and_their_circumstances(own_tokenizer, pictures, small_net):
    folder = evaluate_tokenizer(str(own_tokenizer), DataConfig(str(pictures)), batch_size=4, part="all")
    assert folder == own_tokenizer.with_name("tokenizer-evaluation")
    record = result(folder, "reconstruction")
    (row,) = record["results"]
    assert row["num_images"] == 18
    assert row["bits_per_pixel"] == 16 * 5 / 256  # 4x4 codes of 32
    assert row["encoded_images_per_second"] > 0
    assert row["lpips"] is None  # the images are too small for it
    assert record["data"]["fingerprint"] == open_images(DataConfig(str(pictures))).fingerprint
    assert record["data"]["resize_filter"] == "PIL bicubic, antialiased"
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert (record["precision"], record["feature_net"]["name"]) == ("float32", "small")
    assert {"command", "commit", "device", "python", "batch_size", "tokenizer_fingerprint"} <= set(record)
    assert result(own_tokenizer / "evaluation", "reconstruction") == record
    card = (own_tokenizer / "README.md").read_text()
    assert f"| psnr | {row['psnr']:.4g} |" in card
    assert "rfd_small" in card
    assert "rfid" not in card
    number = len(small_net)
    evaluate_tokenizer(str(own_tokenizer), DataConfig(str(pictures)), batch_size=4, part="all", num_workers=2)
    assert len(small_net) == number  # all features were in the cache: workers read the same pictures
    assert (own_tokenizer / "README.md").read_text().count("Evaluation of reconstruction |") == 1


def test_rfd_is_the_distance_of_originals_and_reconstructions(own_tokenizer, pictures):
    folder = evaluate_tokenizer(str(own_tokenizer), DataConfig(str(pictures)), part="all")
    (row,) = result(folder, "reconstruction")["results"]
    model, sides = load_tokenizer(own_tokenizer), ([], [])

    def keep(images, made):
        for side, pixels in zip(sides, (images, made), strict=True):
            side.append(torch.nn.functional.adaptive_avg_pool2d(pixels.permute(0, 3, 1, 2) / 255, 2).flatten(1))

    evaluate_reconstruction(model, open_images(DataConfig(str(pictures))), make_accelerator("cpu"), 32, None, keep)
    expected = frechet_distance(*(torch.cat(side) for side in sides))
    assert row["rfd_small"] == pytest.approx(expected, rel=1e-4)


def test_psnr_and_ssim_are_those_of_scikit_image(own_tokenizer, pictures):
    pairs = []
    model, source = load_tokenizer(own_tokenizer), open_images(DataConfig(str(pictures)))
    scores = evaluate_reconstruction(
        model, source, make_accelerator("cpu"), 5, None, lambda *sides: pairs.extend(zip(*sides, strict=True))
    )
    pairs = [[side.numpy() for side in pair] for pair in pairs]
    assert len(pairs) == 18
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    psnr = [peak_signal_noise_ratio(image, made, data_range=255) for image, made in pairs]
    ssim = []  # scikit-image leaves out the borders that the window overhangs; torchmetrics mirrors them
    for pair in pairs:
        sides = [np.pad(side, ((5, 5), (5, 5), (0, 0)), mode="reflect") for side in pair]
        _, found = structural_similarity(*sides, data_range=255, channel_axis=2, **options)
        ssim.append(found[5:-5, 5:-5].mean())
    assert scores.psnr == pytest.approx(np.mean(psnr), rel=1e-5)
    assert scores.ssim == pytest.approx(np.mean(ssim), abs=1e-4)


def test_pixels_are_scored_on_devices_without_float64(on_mps):
    images, made, boxes = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), [(0, 0, 16, 16), (2, 0, 16, 16)]
    assert torch.equal(pixel_scores(on_mps(images), on_mps(made), boxes), pixel_scores(images, made, boxes))


def test_codes_of_a_large_codebook_are_counted_without_a_count_for_each(own_tokenizer, pictures, monkeypatch):
    model, source = load_tokenizer(own_tokenizer), open_images(DataConfig(str(pictures)))
    expected = evaluate_reconstruction(model, source, make_accelerator("cpu"), 5)
    monkeypatch.setattr(metrics, "MOST_COUNTS", 1)
    assert asdict(evaluate_reconstruction(model, source, make_accelerator("cpu"), 5)) == pytest.approx(asdict(expected))


def test_no_usable_image_is_an_error(own_tokenizer, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the 1 images"):
        evaluate_tokenizer(str(own_tokenizer), DataConfig(str(tmp_path / "bad")))


OPTIONS = {"num_images": 12, "batch_size": 5, "judge_images": 0}


def samples_of(folder: Path) -> np.ndarray:
    (npz,) = folder.glob("*.npz")
    return np.load(npz)["arr_0"]


def test_generation_is_scored_against_the_reference(pipeline, pictures):
    folder = evaluate_generation(str(pipeline), str(pictures), seed=3, npz=True, **OPTIONS)
    record = result(folder, "generation")
    (row,) = record["results"]
    pipe = ImageGenerationPipeline.from_pretrained(pipeline)
    made = pipe([index % 3 for index in range(12)], seed=3, output_type="np", batch_size=5, progress=False).images
    np.testing.assert_array_equal(samples_of(folder), made)

    def features(pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels.permute(0, 3, 1, 2) / 255, 2).flatten(1)

    real = []
    evaluate_reconstruction(
        pipe.tokenizer,
        open_images(DataConfig(str(pictures))),
        make_accelerator("cpu"),
        32,
        None,
        lambda images, _: real.append(features(images)),
    )
    real, made = torch.cat(real), features(torch.from_numpy(made))
    assert row["fd_small"] == pytest.approx(frechet_distance(made, real), rel=1e-4)
    assert (row["precision_small"], row["recall_small"]) == pytest.approx(precision_recall(made, real))
    assert record["data"]["num_images"] == 18
    assert (record["seed"], record["feature_net"]["resize"]) == (3, "2x2")
    assert "fd_small" in (pipeline / "README.md").read_text()
    assert ImageGenerationPipeline.from_pretrained(pipeline)  # the card and the JSON are no hindrance


def test_sets_of_pictures_are_the_same_when_workers_read_them(pictures):
    source, cut = open_images(DataConfig(str(pictures))), Cut(Preprocessing(16), 3)
    sets = [list(FolderPictures(source, cut, number).read([[0, 2, 3], [17, 16], []])) for number in (0, 2)]
    assert [(chunk.rows, chunk.labels, chunk.skipped) for chunk in sets[0]] == [tuple(c[1:]) for c in sets[1]]
    assert [chunk.rows for chunk in sets[0]] == [[0, 2, 3], [17, 16], []]
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(*sets, strict=True))


def test_a_sweep_has_a_row_a_setting_and_a_plot(pipeline, pictures):
    options = {**OPTIONS, "guidance_scales": (1.0, 2.0), "temperatures": (0.5, 1.0)}
    folder = evaluate_generation(str(pipeline), str(pictures), **options)
    rows = result(folder, "generation")["results"]
    assert [(row["guidance_scale"], row["temperature"]) for row in rows] == [(1, 0.5), (1, 1), (2, 0.5), (2, 1)]
    assert Image.open(folder / "sweep.png").width == 3 * 720
    assert len(list(folder.glob("guidance*.png"))) == 4
    (chart, *_) = sweep_charts(rows)
    assert chart.title == "fd_small"
    assert [series.name for series in chart.series] == ["temperature 0.5", "temperature 1"]
    assert chart.series[1].points == [(1, rows[1]["fd_small"]), (2, rows[3]["fd_small"])]
    (chart, *_) = sweep_charts(rows[:2])
    assert chart.x_label == "temperature"
    assert "| 2 | 0.5 |" in (pipeline / "README.md").read_text()


def test_a_sweep_that_stops_keeps_its_rows_and_another_adds_to_them(pipeline, pictures, at_step, capsys):
    from codegrid.pipelines.evaluation import samples as module

    options = {**OPTIONS, "guidance_scales": (1.0, 2.0)}
    at_step(module, "image_generator", 15, lambda: (_ for _ in ()).throw(KeyboardInterrupt))  # in the second setting
    with pytest.raises(KeyboardInterrupt):
        evaluate_generation(str(pipeline), str(pictures), **options)
    folder = pipeline.with_name("pipe-evaluation")
    (first,) = result(folder, "generation")["results"]
    assert first["guidance_scale"] == 1
    assert "fd_small" in (pipeline / "README.md").read_text()
    evaluate_generation(str(pipeline), str(pictures), **{**OPTIONS, "guidance_scales": (3.0,)})
    rows = result(folder, "generation")["results"]
    assert [row["guidance_scale"] for row in rows] == [1, 3]
    assert rows[0] == first
    assert (folder / "sweep.png").is_file()
    evaluate_generation(str(pipeline), str(pictures), **options)
    rows = result(folder, "generation")["results"]
    assert [row["guidance_scale"] for row in rows] == [1, 2, 3]
    assert (pipeline / "README.md").read_text().count("| 3 | 1 |") == 1
    evaluate_generation(str(pipeline), str(pictures), **{**OPTIONS, "num_images": 10})
    assert [row["num_images"] for row in result(folder, "generation")["results"]] == [12, 10, 12, 12]
    assert "kept apart" not in capsys.readouterr().out


def test_rows_of_another_reference_or_of_other_weights_are_never_in_one_table(
    pipeline, pictures, tokenizer_folder, prior_folder, tmp_path, capsys
):
    others = tmp_path / "others"
    shutil.copytree(pictures / "noise", others / "noise")
    folder = evaluate_generation(str(pipeline), str(pictures), **OPTIONS)
    before = result(folder, "generation")
    evaluate_generation(str(pipeline), str(others), **OPTIONS)
    assert "kept apart" in capsys.readouterr().out
    (apart,) = folder.glob("generation-*.json")
    assert json.loads(apart.read_text()) == before
    assert len(list((pipeline / "evaluation").glob("generation*.json"))) == 2
    assert len(result(folder, "generation")["results"]) == 1
    evaluate_generation(str(pipeline), str(pictures), **OPTIONS, temperatures=(0.5,))  # back to the first
    assert [row["temperature"] for row in result(folder, "generation")["results"]] == [0.5, 1]
    # Other weights at the same place: the model's own folder keeps none of the old, the output folder sets them apart.
    made = result(pipeline / "evaluation", "generation")
    made["identity"]["prior_fingerprint"] = "other"
    (pipeline / "evaluation" / "generation.json").write_text(json.dumps(made))
    evaluate_generation(str(pipeline), str(pictures), **OPTIONS)
    assert [row["temperature"] for row in result(pipeline / "evaluation", "generation")["results"]] == [1]
    assert "were of other weights: they are replaced" in capsys.readouterr().out


def test_samples_are_made_once_and_others_are_refused(pipeline, pictures, at_step):
    from codegrid.pipelines.evaluation import samples as module

    calls = []
    at_step(module, "save_file", 1, lambda: (_ for _ in ()).throw(KeyboardInterrupt))  # the second batch
    with pytest.raises(KeyboardInterrupt):
        evaluate_generation(str(pipeline), str(pictures), **OPTIONS)
    folder = pipeline.with_name("pipe-evaluation")
    (setting,) = (folder / "samples").iterdir()
    assert [path.name for path in sorted(setting.glob("*.safetensors"))] == ["000000.safetensors"]
    at_step(module, "save_file", 0, lambda: calls.append(1))
    before = (setting / "000000.safetensors").stat().st_mtime_ns
    evaluate_generation(str(pipeline), str(pictures), **OPTIONS)
    assert (setting / "000000.safetensors").stat().st_mtime_ns == before
    first = [path.read_bytes() for path in sorted(setting.glob("*.safetensors"))]
    evaluate_generation(str(pipeline), str(pictures), **{**OPTIONS, "num_images": 14}, npz=True)  # the last grows
    assert [path.read_bytes() for path in sorted(setting.glob("*.safetensors"))][:2] == first[:2]
    assert samples_of(folder).shape == (14, 16, 16, 3)
    with pytest.raises(OutputError, match="images of other settings"):
        evaluate_generation(str(pipeline), str(pictures), **OPTIONS, seed=1)


def test_class_agreement_is_judged_where_the_classes_are_the_same(pipeline, pictures, edges_net, capsys, tmp_path):
    options = {**OPTIONS, "judge_images": 100}
    record = result(evaluate_generation(str(pipeline), str(pictures), **options), "generation")
    assert 0 <= record["results"][0]["class_agreement"] <= 1
    judge = record["judge"]
    assert (judge["trained_on"], judge["num_reconstructed"], judge["seeds"]) == (18, 18, [0, 1, 2])
    assert judge["class_agreement_of_real_images"] > 0.9  # noise, stripes and gradients are easy to tell apart
    assert 0 <= judge["class_agreement_of_reconstructions"] < 0.9  # three steps of training do not paint them
    assert "Class agreement by linear probes" in capsys.readouterr().out
    others = tmp_path / "others"
    shutil.copytree(pictures / "noise", others / "snow")
    record = result(evaluate_generation(str(pipeline), str(others), **options), "generation")
    assert record.get("judge") is None
    assert "No class agreement" in capsys.readouterr().out


def test_finished_samples_are_judged_by_their_folders(pictures, edges_net, tmp_path):
    """Real pictures as samples agree with their classes, and with these exchanged they do not."""
    folders = sorted(folder.name for folder in pictures.iterdir())
    turned = dict(zip(folders, [*folders[1:], folders[0]], strict=True))
    found = {}
    for name, of_class in {"same": {}, "turned": turned}.items():
        for folder in folders:
            for path in (pictures / folder).iterdir():
                target = tmp_path / name / of_class.get(folder, folder) / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.open(path).convert("RGB").resize((16, 16)).save(target.with_suffix(".png"))
        output = tmp_path / f"{name}-scores"
        evaluate_generation(samples=str(tmp_path / name), reference=str(pictures), output_dir=str(output))
        (row,) = result(output, "generation")["results"]
        found[name] = row["class_agreement"]
    assert found["same"] > 0.9 > 0.3 > found["turned"]


def test_samples_are_judged_by_the_names_of_classes_whatever_their_order(pictures, edges_net, tmp_path):
    """Folders are in the order of the alphabet; a table has its own."""
    names = sorted((folder.name for folder in pictures.iterdir()), reverse=True)
    paths = [path for name in names for path in sorted((pictures / name).iterdir())]
    images = [Image.open(path).convert("RGB") for path in paths]
    labels = [names.index(path.parent.name) for path in paths]
    features = Features({"image": HFImage(), "label": ClassLabel(names=names)})
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(tmp_path / "table.parquet")
    output = tmp_path / "scores"
    evaluate_generation(samples=str(pictures), reference=str(tmp_path / "table.parquet"), output_dir=str(output))
    assert result(output, "generation")["results"][0]["class_agreement"] > 0.9


def test_numbers_out_of_range_are_refused(pipeline, pictures):
    with pytest.raises(ValueError, match="num_images is 5"):
        evaluate_generation(str(pipeline), str(pictures), num_images=5)
    with pytest.raises(ValueError, match="top_p is 0"):
        evaluate_generation(str(pipeline), str(pictures), top_p=0.0)


def test_steps_are_compared_and_timed_of_priors_that_draw_several_codes_a_step(
    pipeline, prior_config, tokenizer_folder, pictures, tmp_path, monkeypatch
):
    prior = train_prior(prior_config(tmp_path / "run", order="mixed", num_samples=0))
    steps = make_pipeline(str(tokenizer_folder), str(prior), str(tmp_path / "steps"))
    options = {**OPTIONS, "num_steps": (2, 16)}
    folder = evaluate_generation(str(steps), str(pictures), **options)
    rows = result(folder, "generation")["results"]
    assert [row["num_steps"] for row in rows] == [2, 16]
    assert all(row["images_per_second"] > 0 for row in rows)
    pipe = ImageGenerationPipeline.from_pretrained(steps)
    labels = [index % 3 for index in range(12)]
    for row in rows:
        made = pipe(labels, seed=0, num_steps=row["num_steps"], output_type="np", batch_size=5, progress=False).images
        (path,) = (folder / "samples").glob(f"*_steps-{row['num_steps']}_*")
        found = np.concatenate([load_file(file)["images"] for file in sorted(path.glob("*.safetensors"))])
        np.testing.assert_array_equal(found, made)
    (chart, *_) = sweep_charts(rows)
    assert (chart.x_label, [x for x, _ in chart.series[0].points]) == ("num_steps", [2, 16])
    evaluate_generation(str(steps), str(pictures), **options)
    assert result(folder, "generation")["results"] == rows  # the times are those of the sampling
    evaluate_generation(str(steps), str(pictures), **OPTIONS)
    rows = result(folder, "generation")["results"]
    assert [row["num_steps"] for row in rows] == [None, 2, 16]
    monkeypatch.setattr(generation, "open_reference", lambda *_: pytest.fail("the reference was opened"))
    with pytest.raises(CodegridError, match="draws a code a step in raster order"):
        evaluate_generation(str(pipeline), str(pictures), **options)
    with pytest.raises(CodegridError, match="num_steps has 0"):
        evaluate_generation(str(steps), str(pictures), **{**options, "num_steps": (0,)})

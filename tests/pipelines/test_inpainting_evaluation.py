"""`codegrid evaluate inpainting`: holes, ways to fill them, scores and rows, on a tiny pipeline and a small net."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.commands import main
from codegrid.pipelines.evaluation import hole_filling, inpainting
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNet
from codegrid.pipelines.evaluation.hole_scores import Pictures, Scorer
from codegrid.pipelines.evaluation.holes import hole_masks
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.images import to_model, to_uint8

NAMES = ("gradient", "noise", "stripes")
WAYS = ["biharmonic", "nearest training", "pipeline", "reconstruction"]


def small_net() -> FeatureNet:
    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        return features, features

    return FeatureNet("small", forward, "4x4", "0")


def pipeline(architecture: str, names: tuple[str, ...] | None = NAMES) -> ImageGenerationPipeline:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        **{"resolution": 16, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": ()},
        **{"mid_attention": False, "z_channels": 8, "patch_size": 2, "norm_groups": 4},
    )
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4)
    config = VQModelConfig(backbone=backbone, quantizer=quantizer, preprocessing=Preprocessing(image_size=16))
    model = VQModel(config).eval()
    sequence = SequenceConfig(32, (4, 4), class_names=names, tokenizer_fingerprint=model.fingerprint())
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    return ImageGenerationPipeline(
        model, make_prior(PriorConfig(**size, architecture=architecture), sequence), sequence
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return pipeline("any_order_gpt2").save_pretrained(tmp_path_factory.mktemp("any") / "pipe")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setattr(inpainting, "load_feature_net", lambda *_: small_net())
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def split_pictures(pictures, tmp_path) -> Path:
    """The pictures of the rooms' tests as two splits: four of each class to train on, two to validate."""
    for path in sorted(pictures.rglob("*.png")):
        split = "train" if int(path.stem) < 4 else "validation"
        target = tmp_path / "data" / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "data"


def evaluate(folder: Path, source: Path, out: Path, *others: str) -> dict:
    options = ["--pipeline", folder, "--data.source", source, "--data.split", "validation", "--output-dir", out]
    main(["evaluate", "inpainting", *map(str, options), *others])
    return json.loads((out / "inpainting.json").read_text())


def rows_of(record: dict) -> dict[tuple[str, str], dict]:
    return {(row["hole"], row["method"]): row for row in record["results"]}


@pytest.mark.parametrize("seed", [0, 1, 20161])
def test_holes_are_of_their_size_and_each_pictures_own(seed):
    random = np.random.default_rng(seed)
    height, width = (int(4 * n) for n in random.integers(4, 20, 2))
    grid = (height // 4, width // 4)
    rows = [int(row) for row in random.integers(0, 10**6, 5)]
    for name, share in {"centre": 0.25, "right": 0.5, "random": 0.5, "strokes": 0.2}.items():
        masks = hole_masks(name, rows, (height, width), grid, seed)
        assert masks.shape == (5, height, width), seed
        assert masks.any((1, 2)).all(), (seed, name)
        assert masks.mean() == pytest.approx(share, abs=0.2 if name == "strokes" else 0.07), (seed, name)
        np.testing.assert_array_equal(masks[3], hole_masks(name, rows[3:4], (height, width), grid, seed)[0])
        assert (masks[0] == masks[1]).all() == (name in ("centre", "right")), (seed, name)
    cells = hole_masks("random", rows, (height, width), grid, seed).reshape(5, grid[0], 4, grid[1], 4)
    assert (cells.all((2, 4)) == cells.any((2, 4))).all(), seed  # whole cells
    strokes = hole_masks("strokes", rows, (64, 64), (8, 8), seed)
    assert strokes.mean() < 0.2


@pytest.mark.parametrize("seed", [0, 1, 20161])
def test_the_nearest_training_picture_is_the_nearest_outside_of_the_hole(seed, monkeypatch):
    monkeypatch.setattr(hole_filling, "_TRAINING_AT_ONCE", 3)
    random = np.random.default_rng(seed)
    pixels, training = (torch.from_numpy(random.integers(0, 256, (n, 8, 12, 3), dtype=np.uint8)) for n in (4, 11))
    masks = hole_masks("random", [1, 2, 3, 4], (8, 12), (2, 3), seed)
    made = hole_filling.nearest_training(pixels, masks, training)[:, 0]
    for picture, mask, filled in zip(pixels, masks, made, strict=True):
        apart = ((training[:, ~mask].double() - picture[~mask].double()) ** 2).sum((1, 2))
        assert torch.equal(filled[mask], training[apart.argmin()][mask]), seed
        assert torch.equal(filled[~mask], picture[~mask]), seed


def test_scores_of_the_true_picture_of_one_answer_and_of_several(tmp_path):
    pixels = torch.randint(0, 256, (6, 16, 16, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    pictures = Pictures(pixels, list(range(6)), torch.tensor([0, 0, 0, 1, 1, 1]), None, NAMES, [], {})
    scorer = Scorer(pictures, FeatureCache(small_net(), str(tmp_path)), NAMES)
    masks = hole_masks("centre", range(6), (16, 16), (4, 4), 0)
    inside = torch.from_numpy(masks)[:, None, :, :, None]
    true = pixels[:, None].expand(-1, 2, -1, -1, -1)
    perfect = scorer.row(true, masks)
    assert (perfect["psnr"], perfect["diversity"]) == (100, 0)
    assert perfect["feature_distance"] == pytest.approx(0, abs=1e-6)
    assert perfect["fd_small"] == pytest.approx(0, abs=1e-6)
    grey = scorer.row(torch.where(inside, torch.full_like(true, 128), true), masks)
    expected = [-10 * np.log10((((p[m].double() - 128) / 255) ** 2).mean()) for p, m in zip(pixels, masks, strict=True)]
    assert grey["psnr"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert grey["diversity"] == pytest.approx(0, abs=1e-6)
    assert grey["feature_distance"] > 0.01
    noise = torch.randint(0, 256, true.shape, generator=torch.manual_seed(1), dtype=torch.uint8)
    assert scorer.row(torch.where(inside, noise, true), masks)["diversity"] > 0.01
    assert scorer.row(true[:, :1], None).items() >= {"psnr": None, "diversity": None}.items()


def test_every_hole_has_a_row_for_each_way_and_nothing_outside_changes(saved, split_pictures, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "pipe"))
    record = evaluate(folder, split_pictures, tmp_path / "out", "--training-split", "train", "--num-samples", "3")
    rows = rows_of(record)
    expected = {(hole, way) for hole in ("centre", "right", "random", "strokes") for way in WAYS}
    assert set(rows) == expected | {(f"keep {share}", "variations") for share in (0.25, 0.5, 0.75)}
    for (_, way), row in rows.items():
        assert (row["num_images"], row["diversity"] is None) == (6, way not in ("pipeline", "variations"))
        assert row["feature_distance"] > 0
        assert 0 <= row["class_agreement"] <= 1
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    from safetensors.torch import load_file

    files = sorted((tmp_path / "out" / "results").glob("centre_pipeline_*/*.safetensors"))
    made = torch.cat([load_file(file)["images"] for file in files])
    assert made.shape == (6, 3, 16, 16, 3)
    paths = sorted((split_pictures / "validation").rglob("*.png"))
    true = torch.cat([to_uint8(pixels_of(pipe, path)) for path in paths])
    outside = ~torch.from_numpy(hole_masks("centre", range(6), (16, 16), (4, 4), 0))
    for result, picture, kept in zip(made, true, outside, strict=True):
        assert (result[:, kept] == picture[kept]).all()
    # the bound, by hand
    codes = pipe.encode(to_model(true))
    returned = to_uint8(pipe.decode(codes, [0, 0, 1, 1, 2, 2]))
    inner = slice(6, 10)  # without the two pixels of the blend
    apart = (returned[:, inner, inner].double() - true[:, inner, inner].double()).abs().mean()
    assert apart > 0
    assert rows["centre", "reconstruction"]["psnr"] < 100
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        *(f"{hole}.png" for hole in ("centre", "right", "random", "strokes")),
        *(f"keep-{share}.png" for share in (0.25, 0.5, 0.75)),
    }
    card = (folder / "README.md").read_text()
    assert "| centre | biharmonic | 6 |" in card
    assert json.loads((folder / "evaluation" / "inpainting.json").read_text())["results"] == record["results"]


def pixels_of(pipe, path: Path) -> torch.Tensor:
    from codegrid.tokenizer.images import to_images

    return to_images(path, pipe.tokenizer.config.preprocessing_config, 3)


def test_a_run_that_stops_goes_on_and_other_settings_are_kept_apart(saved, split_pictures, tmp_path, monkeypatch):
    few = ["--holes", "centre", "--keep", "--num-samples", "2", "--no-biharmonic"]
    drawn = hole_filling.drawn_again
    monkeypatch.setattr(inpainting, "_LEAST", 4)
    monkeypatch.setattr("codegrid.pipelines.evaluation.hole_scores._CHUNK", 4)
    calls = []

    def stops(*arguments):
        calls.append(arguments[3])
        if len(calls) == 2:
            raise CodegridError("The power went.", "Start again.")
        return drawn(*arguments)

    monkeypatch.setattr(hole_filling, "drawn_again", stops)
    with pytest.raises(SystemExit):
        evaluate(saved, split_pictures, tmp_path / "out", *few)
    assert set(rows_of(json.loads((tmp_path / "out" / "inpainting.json").read_text()))) == {
        ("centre", "reconstruction")
    }
    record = evaluate(saved, split_pictures, tmp_path / "out", *few)
    assert calls == [[0, 1, 2, 3], [4, 5], [4, 5]]
    assert set(rows_of(record)) == {("centre", "reconstruction"), ("centre", "pipeline")}
    monkeypatch.setattr(hole_filling, "drawn_again", drawn)
    alone = evaluate(saved, split_pictures, tmp_path / "alone", *few, "--batch-size", "1")
    assert alone["results"] == record["results"]  # the batch changes nothing
    other = evaluate(saved, split_pictures, tmp_path / "out", *few, "--num-steps", "3")
    assert rows_of(other)["centre", "pipeline"] != rows_of(record)["centre", "pipeline"]
    (apart,) = (tmp_path / "out").glob("inpainting-*.json")
    assert json.loads(apart.read_text())["results"] == record["results"]


def test_pictures_of_other_classes_are_drawn_as_the_null_class(saved, split_pictures, tmp_path):
    (split_pictures / "validation" / "noise").rename(split_pictures / "validation" / "snow")
    few = ["--holes", "right", "--keep", "--num-samples", "1", "--no-biharmonic"]
    record = evaluate(saved, split_pictures, tmp_path / "out", *few)
    assert record["class_labels"] is False
    assert any("null class" in note for note in record["notes"])
    plain = pipeline("any_order_gpt2", names=None).save_pretrained(tmp_path / "plain")
    assert evaluate(plain, split_pictures, tmp_path / "other", *few)["results"][0]["num_images"] == 6


def test_what_cannot_be_is_refused_before_a_picture_is_read(saved, split_pictures, tmp_path, monkeypatch, capfd):
    raster = pipeline("llama").save_pretrained(tmp_path / "raster")
    monkeypatch.setattr(inpainting, "choose_pictures", lambda *_: pytest.fail("pictures were opened"))
    wrong = {
        "knows raster order only": (raster, []),
        "num_samples is 0": (saved, ["--num-samples", "0"]),
        "keep has 1": (saved, ["--keep", "1"]),
        "num_images is 3": (saved, ["--num-images", "3"]),
        "num_steps is 0": (saved, ["--num-steps", "0"]),
        "nothing to score": (saved, ["--holes", "--keep"]),
        "temperature is -1": (saved, ["--temperature", "-1"]),
    }
    for words, (folder, options) in wrong.items():
        with pytest.raises(SystemExit):
            evaluate(folder, split_pictures, tmp_path / "out", *options)
        assert words in capfd.readouterr().err, words
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(__import__("sys").modules, "skimage.restoration", None)
    with pytest.raises(SystemExit):
        evaluate(saved, split_pictures, tmp_path / "out")
    assert "--no-biharmonic" in capfd.readouterr().err


def test_biharmonic_leaves_what_is_known(pictures):
    true = torch.from_numpy(np.array(Image.open(pictures / "gradient" / "0.png")))[None, :16, :16]
    masks = hole_masks("centre", [0], (16, 16), (4, 4), 0)
    made = hole_filling.biharmonic(true, masks)[0, 0]
    kept = ~torch.from_numpy(masks[0])
    assert (made[kept] == true[0][kept]).all()
    assert (made.int() - true[0].int()).abs().max() <= 3  # a gradient is filled in nearly exactly

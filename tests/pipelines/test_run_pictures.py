"""pipelines/evaluation/run_pictures.py: which pictures are scored of a tokenizer's own run; and `reconstruct`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import DataConfig, DataError, picture_marks
from codegrid.pipelines.data.sources import open_images, split_images
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.evaluation.run_pictures import choose_pictures
from codegrid.pipelines.evaluation.tokenizer import evaluate_tokenizer
from codegrid.pipelines.system.files import OutputError, write_json
from codegrid.pipelines.training.claim import Identity
from codegrid.tokenizer.images import to_model, to_uint8
from codegrid.tokenizer.metrics import psnr

OWN = {"feature_net": "none", "lpips": "none", "batch_size": 4}


@pytest.fixture
def images(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "images"))  # with the files' times


@pytest.fixture
def run(images, tmp_path):
    """A run's folder as training leaves it, without weights: what it was trained on, and the pictures' hashes."""

    def make(**data) -> str:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        config = DataConfig(str(images), **{"validation_fraction": 0.3, **data})
        write_json(folder / "training_config.json", {"stage": "tokenizer", "data": vars(config)})
        source = split_images(config)[0]
        Identity.of(source.description, {}, picture_marks(source)).save(folder)
        return str(folder)

    return make


def held_out(images, fraction=0.3) -> set[str]:
    return set(split_images(DataConfig(str(images), validation_fraction=fraction))[1].names())


def test_the_run_s_own_pictures_are_those_that_it_held_out(run, images):
    tokenizer, data = run(), DataConfig(str(images))
    chosen = choose_pictures(data, tokenizer)
    assert (chosen.part, chosen.seen, set(chosen.source.names())) == ("held_out", "no", held_out(images))
    assert "held these pictures out (5 of 18)" in chosen.said[0]
    seen = choose_pictures(data, tokenizer, "training")
    assert set(seen.source.names()) == set(split_images(data)[0].whole.names()) - held_out(images)
    whole = choose_pictures(data, tokenizer, "all")
    assert (len(whole.source), whole.seen) == (18, "some")
    assert "was trained on some of these pictures" in whole.said[0]
    assert set(choose_pictures(DataConfig(str(images), limit=3), tokenizer).source.names()) < held_out(images)
    inside = Path(tokenizer) / "checkpoints" / "step-3"
    inside.mkdir(parents=True)
    assert choose_pictures(data, str(inside)).part == "held_out"


def test_a_folder_that_moved_is_known_by_its_pictures(run, images, tmp_path):
    tokenizer, expected = run(), held_out(images)
    images.rename(tmp_path / "moved")
    chosen = choose_pictures(DataConfig(str(tmp_path / "moved")), tokenizer)
    assert set(chosen.source.names()) == expected


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_folder_that_grew_or_shrank_never_gives_pictures_of_training(run, images, seed):
    draw = np.random.default_rng(seed)
    tokenizer, expected = run(), held_out(images)
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    gone = set(draw.choice(names, draw.integers(0, 4), replace=False))
    for name in gone:
        (images / name).unlink()
    for number in range(draw.integers(0, 40)):
        Image.new("RGB", (24, 20)).save(images / "noise" / f"new{number}.png")
    chosen = choose_pictures(DataConfig(str(images)), tokenizer)
    assert set(chosen.source.names()) <= expected - gone, seed
    assert len(chosen.source) == 5 - len(gone), seed


def test_too_many_gone_is_refused(run, images):
    tokenizer = run()
    shutil.rmtree(images / "noise")
    with pytest.raises(DataError, match="6 of the 18 pictures"):
        choose_pictures(DataConfig(str(images)), tokenizer)


def test_files_that_were_touched_are_split_by_their_names_and_that_is_said(run, images):
    tokenizer = run()
    for path in images.rglob("*.png"):
        os.utime(path, (1, 1))
    chosen = choose_pictures(DataConfig(str(images)), tokenizer)
    assert set(chosen.source.names()) == held_out(images)
    assert "names decide" in " ".join(chosen.said)


def test_options_that_contradict_the_run_are_refused(run, images):
    tokenizer = run()
    for fraction in (0.0, 0.2, 0.9):
        with pytest.raises(DataError, match=r"held out 30.0% of the pictures"):
            choose_pictures(DataConfig(str(images), validation_fraction=fraction), tokenizer)
    assert choose_pictures(DataConfig(str(images), validation_fraction=0.3), tokenizer).part == "held_out"
    with pytest.raises(DataError, match="held nothing out"):
        choose_pictures(DataConfig(str(images)), run(validation_fraction=0.0), "held_out")
    assert choose_pictures(DataConfig(str(images)), run(validation_fraction=0.0)).seen == "yes"


def test_other_pictures_are_all_scored_and_a_fraction_is_obeyed_or_refused(run, images, tmp_path):
    tokenizer, others = run(), tmp_path / "others"
    others.mkdir()
    for number in range(10):
        Image.new("RGB", (24, 20)).save(others / f"{number}.png")
    assert len(choose_pictures(DataConfig(str(others)), tokenizer).source) == 10
    with pytest.raises(DataError, match=r"data.validation_fraction is 0.4"):
        choose_pictures(DataConfig(str(others), validation_fraction=0.4), tokenizer)
    assert len(choose_pictures(DataConfig(str(others), validation_fraction=0.4), "no-run", "held_out").source) == 4
    overlapping = choose_pictures(DataConfig(str(images / "noise")), tokenizer)
    assert overlapping.seen == "some"
    assert "not known" in overlapping.said[0]


def test_the_split_that_a_run_validates_on(images, tmp_path):
    for name in ("Train", "Validation", "Test"):
        shutil.copytree(images, tmp_path / "split" / name)
    data = DataConfig(str(tmp_path / "split"), split="Train", validation_split="Validation")
    write_json(tmp_path / "run" / "training_config.json", {"stage": "tokenizer", "data": vars(data)})
    tokenizer = str(tmp_path / "run")

    def chosen(split, part="auto"):
        found = choose_pictures(DataConfig(str(tmp_path / "split"), split=split), tokenizer, part)
        return found.part, found.seen, found.source.understood.split

    assert chosen("Train") == ("held_out", "no", "Validation")
    assert chosen("Validation") == chosen("val") == ("held_out", "no", "Validation")
    assert chosen("Test") == ("all", "no", "Test")
    assert chosen("Train", "all") == ("all", "yes", "Train")
    with pytest.raises(DataError, match="was trained on the split"):
        chosen("Test", "training")


def test_a_real_run_is_evaluated_on_what_it_held_out(tokenizer_folder, pictures, tmp_path, capsys):
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")  # its card gets the table
    folder = evaluate_tokenizer(str(copy), DataConfig(str(pictures)), output_dir=str(tmp_path / "a"), **OWN)
    record = json.loads((folder / "reconstruction.json").read_text())
    (row,) = record["results"]
    assert (row["num_images"], record["data"]["part"], record["data"]["seen"]) == (4, "held_out", "no")
    last = [json.loads(line) for line in (tokenizer_folder / "metrics.jsonl").read_text().splitlines()]
    (training,) = [line for line in last if line["kind"] == "validation" and line["step"] == 3]
    assert row["psnr"] == pytest.approx(training["psnr"], abs=1e-3)  # one computation: training's and evaluate's
    assert row["ssim"] == pytest.approx(training["ssim"], abs=1e-5)
    said = capsys.readouterr().out
    assert "held these pictures out (4 of 18)" in said
    assert "Read as: folder of images" in said
    assert "in float32 on" in said


def test_reconstruct_replaces_its_own_files_alone_and_says_it(tokenizer_folder, pictures, tmp_path, capsys):
    folder, data = tmp_path / "out", DataConfig(str(pictures))
    for _ in range(2):
        reconstruct(str(tokenizer_folder), data, str(folder), num_pictures=2)
    said = capsys.readouterr().out
    assert said.count("are replaced") == 1
    assert json.loads((folder / "scores.json").read_text())["made_from"]["data"]["part"] == "all"
    assert "was trained on some of these pictures" in said
    assert "Read as: folder of images" in said
    (folder / "scores.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"scores\.json is not of this command"):
        reconstruct("no/tokenizer", data, str(folder))
    (folder / "scores.json").unlink()
    with pytest.raises(OutputError, match=r"reconstructions\.png without"):
        reconstruct("no/tokenizer", data, str(folder))


def test_reconstruct_in_tiles_is_the_model_in_tiles(tokenizer_folder, pictures, tmp_path):
    whole = reconstruct(str(tokenizer_folder), DataConfig(str(pictures)), str(tmp_path / "whole"))
    tiled = reconstruct(str(tokenizer_folder), DataConfig(str(pictures)), str(tmp_path / "t"), tile=8, overlap=4)
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (whole, tiled)]
    assert [one["made_from"]["tiles"] for one in scores] == [None, [8, 4]]
    assert scores[0]["num_images"] == scores[1]["num_images"]
    model = load_tokenizer(tokenizer_folder)
    batch = next(prepared_batches(model, iter(open_images(DataConfig(str(pictures)))), 99))
    saved = to_model(to_uint8(model.decode(model.encode(batch.images, 8, 4), None, 8, 4)))
    assert scores[1]["psnr"] == pytest.approx(psnr(batch.images, saved).mean().item(), abs=1e-3)
    for wrong in ({"tile": 7}, {"overlap": 4}, {"tile": 8, "overlap": 6}, {"tile": 0}):
        with pytest.raises(CodegridError, match="tile"):
            reconstruct(str(tokenizer_folder), DataConfig(str(pictures)), str(tmp_path / "no"), **wrong)
    assert not (tmp_path / "no").exists()

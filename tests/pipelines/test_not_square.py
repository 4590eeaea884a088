"""Pictures that are wider than high, or the other way round, through every stage."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.records import DataConfig, PicturesConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.demo import actions
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.evaluation.tokenizer import bits_per_pixel
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.report.codes import code_sheet, codebook_atlas, coded_images
from codegrid.pipelines.training.announcement import describe_codes
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior.codes import open_codes
from codegrid.tokenizer import VQModelConfig
from codegrid.tokenizer.fields import established, from_dict
from codegrid.tokenizer.images import Preprocessing, prepare, to_square, valid_box

DRAWN = np.random.default_rng(77)


def test_from_pictures_to_pictures(tokenizer_config, prior_config, tmp_path, capsys):
    """Landscapes of 720x360 scaled down: train, tokenize, verify, train a prior, sample, decode, encode, report."""
    source = tmp_path / "landscapes"
    for index in range(8):
        (source / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        noise = DRAWN.integers(0, 256, (5, 9, 3), dtype=np.uint8)
        size = (72, 36) if index else (90, 31)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(source / f"{index % 2}" / f"{index}.png")
    data = DataConfig(str(source), validation_fraction=0.3)
    changes = {"data": data, "preprocessing": Preprocessing(image_size=(16, 32)), "batch_size": 2}
    changes["objective"] = {"adversarial_weight": 0.1, "adversarial_start": 1}
    run = train_tokenizer(tokenizer_config(tmp_path / "tokenizer", **changes))
    assert "An image of 16x32 (height x width) becomes 32 tokens (4x8)" in capsys.readouterr().out
    model = load_tokenizer(run)
    assert model.config.preprocessing["image_size"] == [16, 32]
    assert (model.config.grid_shape, bits_per_pixel(model)) == ((4, 8), 32 * 5 / (16 * 32))
    assert describe_codes(model).startswith("An image of 16x32")
    assert "Turns images of 16x32 (height x width) pixels" in (run / "README.md").read_text()

    codes = tokenize_dataset(
        TokenizationConfig(str(run), DataConfig(str(source)), str(tmp_path / "codes"), ten_crop=True, device="cpu")
    )
    assert open_codes(codes).manifest.grid_shape == (4, 8)
    verify_codes(VerificationConfig(str(codes), tokenizer=str(run), data=PicturesConfig(str(source)), num_samples=20))

    prior = train_prior(prior_config(tmp_path / "prior", codes=str(codes), model={"positions": "rotary_2d"}))
    pipe = ImageGenerationPipeline.from_pretrained(make_pipeline(str(run), str(prior), str(tmp_path / "pipe")))
    output = pipe(num_images=3, seed=0, progress=False)
    assert [image.size for image in output.images] == [(32, 16)] * 3
    encoded = pipe.encode([source / "0" / "0.png", Image.open(source / "1" / "1.png")])
    assert encoded.shape == (2, 4, 8)
    finished = pipe(["0", "1"], prefix_codes=encoded[:, :2], seed=1, progress=False)
    assert torch.equal(finished.codes[:, :2], encoded[:, :2])

    reconstruct(str(run), DataConfig(str(source)), str(tmp_path / "made"), num_pictures=8)
    with Image.open(tmp_path / "made" / "reconstructions.png") as sheet:
        assert sheet.height == 2 * (32 + 2) + 2  # two lines of pictures that were doubled
    coded = coded_images(model, open_images(DataConfig(str(source))), 8)
    assert code_sheet(coded).width > 8 * 96
    assert codebook_atlas(coded, 4)[0].mean.size == (4, 4)
    image = actions.read_image(model, source / "0" / "2.png")
    assert actions.codes_map(actions.encode(model, image)).size == (384, 192)


SIZES = [(16, 32), (48, 20), (7, 21), tuple(int(side) for side in DRAWN.integers(9, 60, 2))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_every_fit_gives_this_size(size, fit):
    preprocessing = Preprocessing(image_size=size, fit=fit, smaller="upscale")
    for width, height in [(72, 36), (36, 72), (50, 50), size, (3, 2), tuple(DRAWN.integers(10, 90, 2))]:
        picture = Image.fromarray(DRAWN.integers(1, 256, (int(height), int(width), 3), dtype=np.uint8))
        pixels = prepare(picture, preprocessing)
        assert pixels.shape == (*size, 3)
        left, top, right, bottom = valid_box(picture.size, preprocessing)
        assert pixels[top:bottom, left:right].min() > 0 or fit != "pad"
        assert pixels.sum() == pixels[top:bottom, left:right].sum()  # all else is black
        flipped = prepare(picture, preprocessing, flip=True)[top:bottom, left:right]
        assert np.abs(flipped[:, ::-1].astype(int) - pixels[top:bottom, left:right]).max() <= 12 or fit == "crop"


def test_places_of_the_cut():
    """A picture whose pixels say where they lie: columns run from 0 to 199, rows are alike."""
    picture = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (50, 1))).convert("RGB")
    preprocessing = Preprocessing(image_size=(50, 100))
    for position, first in [((0.0, 0.0), 0), ((0.5, 0.5), 50), ((1.0, 1.0), 100)]:
        assert prepare(picture, preprocessing, crop=position)[0, :, 0].tolist() == [*range(first, first + 100)]
    corners = [prepare(picture, preprocessing, crop=variant) for variant in range(10)]
    np.testing.assert_array_equal(corners[5], corners[0][:, ::-1])
    assert corners[0][0, 0, 0] < corners[4][0, 0, 0] < corners[1][0, 0, 0]


def test_too_small_says_which_side():
    with pytest.raises(ValueError, match=r"32x20 pixels is smaller than image_size 16 \(height\) and 40 \(width\)"):
        to_square(np.zeros((20, 32, 3), np.uint8), Preprocessing(image_size=(16, 40)))


def test_a_square_is_one_number():
    for sides in ((16, 16), [16, 16], 16):
        assert Preprocessing(image_size=sides).image_size == 16
    square = established(Preprocessing(image_size=(64, 64), colour="stored"))
    assert square["image_size"] == 64
    wide = Preprocessing(image_size=(180, 360))
    again = from_dict(Preprocessing, json.loads(json.dumps(established(wide))), where="preprocessing")
    assert (again, again.size, again.size_text) == (wide, (180, 360), "180x360 (height x width)")


@pytest.mark.parametrize("sides", [0, -3, 20_000, (16,), (16, 0), (16, 16, 3), (16, 2.5), True, "16", (16, "32")])
def test_what_is_no_size_is_refused(sides):
    with pytest.raises(CodegridError, match=r"preprocessing\.image_size is"):
        Preprocessing(image_size=sides)


def test_both_sides_are_multiples(tokenizer_config, tmp_path):
    backbone = {"ch": 8, "ch_mult": (1, 2), "norm_groups": 4, "z_channels": 8}
    with pytest.raises(CodegridError, match=r"\(16, 31\) is no multiple of the downsampling factor 2"):
        VQModelConfig(backbone=backbone, preprocessing=Preprocessing(image_size=(16, 31)))


@pytest.mark.parametrize(("words", "size"), [(["180", "360"], (180, 360)), (["64"], 64), (["32", "32"], 32)])
def test_on_the_command_line(words, size):
    assert tyro.cli(Preprocessing, args=["--image-size", *words]).image_size == size

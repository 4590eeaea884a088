"""The demo's tab "Edit", without the page: painted masks, results, and on from one of them by its codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.codes.conditions import picture_condition
from codegrid.pipelines.demo.edit_handlers import EditHandlers, can_edit, painted_mask
from codegrid.pipelines.demo.handlers import ALL_CLASSES, answer
from codegrid.pipelines.generation.masks import cells_of
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior import PriorConfig, make_prior
from codegrid.prior.conditions import CombinedCondition, TextCondition
from codegrid.tokenizer.images import to_images, to_uint8


@pytest.fixture(scope="module")
def pipe(pipeline_folder) -> ImageGenerationPipeline:
    raster = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    prior = make_prior(PriorConfig(**size, architecture="any_order_gpt2"), raster.sequence)
    return ImageGenerationPipeline(raster.tokenizer, prior, raster.sequence)


def painted(part: tuple[slice, slice], size=(384, 384)) -> dict:
    layer = np.zeros((*size, 4), dtype=np.uint8)
    layer[part] = 255
    return {"background": None, "layers": [Image.fromarray(layer)], "composite": None}


def test_what_is_painted_is_filled_four_times_and_a_result_goes_on_by_its_codes(pipe, pictures):
    handlers = EditHandlers(pipe)
    file = pictures / "noise" / "0.png"
    subject, shown, said = handlers.upload(str(file))
    assert "your picture" in said
    assert shown["background"].size == (384, 384)
    true = to_images(file, pipe.tokenizer.config.preprocessing_config, 3)
    assert torch.equal(subject.pixels, true)
    left = (slice(0, 384), slice(0, 180))
    results, gallery = handlers.fill(subject, painted(left), 1, 5)
    expected = pipe.inpaint(
        true, painted_mask(painted(left), (16, 16)), 1, num_images_per_image=4, seed=5, output_type="pt", progress=False
    )
    assert torch.equal(results.codes, expected.codes)
    assert torch.equal(results.pixels, expected.images)
    assert len(gallery) == 4
    kept, shown, said = handlers.keep(results, 2)
    assert "result 3" in said
    np.testing.assert_array_equal(np.asarray(shown["background"]), np.asarray(gallery[2]))
    right = (slice(0, 384), slice(300, 384))
    again, _ = handlers.fill(kept, painted(right), ALL_CLASSES, 6)
    redrawn = cells_of(torch.from_numpy(painted_mask(painted(right), (16, 16)))[None], (4, 4))[0]
    assert (again.codes[:, ~redrawn] == results.codes[2][~redrawn]).all()
    outside = ~torch.from_numpy(painted_mask(painted(right), (16, 16)))
    before, after = to_uint8(results.pixels[2:3])[0], to_uint8(again.pixels)
    assert all((one[outside] == before[outside]).all() for one in after)


def test_a_sample_is_edited_by_the_codes_it_was_drawn_with(pipe):
    handlers = EditHandlers(pipe)
    subject, _, _ = handlers.sample(2, 3)
    expected = pipe(2, seed=3, output_type="pt", progress=False)
    assert torch.equal(subject.codes, expected.codes)
    part = (slice(100, 180), slice(100, 180))
    results, _ = handlers.fill(subject, painted(part), 2, 0)
    redrawn = cells_of(torch.from_numpy(painted_mask(painted(part), (16, 16)))[None], (4, 4))[0]
    assert (results.codes[:, ~redrawn] == expected.codes[0][~redrawn]).all()


def test_an_edit_follows_a_prompt_and_a_picture(pipe, pictures, tmp_path):
    model = pipe.tokenizer
    follows = CombinedCondition((picture_condition(model, "grey"), TextCondition(8)))
    sequence = replace(pipe.sequence, class_names=None, condition=follows)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    prior = make_prior(PriorConfig(**size, architecture="any_order_gpt2"), sequence)
    pipe = ImageGenerationPipeline(model, prior, sequence)
    handlers, file, grey = EditHandlers(pipe), str(pictures / "noise" / "0.png"), str(pictures / "noise" / "1.png")
    subject, _, _ = handlers.upload(file)
    part = painted((slice(0, 384), slice(0, 180)))
    found = {}
    for prompt, picture in [("red", None), ("blue", None), ("red", grey), (" ", None), (None, grey)]:
        given = {"prompt": (prompt or "").strip() or None, "condition": picture}
        given = {name: value for name, value in given.items() if value is not None}
        results, _ = handlers.fill(subject, part, ALL_CLASSES, 1, prompt, picture)
        mask = painted_mask(part, (16, 16))
        expected = pipe.inpaint(subject.pixels, mask, num_images_per_image=4, seed=1, progress=False, **given)
        assert torch.equal(results.codes, expected.codes)
        found[prompt, picture] = results.codes
    assert not torch.equal(found["red", None], found["blue", None])
    assert not torch.equal(found[None, grey], found[" ", None])
    drawn, _, _ = handlers.sample(None, 2, "red", grey)
    assert torch.equal(drawn.codes, pipe(prompt="red", condition=grey, seed=2, progress=False).codes)
    with pytest.raises(CodegridError, match=r"nothing to follow\. Fill in Picture to follow or Prompt"):
        handlers.sample(ALL_CLASSES, 2, " ")
    (tmp_path / "upload.png").write_bytes(b"no picture")
    *_, said = answer(handlers.fill, [subject, part, ALL_CLASSES, 1, "red", str(tmp_path / "upload.png")], 2, None)
    assert "upload.png" in said
    assert str(tmp_path) not in said


@pytest.mark.parametrize("seed", [0, 1, 20161])
def test_a_pixel_is_in_the_mask_if_a_part_of_it_is_painted(seed):
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(5, 40, 2))
    canvas = (int(height * random.integers(1, 20)), int(width * random.integers(1, 20)))
    y, x = int(random.integers(canvas[0])), int(random.integers(canvas[1]))
    mask = painted_mask(painted((slice(y, y + 1), slice(x, x + 1)), canvas), (height, width))
    assert mask.sum() == 1, seed
    assert mask[y * height // canvas[0], x * width // canvas[1]], seed


def test_what_cannot_be_filled_is_one_sentence_and_changes_nothing(pipe, pictures, pipeline_folder):
    handlers, same = EditHandlers(pipe), object()
    subject, _, _ = handlers.upload(str(pictures / "noise" / "0.png"))
    part = (slice(0, 50), slice(0, 50))
    wrong = {
        "There is no picture": (handlers.fill, (None, painted(part), 0, 0)),
        "Nothing is painted": (handlers.fill, (subject, painted((slice(0, 0), slice(0, 0))), 0, 0)),
        "Nothing is painted.": (handlers.fill, (subject, None, 0, 0)),
        "The seed is empty": (handlers.fill, (subject, painted(part), 0, None)),
        "There are no results": (handlers.keep, (None, 0)),
        "Upload one": (handlers.upload, (None,)),
        "The seed is 0.5": (handlers.sample, (0, 0.5)),
    }
    for words, (handler, values) in wrong.items():
        *rest, sentence = answer(handler, values, 2, same)
        assert rest == [same, same], words
        assert words in sentence, sentence
    raster = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    assert can_edit(pipe)
    assert not can_edit(raster)
    with pytest.raises(CodegridError, match="raster order only"):
        EditHandlers(raster).fill(subject, painted(part), 0, 0)

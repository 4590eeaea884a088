"""The demo's tab "Edit", without the page: painted masks, results, and on from one of them by its codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.demo.edit_handlers import EditHandlers, can_edit, painted_mask
from codegrid.pipelines.demo.handlers import ALL_CLASSES, answer
from codegrid.pipelines.generation.masks import cells_of
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior import PriorConfig, make_prior
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

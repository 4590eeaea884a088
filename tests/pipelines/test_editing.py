"""Editing: what changes and what does not. A tiny tokenizer with attention and group norm, priors of any order."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.commands import main
from codegrid.pipelines.generation.masks import cells_of, composite, filled, prepared_mask
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


@pytest.fixture(scope="module", params=["any_order_llama", "bert"])
def pipe(request):
    torch.manual_seed(0)
    return made(request.param)


def made(architecture, image_size=32):
    backbone = BackboneConfig(
        resolution=32,
        ch=16,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(16,),
        z_channels=16,
        patch_size=4,
        norm_groups=8,
    )
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4)
    config = VQModelConfig(
        backbone=backbone, quantizer=quantizer, preprocessing=Preprocessing(image_size=image_size, smaller="upscale")
    )
    model = VQModel(config).eval()
    sequence = SequenceConfig(
        32, model.encode(torch.zeros(1, 3, 32, 32)).shape[1:], class_names=("a", "b"), tokenizer_fingerprint=None
    )
    return ImageGenerationPipeline(
        model, make_prior(PriorConfig(**SIZE, architecture=architecture), sequence), sequence
    )


def noise(height=32, width=32, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def square(height=32, width=32, part=slice(10, 19)):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[part, part] = 255
    return mask


@pytest.mark.parametrize("size", [(32, 32), (61, 47)])
@pytest.mark.parametrize("seed", [1, 2, 20161])
def test_what_lies_under_the_mask_has_no_influence(pipe, size, seed):
    """Bit for bit, although attention and group norm of the encoder see everything, and scaling mixes neighbours."""
    mask, random = np.zeros(size, dtype=bool), np.random.default_rng(seed)
    top, left = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
    mask[top : top + random.integers(5, size[0] // 2), left : left + random.integers(5, size[1] // 2)] = True
    one, other = np.array(noise(*size)), np.array(noise(*size, seed=seed))
    other[~mask] = one[~mask]
    assert not np.array_equal(one, other)
    edits = [pipe.inpaint(picture, mask, 0, seed=seed, progress=False, output_type="pt") for picture in (one, other)]
    assert torch.equal(edits[0].codes, edits[1].codes), seed
    assert torch.equal(edits[0].images, edits[1].images), seed
    plain = [pipe.encode(Image.fromarray(picture)) for picture in (one, other)]
    assert not torch.equal(*plain)


@pytest.mark.parametrize("kind", ["array", "bool", "pil", "file", "tensor"])
def test_outside_of_the_mask_no_code_and_no_pixel_changes(pipe, kind, tmp_path):
    mask, picture = square(), noise()
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = {
        "array": mask,
        "bool": mask > 0,
        "pil": Image.fromarray(mask),
        "file": str(tmp_path / "mask.png"),
        "tensor": torch.from_numpy(mask / 255.0),
    }[kind]
    done = pipe.inpaint(picture, given, "b", num_images_per_image=3, seed=0, progress=False, guidance_scale=2.0)
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    before = pipe.encode(filled(whole.double(), torch.from_numpy(mask > 0))[None].float())
    cells = torch.from_numpy(mask > 0).view(4, 8, 4, 8).any(3).any(1)  # a cell is 8x8 pixels
    assert torch.equal(cells_of(torch.from_numpy(mask > 0)[None], (4, 4))[0], cells)
    assert done.labels == [1, 1, 1]
    changed = (done.codes != before).any(0)
    # The fill is rounded to whole numbers, which may move a code: results are compared with each other.
    assert (done.codes == done.codes[:1]).all(0)[~cells].all()
    assert changed[cells].any()
    for image in done.images:
        assert np.array_equal(np.array(image)[mask == 0], np.array(picture)[mask == 0])
    plain = pipe.inpaint(picture, given, "b", seed=0, progress=False, composite=False)
    assert not np.array_equal(np.array(plain.images[0])[mask == 0], np.array(picture)[mask == 0])


def test_after_ten_edits_elsewhere_a_part_is_unchanged(pipe):
    done = pipe.inpaint(noise(), square(part=slice(20, 31)), 0, seed=0, progress=False)
    codes, pixels = done.codes[:, 2:], np.array(done.images[0])[20:, 20:]
    for number in range(10):
        done = pipe.inpaint(done, square(part=slice(number // 2, 12)), 1, seed=number, progress=False)
    assert torch.equal(done.codes[:, 2:], codes)
    assert np.array_equal(np.array(done.images[0])[20:, 20:], pixels)
    again = pipe.inpaint(done.codes, square(part=slice(0, 4)), 1, seed=1, progress=False, output_type="codes")
    assert torch.equal(again.codes[:, 1:], done.codes[:, 1:])


def test_an_edit_depends_on_its_seed_and_not_on_the_batch(pipe):
    pictures, masks = [noise(seed=i) for i in range(4)], [square(part=slice(4 * i, 12 + 5 * i)) for i in range(4)]
    options = {"progress": False, "output_type": "codes", "num_images_per_image": 2, "seed": 5, "num_steps": 3}
    whole = pipe.inpaint(pictures, masks, ["a", "b", "a", "b"], **options).codes
    assert torch.equal(pipe.inpaint(pictures, masks, ["a", "b", "a", "b"], batch_size=3, **options).codes, whole)
    alone = pipe.inpaint(pictures[0], masks[0], "a", **options).codes
    assert torch.equal(alone, whole[:2])


@pytest.mark.parametrize("keep", [0, 0.25, 0.75])
def test_variations_keep_their_share(pipe, keep):
    codes = pipe.encode(noise())
    done = pipe.variations(noise(), keep, "a", num_images_per_image=40, seed=0, progress=False, output_type="codes")
    same = (done.codes == codes).double().mean().item()
    assert same >= keep
    assert same < keep + 0.4 * (1 - keep)  # by chance some are drawn as they were
    assert len({tuple(one.flatten().tolist()) for one in done.codes}) > 30


def test_edit_draws_a_share_as_another_class(pipe):
    codes = pipe.encode(noise())
    done = pipe.edit(codes, "b", strength=0.25, seed=3, progress=False)
    assert done.labels == [1]
    assert 1 <= (done.codes != codes).sum() <= 4
    assert torch.equal(done.codes, pipe.variations(codes, 0.75, "b", seed=3, progress=False, output_type="codes").codes)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_blend_lies_inside_and_the_fill_comes_from_outside(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 20, 24, generator=generator) < 0.7
    before, after = torch.rand(2, 2, 3, 20, 24, generator=generator)
    mixed = composite(before, after, mask)
    assert torch.equal(mixed.movedim(1, 3)[~mask], before.movedim(1, 3)[~mask])
    assert torch.equal(composite(before, after, torch.ones_like(mask)), after) or torch.allclose(
        composite(before, after, torch.ones_like(mask)), after
    )
    unseen = before.masked_fill(mask[:, None], float("nan"))
    assert torch.equal(composite(unseen, after, mask).movedim(1, 3)[mask], mixed.movedim(1, 3)[mask])
    flat = composite(torch.full_like(before, 0.25), torch.full_like(after, 0.25), mask)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))  # no line is seen around the mask
    made_up = filled(before[0], mask[0])
    assert torch.equal(made_up, filled(torch.where(mask[0], float("nan"), before[0]), mask[0]))
    assert torch.equal(made_up[:, ~mask[0]], before[0][:, ~mask[0]])
    low, high = before[0][:, ~mask[0]].amin(), before[0][:, ~mask[0]].amax()
    assert low - 1e-6 <= made_up.min() <= made_up.max() <= high + 1e-6
    assert torch.equal(filled(before[0], torch.ones(20, 24, dtype=torch.bool)), torch.zeros(3, 20, 24))


def test_masks_are_prepared_as_pictures_are():
    mask = np.zeros((64, 96), dtype=bool)
    mask[30, 50] = True
    cut = prepared_mask(mask, Preprocessing(image_size=32))
    assert cut.shape == (32, 32)
    assert 1 <= cut.sum() <= 49
    assert cut[15, 17]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((32, 32)), "black"),
        (np.ones((32, 31)), "32x31"),
        ([np.ones((32, 32, 3))], "A mask is"),
        ([np.ones((32, 32))] * 2, "2 masks for 1"),
    ],
)
def test_masks_that_cannot_be_used_are_sentences(pipe, mask, said):
    with pytest.raises(CodegridError, match=said):
        pipe.inpaint(noise(), mask, 0)


def test_other_values_are_sentences(pipe):
    for call, said in [
        (lambda: pipe.variations(noise(), 1.0), "keep is 1.0"),
        (lambda: pipe.edit(noise(), "a", strength=0), "strength is 0"),
        (lambda: pipe.edit(noise(), None), "no class_labels"),
        (lambda: pipe.variations(noise(), 0.5, ["a", "b"]), "2 class_labels for 1"),
        (lambda: pipe.variations(noise(), 0.5, guidance_scale=2.0), "no labels are given"),
        (lambda: pipe.variations([], 0.5), "no picture"),
        (lambda: pipe.variations(torch.full((1, 4, 4), 32), 0.5), "codebook"),
    ]:
        with pytest.raises(CodegridError, match=said):
            call()
    with pytest.raises(CodegridError, match="raster order only"):
        made("llama").variations(noise())


def test_the_command_edits_and_goes_on_from_its_codes(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "pipe")
    noise().save(tmp_path / "picture.png")
    Image.fromarray(square()).save(tmp_path / "mask.png")
    common = ["edit", "--pipeline", str(tmp_path / "pipe"), "--num-images", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    line = [*common, "--mask", str(tmp_path / "mask.png"), "--class-label", "b"]
    main([*line, "--image", str(tmp_path / "picture.png"), "--output-dir", str(first)])
    from safetensors.torch import load_file

    codes = load_file(first / "codes.safetensors")
    assert sorted(codes) == ["000000.png", "000001.png"]
    main([*line, "--image", str(first / "000001.png"), "--seed", "7", "--output-dir", str(second)])
    again = load_file(second / "codes.safetensors")
    cells = torch.from_numpy(square() > 0).view(4, 8, 4, 8).any(3).any(1)
    assert torch.equal(again["000000.png"][~cells], codes["000001.png"][~cells])
    assert json.loads((second / "generation.json").read_text())["seed"] == 7
    with pytest.raises(SystemExit):
        main([*common, "--image", str(tmp_path / "picture.png"), "--output-dir", str(tmp_path / "third")])
    assert "Give one of them" in capsys.readouterr().err
    noise().save(first / "000001.png")  # a change by hand: the codes beside it are another picture's
    with pytest.raises(SystemExit):
        main([*line, "--image", str(first / "000001.png"), "--output-dir", str(tmp_path / "third")])
    assert "changed after its codes were written" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def codes_changed_outside(pipe, edits, seed):
    """Codes outside of the mask that change in so many edits, each of the result before, with another mask."""
    random = np.random.default_rng(seed)
    now, changed = pipe([0] * 10, output_type="codes", progress=False, seed=seed), 0
    for number in range(edits // 10):
        masks = np.zeros((10, 32, 32), dtype=bool)
        for mask in masks:
            top, left = random.integers(0, 30, 2)
            mask[top : top + random.integers(1, 20), left : left + random.integers(1, 20)] = True
        before = now.codes
        now = pipe.inpaint(
            now, masks, int(random.integers(2)), seed=number, progress=False, output_type="codes", num_steps=4
        )
        outside = ~cells_of(torch.from_numpy(masks), (4, 4))
        changed += int((now.codes != before)[outside].sum())
    return changed


def test_no_code_outside_of_the_mask_changes_in_forty_edits(pipe):
    assert codes_changed_outside(pipe, 40, 16) == 0


@pytest.mark.slow
def test_no_code_outside_of_the_mask_changes_in_a_thousand_edits(pipe):
    assert codes_changed_outside(pipe, 1000, 1000) == 0

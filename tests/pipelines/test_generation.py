"""The pipeline: labels and seeds in, images out; its folder; and images by the thousand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid import prior
from codegrid.pipelines import ImageGenerationPipeline, SamplingConfig
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.to_folder import generate_images
from codegrid.pipelines.system.files import OutputError
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.sampling import image_generator
from codegrid.tokenizer import BackboneConfig, VQModel, VQModelConfig
from codegrid.tokenizer.images import prepare, to_model, to_pil, to_uint8


@pytest.fixture(scope="module")
def folder(tokenizer_folder, prior_folder, tmp_path_factory):
    """The folder of a pipeline with the classes gradient, noise and stripes."""
    return make_pipeline(str(tokenizer_folder), str(prior_folder), str(tmp_path_factory.mktemp("pipeline") / "pipe"))


@pytest.fixture(scope="module")
def pipe(folder):
    return ImageGenerationPipeline.from_pretrained(folder)


@pytest.fixture
def unconditional(tiny_vqmodel):
    sequence = SequenceConfig(32, (4, 4), tokenizer_fingerprint=tiny_vqmodel.fingerprint())
    model = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    return ImageGenerationPipeline(tiny_vqmodel, model, sequence)


def codes_of(pipe, *args, **options):
    return pipe(*args, output_type="codes", progress=False, **options).codes


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        (["stripes", 0, "1"], {}, [2, 0, 1]),
        (["noise", 0], {"num_images_per_label": 2}, [1, 1, 0, 0]),
        ("noise", {}, [1]),
        (2, {"num_images_per_label": 2}, [2, 2]),
        (np.int64(2), {}, [2]),
        (np.array([1, 2]), {}, [1, 2]),
        (None, {}, [0, 1, 2]),
        (None, {"num_images_per_label": 2}, [0, 0, 1, 1, 2, 2]),
        (None, {"num_images": 5}, [0, 1, 2, 0, 1]),
    ],
)
def test_labels(pipe, labels, options, expected):
    output = pipe(labels, seed=0, output_type="codes", progress=False, **options)
    assert output.labels == expected
    assert output.codes.shape == (len(expected), 4, 4)
    assert output.codes.dtype == torch.int64
    assert output.images is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": "noises"}, "Did you mean 'noise'"),
        ({"class_labels": 3}, "a label from 0 to 2"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": 0, "num_images": 2}, "not both"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images_per_label": 0}, "num_images_per_label is 0"),
        ({"num_images": 2, "num_images_per_label": 2}, "not both"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
        ({"generator": [torch.Generator()], "num_images": 2}, "1 generators for 2 images"),
    ],
)
def test_what_is_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments, progress=False)


def test_output_types_are_the_same_images(pipe):
    arguments = {"class_labels": ["noise", "stripes"], "seed": 3, "progress": False}
    tensor = pipe(**arguments, output_type="pt")
    array, pictures = pipe(**arguments, output_type="np").images, pipe(**arguments).images
    assert tensor.images.shape == (2, 3, 16, 16)
    assert tensor.images.abs().max() <= 1
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, to_uint8(tensor.images).numpy())
    for picture, pixels in zip(pictures, array, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    with torch.no_grad():
        decoded = pipe.tokenizer.decode(tensor.codes).clamp(-1, 1)
    assert torch.equal(tensor.images, decoded)


def test_an_image_depends_on_the_seed_and_its_place_alone(pipe):
    labels = [0, 1, 2, 0, 1, 2, 0]
    whole = pipe(labels, seed=7, progress=False)
    for batch_size in (1, 3):
        parts = pipe(labels, seed=7, batch_size=batch_size, progress=False)
        assert torch.equal(parts.codes, whole.codes)
        for one, other in zip(parts.images, whole.images, strict=True):
            difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
            assert np.abs(difference).max() <= 1  # the decoder rounds otherwise in another batch
    assert not torch.equal(codes_of(pipe, labels, seed=8), whole.codes)
    assert len({tuple(row) for row in whole.codes.flatten(1).tolist()}) == 7
    third = codes_of(pipe, [2], generator=[image_generator(7, 2)])
    assert torch.equal(third[0], whole.codes[2])


def test_batches_come_while_later_ones_are_still_to_be_sampled(pipe, monkeypatch):
    whole = pipe([0, 1, 2, 0, 1], seed=7, batch_size=2, progress=False)
    decoded = []
    original = pipe._images_of
    monkeypatch.setattr(
        pipe, "_images_of", lambda codes, labels: (decoded.append(len(codes)), original(codes, labels))[1]
    )
    stream = pipe.stream([0, 1, 2, 0, 1], seed=7, batch_size=2, progress=False)
    first = next(stream)
    assert decoded == [2]
    assert first.labels == [0, 1]
    assert not torch.is_inference_mode_enabled()
    parts = [first, *stream]
    assert decoded == [2, 2, 1]
    assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
    pictures = [image for part in parts for image in part.images]
    assert all(np.array_equal(one, other) for one, other in zip(pictures, whole.images, strict=True))


def test_an_upper_part_is_completed(pipe):
    own = codes_of(pipe, [0, 1], seed=7)
    assert torch.equal(codes_of(pipe, [0, 1], seed=7, prefix_codes=own[:, :2]), own)
    pictures = [Image.fromarray(np.full((24, 20, 3), shade, np.uint8)) for shade in (40, 200)]
    prefix = pipe.encode(pictures)[:, :3]
    prepared = [prepare(picture, pipe.tokenizer.config.preprocessing_config) for picture in pictures]
    assert torch.equal(prefix, pipe.encode(to_model(np.stack(prepared)))[:, :3])
    completed = codes_of(pipe, [0, 1], seed=7, prefix_codes=prefix)
    assert torch.equal(completed[:, :3], prefix)
    with pytest.raises(ValueError, match="prefix_codes of 2 images, but 1"):
        pipe(0, prefix_codes=prefix, progress=False)


def test_grey_pictures_are_completed_as_the_readme_says():
    backbone = BackboneConfig(1, 16, 16, (1, 2), 1, (), z_channels=16, patch_size=2, norm_groups=8)
    config = VQModelConfig(backbone=backbone, quantizer={"type": "vq", "codebook_size": 32, "code_dim": 4})
    model, upper_half = VQModel(config).eval(), "codes[:, : codes.shape[1] // 2]"
    sequence = SequenceConfig(32, (4, 4))
    own = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    pipe = ImageGenerationPipeline(model, own, sequence)
    pictures = [Image.fromarray(np.full((24, 20), shade, np.uint8)) for shade in (40, 200)]
    codes = pipe.encode(pictures)
    prepared = [prepare(picture, config.preprocessing_config, 1) for picture in pictures]
    assert torch.equal(codes, pipe.encode(to_model(np.stack(prepared))))
    assert f"prefix_codes={upper_half})" in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    completed = codes_of(pipe, num_images=2, prefix_codes=codes[:, : codes.shape[1] // 2])
    assert torch.equal(completed[:, :2], codes[:, :2])


def test_a_call_changes_the_settings_that_it_names(pipe):
    options = {"guidance_schedule": "linear", "guidance_range": (0.0, 0.5), "min_p": 0.3, "seed": 0}
    changed = ImageGenerationPipeline(
        pipe.tokenizer, pipe.prior, pipe.sequence, SamplingConfig(2.0, 1.0, 0, 1.0, 0.3, "linear", 2.0, (0.0, 0.5))
    )
    assert torch.equal(codes_of(pipe, [0, 1], **options), codes_of(changed, [0, 1], seed=0))
    assert not torch.equal(codes_of(pipe, [0, 1], **options), codes_of(pipe, [0, 1], seed=0))
    with pytest.raises(TypeError, match="guidance"):
        pipe(0, guidance=2.0)


def test_batches_are_as_large_as_memory_allows(pipe, monkeypatch):
    assert pipe.default_batch_size() == 64
    monkeypatch.setattr(prior.memory, "free_memory", lambda device: 2_000_000)
    assert 1 <= pipe.default_batch_size() < pipe.default_batch_size(decodes=False)


def test_batches_are_reckoned_for_the_pictures_size_not_for_the_backbones(unconditional, monkeypatch):
    """`backbone.resolution` is no limit: imported networks are used on pictures of twice its side."""
    monkeypatch.setattr(prior.memory, "free_memory", lambda device: 4_000_000)
    before = unconditional.default_batch_size()
    unconditional.tokenizer.config.preprocessing = {"image_size": 64}  # four times the resolution
    assert 1 <= unconditional.default_batch_size() <= before // 8  # sixteen times the pixels, in powers of two


def test_one_generator_for_all_and_none(pipe):
    one, other = (codes_of(pipe, [0, 0], generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    # Without a seed, torch's own decides, and goes on from there.
    torch.manual_seed(0)
    first, second = codes_of(pipe, 0), codes_of(pipe, 0)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(codes_of(pipe, 0), first)


def test_guidance_is_on_by_default_and_can_be_chosen(pipe):
    assert pipe.sampling == SamplingConfig(guidance_scale=2.0)
    greedy = {"seed": 0, "temperature": 0.0}
    assert torch.equal(codes_of(pipe, 1, **greedy), codes_of(pipe, 1, guidance_scale=2.0, **greedy))
    assert not torch.equal(codes_of(pipe, 1, **greedy), codes_of(pipe, 1, guidance_scale=50.0, **greedy))


def test_unconditional(unconditional, tmp_path):
    assert unconditional.sampling.guidance_scale == 1
    assert unconditional(seed=0, progress=False).labels is None
    assert codes_of(unconditional, num_images=3, seed=0).shape == (3, 4, 4)
    assert codes_of(unconditional, num_images_per_label=3, seed=0).shape == (3, 4, 4)
    with pytest.raises(ValueError, match="unconditional: it takes no class_labels"):
        unconditional(0)
    loaded = ImageGenerationPipeline.from_pretrained(unconditional.save_pretrained(tmp_path / "pipeline"))
    assert torch.equal(codes_of(loaded, num_images=2, seed=1), codes_of(unconditional, num_images=2, seed=1))
    images = generate_images(str(tmp_path / "pipeline"), str(tmp_path / "images"), num_images=2)
    assert sorted(path.name for path in images.iterdir()) == [
        "000000.png",
        "000001.png",
        "generation.json",
        "samples.png",
    ]


def test_a_saved_pipeline_is_the_same(pipe, tmp_path):
    pipe = ImageGenerationPipeline(pipe.tokenizer, pipe.prior, pipe.sequence, SamplingConfig(1.5, 0.9, 20, 0.95))
    folder = pipe.save_pretrained(tmp_path / "deep" / "pipeline")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model_index.json", "prior", "tokenizer"]
    assert [path.name for path in folder.parent.iterdir()] == ["pipeline"]  # nothing is left beside it
    loaded = ImageGenerationPipeline.from_pretrained(folder)
    assert loaded.sampling == pipe.sampling
    assert loaded.class_names == ("gradient", "noise", "stripes")
    one, other = (which(["noise", 0], seed=2, output_type="pt", progress=False) for which in (pipe, loaded))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.images, other.images)
    index = json.loads((folder / "model_index.json").read_text())
    index["sampling"] = {"guidance_scale": 1.5, "temperature": 0.9, "top_k": 20, "top_p": 0.95}  # as once written
    older = shutil.copytree(folder, tmp_path / "older")
    (older / "model_index.json").write_text(json.dumps(index))
    assert ImageGenerationPipeline.from_pretrained(older).sampling == pipe.sampling
    before = files_of(folder)
    loaded.save_pretrained(folder)  # a pipeline may take the place of a pipeline
    assert files_of(folder) == before


def test_only_a_pipeline_is_overwritten(pipe, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("all of it")
    for name in ("thesis", "thesis/thesis.tex"):
        with pytest.raises(OutputError, match="Choose another folder"):
            pipe.save_pretrained(tmp_path / name)
    assert files_of(tmp_path) == {"thesis/thesis.tex": b"all of it"}


def test_a_prior_of_another_tokenizer_is_refused(pipe, tiny_vqmodel, prior_folder, tmp_path):
    with pytest.raises(LoadingError, match="do not fit each other: fingerprint of the tokenizer"):
        ImageGenerationPipeline(tiny_vqmodel, pipe.prior, pipe.sequence)
    tiny_vqmodel.save_pretrained(tmp_path / "other")
    with pytest.raises(LoadingError, match="Put the prior together with the tokenizer that made its codes"):
        make_pipeline(str(tmp_path / "other"), str(prior_folder), str(tmp_path / "pipeline"))
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "StableDiffusionPipeline"},
        {"prior": ["evil", "LlamaForCausalLM"]},
        {"tokenizer": ["tokenizer", "Other"]},
        {"scheduler": ["diffusers", "DDIMScheduler"]},
        {"sampling": {"guidance": 2.0}},
        {"sampling": {"top_p": 2.0}},
    ],
)
def test_an_index_that_names_something_else_is_refused(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(LoadingError, match=r"model_index.json (names|is damaged)"):
        ImageGenerationPipeline.from_pretrained(copy)


def test_images_of_a_stopped_command_are_completed(folder, pipe, tmp_path):
    arguments = {"num_images": 7, "seed": 3, "batch_size": 4}
    images = generate_images(str(folder), str(tmp_path / "images"), ("noise", "0"), **arguments)
    before = files_of(images)
    names = [f"{index:06d}-{'gradient' if index % 2 else 'noise'}.png" for index in range(7)]
    assert sorted(before) == [*names, "generation.json", "samples.png"]
    for index, picture in enumerate(pipe([1, 0, 1, 0, 1, 0, 1], seed=3, progress=False).images):
        np.testing.assert_array_equal(np.asarray(Image.open(images / names[index])), np.asarray(picture))
    for name in (names[1], names[5], names[6], "samples.png"):
        (images / name).unlink()
    times = {name: (images / name).stat().st_mtime_ns for name in names[2:5]}
    generate_images(str(folder), str(images), ("noise", "0"), **arguments)
    assert files_of(images) == before
    assert times == {name: (images / name).stat().st_mtime_ns for name in times}  # not made again
    for change in ({"seed": 4}, {"num_images": 6}, {"temperature": 0.5}):
        with pytest.raises(OutputError, match="images of other settings"):
            generate_images(str(folder), str(images), ("noise", "0"), **{**arguments, **change})
    with pytest.raises(OutputError, match="images of other settings"):
        generate_images(str(folder), str(images), ("noise",), **arguments)
    assert files_of(images) == before
    generate_images(str(folder), str(images), ("noise", "0"), **{**arguments, "num_images": 9})  # two more of the seed
    after = files_of(images)
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert len(after) == len(before) + 2


def test_images_of_another_prior_in_the_same_place_are_not_mixed_in(folder, pipe, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    generate_images(str(copy), str(tmp_path / "images"), num_images=2)
    other = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), pipe.sequence)
    ImageGenerationPipeline(pipe.tokenizer, other, replace(pipe.sequence)).save_pretrained(copy)
    with pytest.raises(OutputError, match="images of other settings"):
        generate_images(str(copy), str(tmp_path / "images"), num_images=2)


def test_sheet_and_pictures_agree(folder, tmp_path):
    images = generate_images(str(folder), str(tmp_path / "images"), num_images=3, seed=1)
    sheet = Image.open(images / "samples.png")
    first = Image.open(images / "000000-gradient.png")
    enlarged = np.asarray(first.resize((64, 64), Image.Resampling.NEAREST))
    left = sheet.width - 64 - 2
    np.testing.assert_array_equal(np.asarray(sheet)[2:66, left : left + 64], enlarged)
    assert to_pil(torch.zeros(1, 3, 16, 16))[0].size == first.size


def test_the_batch_of_an_accelerator_is_fixed(pipe, monkeypatch):
    """Images depend on it there: what a neighbour leaves of the memory must not decide."""
    monkeypatch.setattr("codegrid.prior.memory.free_memory", lambda device: 1)
    assert pipe.default_batch_size() == 1
    monkeypatch.setattr(type(pipe), "device", torch.device("cuda"))
    assert pipe.default_batch_size() == 64


def test_images_of_another_dtype_are_other_images(pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path / "pipeline")
    exact = generate_images(str(folder), str(tmp_path / "exact"), num_images=2)
    rounded = generate_images(str(folder), str(tmp_path / "rounded"), num_images=2, dtype="bfloat16")
    settings = [json.loads((images / "generation.json").read_text()) for images in (exact, rounded)]
    assert "dtype" not in settings[0]
    assert settings[1]["dtype"] == "bfloat16"
    assert "batch_size" not in settings[0]  # on a CPU no code depends on it
    with pytest.raises(OutputError, match="dtype"):
        generate_images(str(folder), str(rounded), num_images=2)


def test_fixed_shapes_draw_the_same_codes_and_weights_are_laid_out_once(folder, tmp_path, monkeypatch):
    pipe, read = ImageGenerationPipeline.from_pretrained(folder), []
    original = prior.laid_out.read_weights
    monkeypatch.setattr(prior.laid_out, "read_weights", lambda *a, **k: (read.append(a), original(*a, **k))[1])
    options = {"seed": 0, "num_images_per_label": 2, "batch_size": 4}
    eager, static = (codes_of(pipe, decoding=decoding, **options) for decoding in ("eager", "static"))
    assert torch.equal(eager, static)
    assert len(read) == 1
    pipe.to(torch.float64).to(torch.float32)
    assert torch.equal(codes_of(pipe, **options), eager)
    assert len(read) == 2
    generate_images(str(folder), str(tmp_path / "a"), num_images=3, decoding="static")
    generate_images(str(folder), str(tmp_path / "b"), num_images=3)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    with pytest.raises(ValueError, match="records CUDA graphs"):
        generate_images(str(folder), str(tmp_path / "c"), num_images=3, decoding="graph")
    assert not (tmp_path / "c").exists()

"""Pictures larger than trained: sampled, gone on with at any side, edited. Which class makes a picture likeliest."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.codes.conditions import picture_condition
from codegrid.pipelines.commands import main
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.evaluation.classification import ClassificationScores, _scores, evaluate_classification
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import generate_images
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.conditioning import ClassCondition
from codegrid.prior.conditions import combined
from codegrid.prior.orders import random_orders
from codegrid.prior.sampling import image_generator, sample_codes
from codegrid.prior.window_sampling import sample_windows
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.images import to_model

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}

pytestmark = pytest.mark.usefixtures("one_thread")


def made(architecture="any_order_gpt2", classes=("a", "b")):
    torch.manual_seed(0)
    backbone = BackboneConfig(
        resolution=16, ch=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=16, norm_groups=8
    )
    config = VQModelConfig(
        backbone=backbone,
        quantizer=VectorQuantizerConfig(codebook_size=32, code_dim=4),
        preprocessing=Preprocessing(image_size=8, smaller="upscale"),
    )
    sequence = SequenceConfig(32, (4, 4), class_names=classes)
    model = make_prior(PriorConfig(**SIZE, architecture=architecture), sequence)
    return ImageGenerationPipeline(VQModel(config).eval(), model, sequence)


@pytest.fixture(scope="module", params=["llama", "any_order_gpt2", "bert"])
def pipe(request):
    return made(request.param)


def following(architecture, *others):
    """A pipeline that follows pictures, with or without others beside them."""
    plain = made(architecture)
    condition = combined(*others, picture_condition(plain.tokenizer, "grey"))
    sequence = SequenceConfig(32, (4, 4), condition=condition)
    return ImageGenerationPipeline(
        plain.tokenizer, make_prior(PriorConfig(**SIZE, architecture=architecture), sequence), sequence
    )


@pytest.mark.parametrize("architecture", ["llama", "any_order_gpt2", "bert"])
@pytest.mark.parametrize("others", [(), (ClassCondition(("a", "b")),)], ids=["picture", "class and picture"])
def test_each_window_of_a_larger_picture_follows_its_part(architecture, others, tmp_path):
    pipe, pictures = following(architecture, *others), [np.asarray(noise(20, seed))[:12] for seed in (1, 2)]
    given = {"class_labels": ["b", "a"]} if others else {}
    options = {"height": 12, "width": 20, "guidance_scale": 1.5}
    drawn = pipe(condition=[Image.fromarray(one) for one in pictures], **given, **options, **QUIET)
    assert drawn.images[0].size == (20, 12)
    corners = [(top, left) for top in (0, 2) for left in (0, 2, 4, 6)]  # half a window apart
    parts = [
        to_model(torch.from_numpy(np.stack([one[2 * top : 2 * top + 8, 2 * left : 2 * left + 8] for one in pictures])))
        for top, left in corners
    ]
    with torch.no_grad():
        labels = torch.stack([pipe.tokenizer.encode(part).flatten(1) for part in parts])  # [W, 2, 16]
    if others:
        labels = torch.cat([torch.tensor([1, 0]).view(1, 2, 1).expand(8, 2, 1), labels], 2)
    same = {"generators": [image_generator(0, index) for index in range(2)], "guidance_scale": 1.5}
    expected = sample_windows(pipe.prior, pipe.sequence, (6, 10), labels[0], window_labels=labels, **same)
    assert torch.equal(drawn.codes, expected)
    same["generators"] = [image_generator(0, index) for index in range(2)]
    first_alone = sample_windows(pipe.prior, pipe.sequence, (6, 10), labels[0], **same)
    assert torch.equal(first_alone[:, :4, :4], drawn.codes[:, :4, :4])
    assert not torch.equal(first_alone, drawn.codes)
    with pytest.raises(CodegridError, match="window_labels have the shape"):
        sample_windows(pipe.prior, pipe.sequence, (6, 12), labels[0], window_labels=labels, seeds=[0, 1])


@pytest.mark.parametrize("architecture", ["any_order_gpt2", "bert"])
def test_edits_follow_pictures_beside_classes(architecture):
    pipe = following(architecture, ClassCondition(("a", "b")))
    pictures, shown = [noise(8, seed) for seed in (1, 2)], [noise(8, seed) for seed in (3, 4)]
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 2:6] = 255
    cells = torch.zeros(4, 4, dtype=torch.bool)
    cells[1:3, 1:3] = True
    options = {"num_images_per_image": 2, "guidance_scale": 1.5, **QUIET}
    edited = pipe.inpaint(pictures, mask, ["b", "a"], condition=shown, **options)
    assert edited.labels == [1, 1, 0, 0]
    with torch.no_grad():
        codes = pipe.tokenizer.encode(to_model(torch.from_numpy(np.stack([np.asarray(one) for one in shown]))))
    values = torch.cat([torch.tensor([[1], [0]]), codes.flatten(1)], 1).repeat_interleave(2, 0)
    same = {"known_codes": edited.codes, "redraw": cells, "seeds": None, "guidance_scale": 1.5}
    same["generators"] = [image_generator(0, index) for index in range(4)]
    expected = sample_codes(pipe.prior, pipe.sequence, values, **same)
    assert torch.equal(edited.codes.flatten(1), expected)
    alone = pipe.inpaint(pictures, mask, condition=shown[0], **options)  # one for all, and no class
    same |= {"known_codes": alone.codes, "generators": [image_generator(0, index) for index in range(4)]}
    drop = torch.tensor([[True, False]]).expand(4, 2)
    expected = sample_codes(pipe.prior, pipe.sequence, values[:1].expand(4, -1), drop=drop, **same)
    assert torch.equal(alone.codes.flatten(1), expected)
    whole = noise(24, 5).crop((0, 0, 16, 8))  # the picture to follow of a wider result
    wider = pipe.outpaint(pictures, "a", sides={"right": 8}, condition=whole, **options)
    other = pipe.outpaint(pictures, "a", sides={"right": 8}, condition=noise(24, 6).crop((0, 0, 16, 8)), **options)
    assert torch.equal(wider.codes[:, :, :4], other.codes[:, :, :4])
    assert not torch.equal(wider.codes, other.codes)
    assert pipe.edit(pictures, strength=0.5, condition=shown, **QUIET).codes.shape == (2, 4, 4)
    with pytest.raises(CodegridError, match="There are 3 class_labels and condition for 2 pictures"):
        pipe.inpaint(pictures, mask, "a", condition=[*shown, noise(8, 9)], **QUIET)
    with pytest.raises(CodegridError, match="prompt is given, and this pipeline"):
        pipe.variations(pictures, prompt="a cat", **QUIET)
    with pytest.raises(CodegridError, match="condition is given, and this pipeline"):
        made(architecture).inpaint(pictures, mask, condition=shown, **QUIET)
    with pytest.raises(CodegridError, match="edit has no class_labels"):
        pipe.edit(pictures, **QUIET)


def test_edit_takes_a_picture_to_follow(tmp_path):
    pipe = following("any_order_gpt2", ClassCondition(("a", "b")))
    pipe.save_pretrained(tmp_path / "pipe")
    noise(8, 1).save(tmp_path / "picture.png")
    noise(8, 2).save(tmp_path / "shown.png")
    line = ["edit", "--pipeline", str(tmp_path / "pipe"), "--image", str(tmp_path / "picture.png"), "--keep", "0.25"]
    line += ["--num-images", "2", "--condition", str(tmp_path / "shown.png"), "--part-guidance", "1.5", "2"]
    main([*line, "--class-label", "b", "--output-dir", str(tmp_path / "out")])
    options = {"num_images_per_image": 2, "part_guidance": (1.5, 2.0), **QUIET}
    expected = pipe.variations(noise(8, 1), 0.25, "b", condition=noise(8, 2), **options)
    for path, image in zip(sorted((tmp_path / "out").glob("0*.png")), expected.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(image))
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["part_guidance"] == [1.5, 2.0]


@pytest.mark.parametrize("keep", [False, True])
def test_generate_follows_large_pictures(keep, tmp_path):
    pipe = following("llama")
    (tmp_path / "given").mkdir()
    given = noise(20, 3).crop((0, 0, 20, 12)).convert("L")
    given.save(tmp_path / "given" / "a.png")
    pipe.save_pretrained(tmp_path / "pipe")
    out = generate_images(
        str(tmp_path / "pipe"),
        str(tmp_path / "out"),
        num_images=2,
        condition=str(tmp_path / "given"),
        keep_condition=keep,
        height=12,
        width=20,
    )
    asked = {"height": 12, "width": 20, "num_images_per_label": 2, "keep_condition": keep}
    expected = pipe(condition=str(tmp_path / "given" / "a.png"), **asked, **QUIET)
    for path, image in zip(sorted(out.glob("0*.png")), expected.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(image))
        apart = np.abs(np.asarray(image.convert("L"), float) - np.asarray(given, float)).mean()
        assert (apart < 8) == keep  # what is cut at 0 and 255 stays


def noise(size=8, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


QUIET = {"progress": False, "seed": 0}


def test_a_larger_picture_is_sampled_and_decoded(pipe):
    made = pipe(["a", "b", "b"], height=12, width=20, **QUIET)
    assert made.codes.shape == (3, 6, 10)
    assert [image.size for image in made.images] == [(20, 12)] * 3
    alone = pipe(["a", "b", "b"], height=12, width=20, batch_size=1, output_type="codes", **QUIET)
    assert torch.equal(alone.codes, made.codes)
    seen = []
    pipe("a", width=12, callback=lambda *count: seen.append(count), output_type="codes", **QUIET)
    assert seen[-1] == (24, 24)
    assert torch.equal(pipe("a", height=8, width=8, **QUIET).codes, pipe("a", **QUIET).codes)


def test_sizes_that_cannot_be_are_refused_with_the_next_ones(pipe):
    with pytest.raises(CodegridError, match=r"(?s)height is 13 pixels.*12 or 14"):
        pipe("a", height=13)
    with pytest.raises(CodegridError, match=r"(?s)width is 6 pixels, and the prior was trained on 8.*8 or more"):
        pipe("a", width=6)
    with pytest.raises(CodegridError, match="height is 'tall'"):
        pipe("a", height="tall")
    with pytest.raises(CodegridError, match=r"(?s)prefix_codes is given.*outpaint"):
        pipe("a", height=12, prefix_codes=torch.zeros(1, 4, dtype=torch.int64))


def test_outpainting_keeps_the_picture_and_its_codes(pipe):
    sides, place = {"right": 6, "bottom": 2}, (slice(0, 4), slice(0, 4))
    if pipe.prior.config.architectures != ["LlamaForCausalLM"] and "Llama" not in type(pipe.prior).__name__:
        sides, place = {"left": 4, "top": 2, "right": 6}, (slice(1, 5), slice(2, 6))
    picture = noise()
    wider = pipe.outpaint(picture, "a", sides=sides, num_images_per_image=2, **QUIET)
    before = pipe.encode(picture)
    assert wider.codes.shape == (2, 5, 7 if "left" not in sides else 9)
    assert torch.equal(wider.codes[:, place[0], place[1]], before.expand(2, -1, -1))
    assert not torch.equal(*wider.codes)
    rows, columns = (slice(2 * part.start, 2 * part.stop) for part in place)
    for image in wider.images:
        assert np.array_equal(np.asarray(image)[rows, columns], np.asarray(picture))
    decoded = pipe.outpaint(picture, "a", sides=sides, num_images_per_image=2, composite=False, **QUIET)
    assert torch.equal(decoded.codes, wider.codes)
    assert not np.array_equal(np.asarray(decoded.images[0])[rows, columns], np.asarray(picture))
    again = pipe.outpaint(wider, "b", sides={"bottom": 4}, **QUIET)  # from the codes of the first
    assert torch.equal(again.codes[:, :5], wider.codes)


def test_raster_order_goes_on_at_two_sides():
    raster = made("llama")
    assert raster.outpaint(noise(), "a", sides=["right", "bottom"], **QUIET).codes.shape == (1, 6, 6)
    for wrong in ("left", "top"):
        with pytest.raises(CodegridError, match=f"at the bottom and at the right, not at the {wrong}"):
            raster.outpaint(noise(), "a", sides=wrong, **QUIET)
    with pytest.raises(CodegridError, match="not at the top and the left"):
        raster.outpaint(noise(), "a", size=(12, 12), **QUIET)


def test_a_size_has_the_picture_in_the_middle():
    pipe, picture = made(), noise()
    whole = pipe.outpaint(picture, "a", size=(10, 16), **QUIET)
    assert whole.images[0].size == (16, 10)
    assert torch.equal(whole.codes[:, 0:4, 2:6], pipe.encode(picture))


def test_outpainting_refuses_by_name():
    pipe = made()
    cases = {
        "Neither of sides and size is": {},
        "Both of sides and size are": {"sides": "left", "size": (12, 12)},
        "There is no side up": {"sides": "up"},
        r"(?s)left is 3 pixels.*2 or 4": {"sides": {"left": 3}},
        "left is -2": {"sides": {"left": -2}},
        "No side gets any pixel": {"sides": {"left": 0}},
        r"(?s)size is 6x8 pixels.*Give a larger size": {"size": (6, 8)},
        r"(?s)The width of size is 9.*8 or 10": {"size": (8, 9)},
        "size is 12": {"size": 12},
    }
    for said, options in cases.items():
        with pytest.raises(CodegridError, match=said):
            pipe.outpaint(noise(), "a", **options, **QUIET)
    with pytest.raises(CodegridError, match="codes are"):
        pipe.outpaint(torch.zeros(1, 16, dtype=torch.int64), "a", sides="left", **QUIET)


def test_larger_results_are_edited_by_windows():
    pipe = made()
    large = pipe("a", height=12, width=16, **QUIET)
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[5:9, 6:13] = 255
    done = pipe.inpaint(large, mask, "b", num_images_per_image=2, **QUIET)
    cells = torch.zeros(6, 8, dtype=torch.bool)
    cells[2:5, 3:7] = True
    assert torch.equal(done.codes[:, ~cells], large.codes[:, ~cells].expand(2, -1))
    assert (done.codes != large.codes)[:, cells].any()
    kept = pipe.variations(large, 0.75, "a", **QUIET)
    assert (kept.codes == large.codes).sum() >= 36
    assert kept.codes.shape == (1, 6, 8)


def test_pictures_keep_their_own_size_with_whole():
    pipe, picture = made(), noise(16).crop((0, 0, 16, 12))
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[5:9, 6:13] = 255
    done = pipe.inpaint(picture, mask, "b", whole=True, num_images_per_image=2, **QUIET)
    assert done.codes.shape == (2, 6, 8)
    for image in done.images:
        assert np.array_equal(np.asarray(image)[mask == 0], np.asarray(picture)[mask == 0])
    other = np.array(picture)
    other[mask > 0] = 7  # what lies under the mask has no influence
    assert torch.equal(pipe.inpaint(other, mask, "b", whole=True, num_images_per_image=2, **QUIET).codes, done.codes)
    assert pipe.inpaint(picture, mask, "b", **QUIET).codes.shape == (1, 4, 4)  # otherwise it is cut as in training
    assert pipe.variations(picture, 0.5, "a", whole=True, **QUIET).codes.shape == (1, 6, 8)
    assert pipe.edit([picture, picture], "a", whole=True, **QUIET).codes.shape == (2, 6, 8)
    assert pipe.outpaint(picture, "a", sides="left", whole=True, **QUIET).codes.shape == (1, 6, 10)
    with pytest.raises(CodegridError, match=r"(?s)width is 15 pixels.*14 or 16"):
        pipe.variations(noise(15).crop((0, 0, 15, 12)), 0.5, whole=True, **QUIET)
    with pytest.raises(CodegridError, match="height is 6 pixels, and the prior was trained on 8"):
        pipe.variations(noise(8).crop((0, 0, 8, 6)), 0.5, whole=True, **QUIET)
    with pytest.raises(CodegridError, match="of 2 sizes"):
        pipe.variations([picture, noise(16)], 0.5, whole=True, **QUIET)


def test_generate_writes_larger_pictures(tmp_path, capsys):
    pipe, out = made(), tmp_path / "wide"
    pipe.save_pretrained(tmp_path / "pipe")
    common = ["generate", "--pipeline", str(tmp_path / "pipe"), "--seed", "3", "--num-images", "2"]
    main([*common, "--height", "12", "--width", "16", "--output-dir", str(out)])
    settings = json.loads((out / "generation.json").read_text())
    assert (settings["height"], settings["width"]) == (12, 16)
    expected = pipe(["a", "b"], height=12, width=16, seed=3, progress=False).images
    for name, picture in zip(sorted(out.glob("0*.png")), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(name)), np.asarray(picture))
    with pytest.raises(SystemExit):
        main([*common, "--height", "11", "--output-dir", str(tmp_path / "odd")])
    assert "10 or 12" in capsys.readouterr().err
    assert not (tmp_path / "odd").exists()


def test_edit_goes_on_at_sides_and_to_a_size(tmp_path, capsys):
    made().save_pretrained(tmp_path / "pipe")
    noise().save(tmp_path / "picture.png")
    edit = ["edit", "--pipeline", str(tmp_path / "pipe"), "--class-label", "a", "--num-images", "1", "--image"]
    first, second = tmp_path / "first", tmp_path / "second"
    main([*edit, str(tmp_path / "picture.png"), "--outpaint", "left=4", "top=2", "--output-dir", str(first)])
    assert json.loads((first / "generation.json").read_text())["outpaint"] == ["left=4", "top=2"]
    main([*edit, str(first / "000000.png"), "--size", "14", "16", "--output-dir", str(second)])
    assert Image.open(second / "000000.png").size == (16, 14)
    inner = np.asarray(Image.open(second / "000000.png"))[2:12, 2:14]
    assert np.array_equal(inner, np.asarray(Image.open(first / "000000.png")))
    for wrong in (["left", "top=2"], ["left=2", "left=4"], ["left=x"]):
        with pytest.raises(SystemExit):
            main([*edit, str(tmp_path / "picture.png"), "--outpaint", *wrong, "--output-dir", str(tmp_path / "third")])
        assert "Give each side once" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_likelihood_in_nats_and_bits_over_orders():
    pipe = made()
    codes = pipe(["a", "b"], output_type="codes", **QUIET).codes
    orders = random_orders(3, pipe.sequence)
    each = torch.stack([pipe.log_likelihood(codes, ["a", "b"], orders=one) for one in orders])
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(pipe.log_likelihood(codes, ["a", "b"], orders=orders), each.mean(0))
    nats = pipe.log_likelihood(codes, "a")
    torch.testing.assert_close(pipe.log_likelihood(codes, "a", unit="bits_per_code"), -nats / math.log(2) / 16)
    few = [pipe.log_likelihood(codes, "a", orders=4) for _ in range(2)]
    assert torch.equal(*few)
    with pytest.raises(CodegridError, match="unit is 'bits'"):
        pipe.log_likelihood(codes, "a", unit="bits")
    with pytest.raises(CodegridError, match="knows raster order only"):
        made("llama").log_likelihood(codes, "a", orders=2)


def test_classes_by_bayes_rule():
    pipe = made("llama", ("a", "b", "c"))
    codes = pipe(["a", "b", "c", "a"], output_type="codes", **QUIET).codes
    joint = torch.stack([pipe.log_likelihood(codes, label) for label in range(3)], 1)
    torch.testing.assert_close(pipe.classify(codes), joint.log_softmax(1))
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(pipe.classify(codes, class_prior=[2, 1, 1]), (joint + shares.log()).log_softmax(1))
    torch.testing.assert_close(pipe.classify(codes).exp().sum(1), torch.ones(4, dtype=torch.float64))
    pictures = [noise(seed=seed) for seed in range(2)]
    torch.testing.assert_close(pipe.classify(pictures), pipe.classify(pipe.encode(pictures)))
    warm = pipe.classify(codes, class_prior=[2, 1, 1], temperature=3.0)
    torch.testing.assert_close(warm, (joint / 3 + shares.log()).log_softmax(1))
    for wrong in (0, -1.0, math.inf):
        with pytest.raises(CodegridError, match="temperature is"):
            pipe.classify(codes, temperature=wrong)
    for wrong in ([1, 1], [1, 0, 1], [1, math.nan, 1]):
        with pytest.raises(CodegridError, match="class_prior is"):
            pipe.classify(codes, class_prior=wrong)
    with pytest.raises(CodegridError, match="no classes to choose from"):
        made("llama", None).classify(codes)


@pytest.fixture
def folders(tmp_path):
    """A pipeline of the classes a and b, and ten pictures of a and four of b."""
    made("llama").save_pretrained(tmp_path / "pipe")
    random = np.random.default_rng(0)
    for name, number in (("a", 10), ("b", 4)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(number):
            picture = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            picture.save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path


def test_scores_are_those_of_the_likeliest_class():
    posterior = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], dtype=torch.float64).log()
    labels = torch.tensor([0, 0, 0, 1])
    plain = _scores("uniform", posterior, None, labels)
    assert plain == ClassificationScores("uniform", 0.5, pytest.approx((2 / 3 + 0) / 2), plain.nats)
    assert plain.nats == pytest.approx(-float(np.log([0.7, 0.6, 0.2, 0.45]).mean()))
    mostly_b = _scores("codes", posterior, [0.2, 0.8], labels)
    assert (mostly_b.accuracy, mostly_b.balanced_accuracy) == (0.25, 0.5)


def test_the_command_writes_plain_and_balanced_accuracy(folders, capsys):
    line = ["evaluate", "classification", "--pipeline", str(folders / "pipe")]
    main([*line, "--data.source", str(folders / "pictures"), "--output-dir", str(folders / "out")])
    record = json.loads((folders / "out" / "classification.json").read_text())
    (scores,) = record["results"]
    assert record["num_images"] == {"a": 10, "b": 4}
    assert record["constant"] == pytest.approx({"accuracy": 10 / 14, "balanced_accuracy": 0.5})
    right = record["right_by_class"]
    assert scores["balanced_accuracy"] == pytest.approx((right["a"] + right["b"]) / 2)
    assert scores["accuracy"] == pytest.approx((10 * right["a"] + 4 * right["b"]) / 14)
    assert f"balanced {scores['balanced_accuracy']:.3f}" in capsys.readouterr().out
    main([*line, "--data.source", str(folders / "pictures"), "--output-dir", str(folders / "b"), "--temperature", "9"])
    warm = json.loads((folders / "b" / "classification.json").read_text())
    assert warm["right_by_class"] == right  # the likeliest class is the same, and less sure
    assert abs(warm["results"][0]["nats"] - math.log(2)) < abs(scores["nats"] - math.log(2))


def test_what_cannot_be_classified_is_refused(folders):
    other = folders / "other" / "c"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "0.png")
    with pytest.raises(DataError, match=r"classes \(c\) are none of the prior's \(a, b\)"):
        evaluate_classification(str(folders / "pipe"), DataConfig(str(folders / "other")), str(folders / "out"))
    with pytest.raises(CodegridError, match="knows raster order only"):
        evaluate_classification(
            str(folders / "pipe"), DataConfig(str(folders / "pictures")), str(folders / "out"), orders=2
        )
    made("llama", None).save_pretrained(folders / "plain")
    with pytest.raises(CodegridError, match="no classes to choose from"):
        evaluate_classification(str(folders / "plain"), DataConfig(str(folders / "pictures")))
    assert not (folders / "out").exists()

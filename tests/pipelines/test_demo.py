"""What the demo page does, without the page."""

from __future__ import annotations

import json
import shutil
import socket
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.codes.conditions import picture_condition
from codegrid.pipelines.demo import actions as demo
from codegrid.pipelines.demo import page as demo_page
from codegrid.pipelines.demo.actions import Cell
from codegrid.pipelines.demo.handlers import ALL_CLASSES, PICK, PUT, Handlers, answer, class_choices
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.conditioning import ClassCondition
from codegrid.prior.conditions import CombinedCondition, TextCondition
from codegrid.tokenizer.images import BadImage, to_pil


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def pipe(pipeline_folder):
    return ImageGenerationPipeline.from_pretrained(pipeline_folder)


@pytest.fixture
def model(pipe):
    return pipe.tokenizer


def test_samples_are_the_pipelines_with_their_class(pipe):
    pictures = demo.generate(pipe, 1, 3, guidance_scale=1.5, temperature=0.8, seed=4)
    expected = pipe("noise", num_images_per_label=3, guidance_scale=1.5, temperature=0.8, seed=4, progress=False).images
    assert [caption for _, caption in pictures] == ["noise"] * 3
    for (picture, _), image in zip(pictures, expected, strict=True):
        assert picture.size == (128, 128)
        np.testing.assert_array_equal(np.asarray(picture)[::8, ::8], np.asarray(image))
    captions = [caption for _, caption in demo.generate(pipe, None, 4, 2.0, 1.0, 0)]
    assert captions == ["gradient", "noise", "stripes", "gradient"]
    with pytest.raises(ValueError, match="temperature is -1"):
        demo.generate(pipe, None, 4, 2.0, -1.0, 0)


def test_a_picture_is_encoded_changed_and_decoded(pipe, model, pictures, tmp_path):
    image = demo.read_image(model, pictures / "noise" / "0.png")
    assert image.shape == (1, 3, 16, 16)
    codes = demo.encode(model, image)
    with torch.no_grad():
        torch.testing.assert_close(demo.decode(pipe, codes), model(image).reconstruction.clamp(-1, 1))
    cell = Cell(2, 1)
    other = (demo.code_at(codes, cell) + 1) % 32
    changed = demo.with_code(codes, cell, other, codebook_size=32)
    assert demo.code_at(changed, cell) == other
    assert (changed != codes).nonzero().tolist() == [[2, 1]]
    assert not torch.equal(demo.decode(pipe, changed), demo.decode(pipe, codes))
    for code in (-1, 32):
        with pytest.raises(ValueError, match=f"The code is {code}: this codebook's run from 0 to 31"):
            demo.with_code(codes, cell, code, codebook_size=32)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BadImage):
        demo.read_image(model, tmp_path / "broken.png")


def test_codes_of_several_levels():
    codes = torch.arange(32).reshape(4, 4, 2)
    changed = demo.with_code(codes, Cell(3, 0), 7, codebook_size=32, level=1)
    assert (changed != codes).nonzero().tolist() == [[3, 0, 1]]
    assert (demo.code_at(changed, Cell(3, 0), 0), demo.code_at(changed, Cell(3, 0), 1)) == (24, 7)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (16, 16), (64, 64)])
def test_a_click_on_a_cell_of_the_map_finds_it(shape):
    codes = torch.arange(shape[0] * shape[1]).reshape(shape)
    picture = demo.codes_map(codes)
    height, width = picture.height / shape[0], picture.width / shape[1]
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1), (1, 2)):
        x, y = (column + 0.5) * width, (row + 0.5) * height
        assert demo.cell_at(x, y, codes) == (row, column)
        corner = picture.getpixel((int(column * width) + 1, int(row * height) + 1))
        assert corner == demo.colour_of(int(codes[row, column]))
    assert demo.cell_at(picture.width, -1, codes) == (0, shape[1] - 1)


def test_changed_cells_are_framed():
    own = torch.zeros(4, 4, dtype=torch.int64)
    changed = demo.with_code(own, Cell(1, 3), 5, codebook_size=8)
    before, after = np.asarray(demo.codes_map(own)).astype(int), np.asarray(demo.codes_map(changed, changed=own))
    rows, columns = np.nonzero(np.abs(before - after).any(-1))
    side = before.shape[0] // 4
    assert (rows // side == 1).all()
    assert (columns // side == 3).all()
    assert after[side + 1, 3 * side + 1].tolist() == [0, 0, 0]
    assert demo.colour_of(3) == demo.colour_of(3) != demo.colour_of(4)


def test_the_difference_is_black_where_images_agree():
    image, other = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    other[..., 0, 0], other[..., 0, 1] = 0.1, -1.0
    pixels = np.asarray(demo.difference(image, other).resize((8, 8), Image.Resampling.NEAREST))
    assert pixels[1:].max() == 0
    assert pixels[0, 0].tolist() == [51] * 3  # 0.1 of the range of 2, times 4, of 255
    assert pixels[0, 1].tolist() == [255] * 3
    picture = demo.picture(image)
    assert picture.size == (384, 384)
    np.testing.assert_array_equal(np.asarray(picture)[::48, ::48], np.asarray(to_pil(image)[0]))


def test_the_page_computes_on_the_accelerator(pipeline_folder, monkeypatch):
    """The device `meta` stands for one."""
    gradio = SimpleNamespace(themes=SimpleNamespace(Default=lambda **options: None))
    monkeypatch.setattr(demo_page, "_gradio", lambda: gradio)
    made = []
    page = SimpleNamespace(launch=lambda **options: None, block_thread=lambda: None)
    monkeypatch.setattr(demo_page, "make_accelerator", lambda: SimpleNamespace(device="meta"), raising=False)
    monkeypatch.setattr(demo_page, "make_page", lambda pipe, title: made.append(pipe) or page)
    demo_page.run_demo(str(pipeline_folder), port=free_port())
    assert made[0].prior.device.type == made[0].tokenizer.device.type == "meta"


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(LoadingError, match=r"pip install 'codegrid\[demo\]'"):
        demo_page.run_demo("anything")


UNCHANGED = object()


def test_wrong_input_leaves_the_pictures_and_is_one_sentence(pipe, pictures, tmp_path):
    """Of every handler of the page: what is not to be used changes nothing that is shown."""
    handlers = Handlers(pipe)
    files = {"broken.png": b"no picture", "empty.jpg": b"", "words.txt": b"words", "cut\u202e.png": b"\x89PNG\r\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    good = handlers.read(str(pictures / "noise" / "0.png"), 0, None)
    kept, place = good[0], (10.0, 10.0)
    wrong = [(handlers.read, (file, 0, None)) for file in [None, str(tmp_path), *map(str, tmp_path.iterdir())]]
    wrong += [(handlers.click, (kept, code, PUT, 0, None, place)) for code in (-1, 32, 1.5, None, float("nan"), 1e300)]
    wrong += [(handlers.click, (kept, 3, PUT, level, None, place)) for level in (1, -1)]
    wrong += [(handlers.click, (None, 3, PICK, 0, None, place)), (handlers.restore, (None, 0, None))]
    numbers = [(0, 2.0, 1.0, 0), (4, 2.0, -1.0, 0), (4, 2.0, 1.0, None), (4, 2.0, 1.0, 0.5), (4, -3.0, 1.0, 0)]
    wrong += [(handlers.generate, (ALL_CLASSES, *values)) for values in numbers]
    wrong += [(handlers.generate, (9, 4, 2.0, 1.0, 0))]
    for handler, values in wrong:
        *rest, sentence = answer(handler, values, 3, UNCHANGED)
        assert rest == [UNCHANGED] * 3, values
        assert sentence.endswith("."), (values, sentence)
        assert str(tmp_path) not in sentence or values[0] == str(tmp_path)
        assert not any(unicodedata.category(letter) == "Cc" or letter == "\u202e" for letter in sentence), sentence
    *shown, sentence = answer(handlers.click, (kept, 3, PUT, 0, None, place), 6, UNCHANGED)
    assert (len(shown), sentence, demo.code_at(shown[1].codes, Cell(0, 0))) == (6, "", 3)
    *shown, sentence = answer(handlers.restore, (shown[1], 0, None), 5, UNCHANGED)
    assert torch.equal(shown[0].codes, kept.own)


def test_a_bug_is_no_sentence():
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 // 0, (), 1, UNCHANGED)


def test_classes_are_chosen_by_number_whatever_their_names(pipeline_folder, tmp_path):
    """A class may be called as the page's own choice, as another class's number, or be full of marks."""
    folder = tmp_path / "pipeline"
    names = ["all classes", "0", "\u202e<b>${1+1}\n"]
    shutil.copytree(pipeline_folder, folder)
    for path in folder.rglob("sequence_config.json"):
        settings = json.loads(path.read_text())
        settings["class_names"] = names
        path.write_text(json.dumps(settings))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    assert class_choices(pipe) == [("all classes", 0), ("0", 1), ("\\u202e<b>${1+1}\\x0a", 2)]
    (made,) = Handlers(pipe).generate(1, 2, 2.0, 1.0, 0)
    assert [caption for _, caption in made] == ["0", "0"]
    (made,) = Handlers(pipe).generate(ALL_CLASSES, 3, 2.0, 1.0, 0)
    assert [caption for _, caption in made] == [name for name, _ in class_choices(pipe)]


@pytest.fixture
def following(model):
    """A pipeline whose prior follows a class, a picture and a text."""
    parts = (ClassCondition(("cat", "dog")), picture_condition(model, "grey"), TextCondition(12))
    sequence = SequenceConfig(32, (4, 4), tokenizer_fingerprint=model.fingerprint(), condition=CombinedCondition(parts))
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    return ImageGenerationPipeline(model, prior, sequence)


def test_prompts_and_uploaded_pictures_are_followed(following, pictures, tmp_path):
    handlers, file = Handlers(following), str(pictures / "noise" / "0.png")
    (made,) = handlers.generate(1, 2, 1.5, 0.8, 4, " a red dog ", file, 2.0, 3.0)
    assert [caption for _, caption in made] == ["dog a red dog"] * 2
    options = {"num_images_per_label": 2, "temperature": 0.8, "seed": 4, "progress": False}
    expected = following(1, prompt="a red dog", condition=file, part_guidance=(1.5, 2.0, 3.0), **options).images
    for (picture, _), image in zip(made, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(picture)[::8, ::8], np.asarray(image))
    (made,) = handlers.generate(ALL_CLASSES, 3, 1.0, 1.0, 0, "heart", None, 1.0, 1.0)
    assert [caption for _, caption in made] == ["heart"] * 3
    *_, sentence = answer(handlers.generate, (ALL_CLASSES, 3, 1.0, 1.0, 0, " ", None, 1.0, 1.0), 1, UNCHANGED)
    assert sentence == "There is nothing to follow. Fill in Class or Picture to follow or Prompt."
    (made,) = handlers.generate(ALL_CLASSES, 1, 1.0, 1.0, 0, "a long prompt of red hearts", None, 1.0, 1.0)
    assert [caption for _, caption in made] == ["a long promp"]  # what the prior reads
    (tmp_path / "broken.png").write_bytes(b"no picture")
    values = (ALL_CLASSES, 3, 1.0, 1.0, 0, "", str(tmp_path / "broken.png"), 1.0, 1.0)
    *_, sentence = answer(handlers.generate, values, 1, UNCHANGED)
    assert "broken.png" in sentence
    assert str(tmp_path) not in sentence


def test_the_page_has_a_field_for_each_part_that_is_followed(following, pipe):
    pytest.importorskip("gradio", reason="needs the extra demo")
    for one, seen in [(following, True), (pipe, False)]:
        fields = {block.elem_id: block for block in demo_page.make_page(one).blocks.values() if block.elem_id}
        assert (fields["prompt"].visible, fields["condition"].visible) == (seen, seen)
        labels = [getattr(block, "label", "") or "" for block in demo_page.make_page(one).blocks.values()]
        assert [label for label in labels if label.startswith("Guidance")] == (
            ["Guidance: class", "Guidance: picture", "Guidance: text"] if seen else ["Guidance"]
        )


def test_a_taken_port_is_found_before_anything_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(CodegridError, match=f"Port {port} of 127.0.0.1 is taken") as raised:
            demo_page.check_port("127.0.0.1", port)
        assert "--port" in raised.value.remedy
    demo_page.check_port("127.0.0.1", port)
    for host in ("192.0.2.1", "no.such.host.invalid", "x" * 300):
        with pytest.raises(CodegridError, match="is no address of this machine"):
            demo_page.check_port(host, port)
    for number in (0, -1, 65_536):
        with pytest.raises(CodegridError, match=f"--port is {number}"):
            demo_page.check_port("127.0.0.1", number)

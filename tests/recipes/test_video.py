"""docs/recipes/video.py: clips and their windows, frames that follow frames, and the page's commands."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_pages import FEW_STEPS, recipe_of, run_page
from tiny_runs import write_pictures

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, SequenceConfig, log_likelihood, make_prior
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_model


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return recipe_of("video.md")


@pytest.mark.parametrize(("by", "fastest", "number", "ways"), [(8, 1, 8, 120), (4, 2, 24, None)])
def test_a_picture_moves_evenly_and_never_comes_back_to_a_place(
    recipe: dict[str, Any], by, fastest, number, ways
) -> None:
    """The centroid of a single colour is the middle of the square: its place is known in every frame."""
    picture, times = np.zeros((16, 16, 3), np.uint8), np.arange(12)[:, None]
    steps = recipe["velocities"](by, fastest)
    assert len(steps) == number
    assert min(np.hypot(*step) for step in steps) >= 2
    paths = recipe["paths"](12, 16, by, fastest)
    assert ways in (None, len(paths))
    assert len(set(paths)) == len(paths)
    for path in random.Random(0).sample(paths, 40):
        assert len(set(path)) == 12  # no frame is another one again
        clip = recipe["moving"](picture, path, 255)
        assert (clip != 255).sum() == 12 * 16 * 16 * 3  # all of it in every frame
        places = recipe["centroids"](clip) - 7.5
        assert np.abs(places - path).max() < 1e-6
        assert np.abs(places / by - (places / by).round()).max() < 1e-6
        gone = [48 - np.abs(48 - (places[0] + times * step) % 96) for step in steps]  # [T, 2] of each
        assert min(np.abs(each - places).max() for each in gone) < 1e-6
    with pytest.raises(CodegridError, match="A picture of 24 pixels comes back within 12 frames"):
        recipe["paths"](12, 24, 8, 1)


def test_the_centroid_leaves_noise_out(recipe: dict[str, Any]) -> None:
    frame = np.full((1, 64, 64, 3), 250, np.uint8)
    frame[0, 10:20, 30:34] = 0
    frame[0, 60:, 60:] = 240  # what a tokenizer makes of white
    assert recipe["centroids"](frame)[0].tolist() == pytest.approx([14.5, 31.5], abs=1e-3)
    true = np.zeros((2, 3, 8, 8, 3), np.uint8)
    assert recipe["psnr"](true + 16, true).tolist() == pytest.approx([10 * np.log10(255**2 / 256)] * 3)


def test_windows_of_clips(recipe: dict[str, Any]) -> None:
    clips = {"a": [*"abcdefg"], "b": [*"ABC"]}
    assert ["".join(row) for row in recipe["rows_of"](clips, 3, 1)] == ["abc", "bcd", "cde", "def", "efg", "ABC"]
    assert ["".join(row) for row in recipe["rows_of"](clips, 3, 3)] == ["adg"]


def test_frames_follow_the_last_known_ones(recipe: dict[str, Any], monkeypatch) -> None:
    """With a prior that counts: a row has 5 frames, of which 2 are given, so that 7 frames take three rounds."""
    sequence = SequenceConfig(100, (5 * 2, 3), axes={"t": 5, "h": 2, "w": 3})

    def counting(model, sequence, *, seeds, prefix_codes, temperature):
        first = prefix_codes[:, :1, :1] + torch.arange(5).repeat_interleave(2)[:, None]  # [B, 10, 1]
        assert (prefix_codes == first[:, :4].expand_as(prefix_codes)).all()  # each round begins with the last two
        rounds.append(seeds)
        return first.expand(-1, -1, 3).reshape(len(prefix_codes), -1)

    rounds: list[list[int]] = []
    names = recipe["next_frames"].__globals__
    monkeypatch.setitem(names, "sample_codes", counting)
    start = torch.tensor([10, 50])[:, None] + torch.arange(2)
    known = start[..., None, None].expand(2, 2, 2, 3)
    after = recipe["next_frames"](None, sequence, known, 7, 1.0)
    assert after.shape == (2, 7, 2, 3)
    assert after[..., 0, 0].tolist() == [[*range(12, 19)], [*range(52, 59)]]
    assert (after == after[..., :1, :1]).all()
    assert len({seed for seeds in rounds for seed in seeds}) == 6  # of each clip and round its own


def test_the_bits_of_frames_are_those_of_their_codes(recipe: dict[str, Any]) -> None:
    sequence = SequenceConfig(16, (3 * 2, 2), axes={"t": 3, "h": 2, "w": 2})
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    codes = torch.randint(16, (9, 3, 2, 2))
    bits = recipe["frame_bits"](prior, sequence, codes)
    assert bits.shape == (3,)
    assert bits.sum() == pytest.approx(-float(log_likelihood(prior, sequence, codes.flatten(1)).mean()) / np.log(2))
    other = codes.clone()
    other[:, 2] = (other[:, 2] + 1) % 16  # a later frame changes nothing in those before it
    assert recipe["frame_bits"](prior, sequence, other)[:2] == pytest.approx(bits[:2])
    longer = torch.cat([codes[:, :1], codes], 1)  # a fourth frame is the last of the row that ends with it
    assert recipe["frame_bits"](prior, sequence, longer)[3] == pytest.approx(bits[2])
    assert len(recipe["frame_bits"](prior, sequence, codes[:, :2])) == 0


def test_the_frames_of_a_video_are_cut(recipe: dict[str, Any], tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    with av.open(str(tmp_path / "grey.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((96, 160, 3), 25 * index, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    recipe["cut"](tmp_path / "grey.mp4", tmp_path / "FRAMES", held_out=0.3)
    frames = sorted((tmp_path / "FRAMES").rglob("*.png"))
    assert [frame.parent.parent.name for frame in frames] == ["train"] * 7 + ["validation"] * 3
    pixels = np.stack([np.asarray(Image.open(frame)) for frame in frames]).astype(int)
    assert pixels.shape == (10, 64, 64, 3)
    assert np.abs(pixels - 25 * np.arange(10)[:, None, None, None]).max() <= 8  # lossy; the next frame is 25 away


def test_the_page_in_two_steps(recipe: dict[str, Any], tmp_path: Path, capsys, monkeypatch) -> None:
    """The commands of docs/recipes/video.md, but for those that need the network."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("IMAGES"))
    small = {"move": ["--clips", "6", "--validation-clips", "2"], "predict": ["--number", "2"], "cut": None}
    small["train-prior"] = [*FEW_STEPS, "--num-samples", "0", "--model.num-hidden-layers", "1"]
    ran = run_page("video.md", small, {})
    assert {"move", "clips", "import-codes", "train-prior", "predict"} <= set(ran)
    rows, vq = np.load("clips.npy"), VQModel.from_pretrained("TOKENIZER").eval()
    assert rows.shape == (6 * 7, 6, 8, 8)  # all windows of 6 frames
    frames = [np.asarray(Image.open(path)) for path in sorted(Path("FRAMES/train/00004").iterdir())]
    with torch.no_grad():
        assert (vq.encode(to_model(np.stack(frames[2:8]))).numpy() == rows[4 * 7 + 2]).mean() > 0.99
    said = capsys.readouterr().out
    assert "frame 8 predicted" in said
    assert "frame 8 the true codes, decoded" in said
    with Image.open("predicted.gif") as film:
        assert film.n_frames == 12
        assert film.size == (2 * 64, 2 * 64 + 4)

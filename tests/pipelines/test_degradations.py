"""Pictures made of pictures: the same for a source id, as they are meant, and refused by name."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.data import degradations
from codegrid.pipelines.data.degradations import degradation, motif, register_degradation, tells_a_part, with_part
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.evaluation.floors import chroma, floors_of, nearest_pairs

NAMES = ["downscale:4", "noise:25", "jpeg:5", "blur:2", "grey", "edges", "silhouette"]


def disc(size: int = 32, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    inside = (x - size / 2) ** 2 + (y - size / 3) ** 2 < (size / 4) ** 2
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[inside] = (200, 30, 90)
    return picture[:, :, :channels].copy()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_shape_and_depends_on_the_source_id_alone(name, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, channels), dtype=np.uint8)
    before, made = pixels.copy(), degradation(name)
    one = made(pixels, "a.png")
    assert one.shape == pixels.shape
    assert one.dtype == np.uint8
    assert np.array_equal(pixels, before)
    assert (name, channels) == ("grey", 1) or not np.array_equal(one, pixels)
    assert np.array_equal(one, pickle.loads(pickle.dumps(degradation(name)))(pixels, "a.png"))  # in a worker, too
    differs = [not np.array_equal(one, made(pixels, *other)) for other in (("b.png",), ("a.png", 1))]
    assert differs == [name.startswith("noise")] * 2


def test_they_are_what_they_are_called():
    picture = disc()
    grey = degradation("grey")(picture, "")
    assert np.array_equal(grey, np.repeat(np.asarray(Image.fromarray(picture).convert("L"))[..., None], 3, 2))
    shape = degradation("silhouette")(picture, "")
    assert np.array_equal(shape[..., 0] == 0, motif(picture))
    assert np.array_equal(motif(picture), picture[..., 1] == 30)
    small = Image.fromarray(picture).resize((8, 8), Image.Resampling.BICUBIC)
    again = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(degradation("downscale:4")(picture, ""), again)
    lines = degradation("edges")(picture, "")
    assert lines[0, 0, 0] == 255
    assert lines.min() == 0
    noise = degradation("noise:25")(np.full((64, 64, 3), 128, np.uint8), "x").astype(float)
    assert 24 < noise.std() < 26


@pytest.mark.parametrize("name", ["downscale:4", "grey"])
def test_a_picture_takes_the_part_that_its_condition_tells(name):
    made, true = degradation(name), np.stack([disc(), disc()[::-1]]) // 2 + 60  # far from 0 and 255: nothing is cut
    given = np.stack([made(picture, "") for picture in true])
    assert np.array_equal(with_part(made, true, given), true)  # it has that part already
    other = (true + np.random.default_rng(1).integers(0, 41, true.shape)).astype(np.uint8)
    kept = with_part(made, other, given)
    again, before = (np.stack([made(one, "") for one in some]).astype(float) for some in (kept, other))
    assert np.abs(again - given).mean() < np.abs(before - given).mean() / 4
    assert np.abs((kept - again) - (other - before)).mean() < 1  # what the condition does not tell stays
    assert tells_a_part(name)
    assert not any(tells_a_part(kind) for kind in (None, "noise:25", "silhouette", "column:grey", "greyish"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("downscal:4", "Did you mean 'downscale'"),
        ("downscale", "Write downscale:FACTOR, a number from 1 to 64"),
        ("noise:x", "Write noise:SIGMA, a number from 0 to 255"),
        ("noise:nan", "Write noise:SIGMA"),
        ("jpeg:500", "Write jpeg:QUALITY, a whole number from 1 to 95"),
        ("jpeg:5.5", "Write jpeg:QUALITY, a whole number from 1 to 95"),
        ("grey:2", "Write grey: it has no number"),
        ("no_such_module_of_mine:f", "cannot be imported"),
        ("", "There are downscale:FACTOR"),
    ],
)
def test_a_way_that_is_none_is_refused(name, message):
    with pytest.raises(DataError, match=message):
        degradation(name)


def upside_down(pixels, generator):
    return pixels[::-1]


def test_a_function_of_python(monkeypatch):
    monkeypatch.setattr(degradations, "_REGISTERED", {})
    picture = disc()
    register_degradation("turned", upside_down)
    assert np.array_equal(degradation("turned")(picture, ""), picture[::-1])
    assert np.array_equal(degradation(f"{__name__}:upside_down")(picture, ""), picture[::-1])
    with pytest.raises(CodegridError, match="The name 'grey' is taken"):
        register_degradation("grey", upside_down)
    register_degradation("wrong", lambda pixels, generator: pixels[:1].astype(float))
    with pytest.raises(CodegridError, match=r"The condition wrong made float64 \[1, 32, 3\] of uint8 \[32, 32, 3\]"):
        degradation("wrong")(picture, "")
    assert degradations.is_known("turned")
    with pytest.raises(CodegridError, match=r"The condition wrong failed on a\.png \(ZeroDivisionError"):
        degradations.Degradation("wrong", lambda pixels, generator: pixels // (1 // 0))(picture, "a.png")
    assert not degradations.is_known(f"{__name__}:upside_down")  # a file must not cause an import


def test_plain_ways():
    true = np.stack([disc(), disc()[::-1]])
    for name, expected in [
        ("downscale:4", {"bicubic", "Lanczos"}),
        ("grey", {"grey", "mean chroma"}),
        ("jpeg:5", {"the JPEG", "non-local means"}),
        ("blur", {"condition itself"}),
    ]:
        made = degradation(name)
        given = np.stack([made(one, "") for one in true])
        ways = floors_of(name)
        assert set(ways) == expected
        assert all(way(true, given).shape == true.shape for way in ways.values())
    made = degradation("noise:25")
    given = np.stack([made(one, "a") for one in true])
    error = {
        name: np.square(way(true, given) - true.astype(float)).mean() for name, way in floors_of("noise:25").items()
    }
    assert error["non-local means"] < 0.5 * error["noisy"]
    grey = np.stack([degradation("grey")(one, "") for one in true])
    coloured, inside = floors_of("grey")["mean chroma"](true, grey), grey[..., 0] < 200
    assert chroma(coloured)[inside].mean(0) == pytest.approx(chroma(true).mean((0, 1, 2)), abs=1)
    assert floors_of(None) == {}
    assert np.array_equal(floors_of("jpeg:95")["non-local means"](true, true), true)
    pool = np.random.default_rng(0).integers(0, 256, (1200, 4, 4, 1), dtype=np.uint8)
    assert nearest_pairs(pool[[7, 1101]], pool).tolist() == [7, 1101]
    labels = np.arange(len(pool)) % 3
    of_class = nearest_pairs(pool[[7, 1101, 8]], pool, (np.array([2, 0, 5]), labels))  # 7 is of class 1; none is of 5
    for place, row, label in [(0, 7, 2), (1, 1101, 0)]:
        apart = np.square(pool.astype(np.float64) - pool[row]).reshape(len(pool), -1).sum(1)
        assert of_class[place] == np.where(labels == label, apart, np.inf).argmin()
    assert of_class[2] == 8

"""Charts: the same lines in SVG and in PNG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from codegrid.pipelines.pictures.charts import COLOURS, Chart, Series, png, svg, ticks

CHART = Chart(
    "loss & <more>", "step", [Series("train", [(0, 1.0), (50, 0.5), (100, 0.2)]), Series("held", [(50, 0.7)])]
)
SPACE = "{http://www.w3.org/2000/svg}"


def test_svg_is_well_formed_and_its_points_are_in_proportion():
    root = ET.fromstring(svg(CHART))
    line = next(node for node in root.iter(f"{SPACE}polyline") if node.get("stroke") == COLOURS[0])
    points = np.array([[float(value) for value in pair.split(",")] for pair in line.get("points").split()])
    assert points[1, 0] == pytest.approx((points[0, 0] + points[2, 0]) / 2, abs=0.1)
    drops = np.diff(points[:, 1])  # downwards is positive
    assert drops[0] / drops[1] == pytest.approx(0.5 / 0.3, rel=0.02)
    texts = [node.text for node in root.iter(f"{SPACE}text")]
    assert {"loss & <more>", "step", "train", "held", "0", "100"} <= set(texts)


def test_png_has_the_colours_of_the_lines():
    picture = png([CHART, CHART], columns=2)
    assert picture.width == 2 * 720
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.getcolors(1 << 20)}
    assert set(COLOURS[:2]) <= colours


@pytest.mark.parametrize("points", [[], [(1, math.nan)], [(1, math.inf)]])
def test_nothing_to_show(points):
    assert "nothing to show" in svg(Chart("empty", "step", [Series("a", points)]))


@pytest.mark.parametrize("points", [[(3, 0.0)], [(1, 5.0), (2, 5.0)], [(1, 1e-9), (2, 1e9)], [(1, -2), (1, math.nan)]])
def test_flat_single_and_wild_values_are_drawn(points):
    root = ET.fromstring(svg(Chart("wild", "step", [Series("a", points)])))
    places = [float(node.get(axis)) for node in root.iter() for axis in ("x", "y", "cx", "cy") if node.get(axis)]
    assert len(places) > 8
    assert all(0 <= place <= 360 for place in places)


def test_ticks_are_round_and_inside():
    assert ticks(0.3, 9.7) == [2, 4, 6, 8]
    assert ticks(0, 100) == [0, 50, 100]
    assert ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]
    for low, high in ((0.001, 0.0017), (1e6, 3e6), (-5e-9, 5e-9)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6
        assert low - 1e-12 <= found[0]
        assert found[-1] <= high * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("high", "wanted"), [(127_000, "100,000"), (0.0004, "0.0003"), (3e8, "200M"), (0.7, "0.6"), (4e-9, "2e-09")]
)
def test_numbers_beside_a_chart_are_for_people(high, wanted):
    root = ET.fromstring(svg(Chart("numbers", "step", [Series("a", [(0, 0.0), (1, high)])])))
    texts = [node.text for node in root.iter(f"{SPACE}text")]
    assert wanted in texts
    assert all(len(text) <= 9 for text in texts), texts


def _legend_of(names: list[str]) -> list[tuple[float, float, str]]:
    chart = Chart("many", "step", [Series(name, [(0, 0.0), (1, 1.0)]) for name in names])
    root = ET.fromstring(svg(chart))
    texts = [(float(node.get("x")), float(node.get("y")), node.text) for node in root.iter(f"{SPACE}text")]
    lowest = min(float(y) for line in root.iter(f"{SPACE}polyline") for _, y in _pairs(line.get("points")))
    legend = [text for text in texts if text[1] in (31, 46, 61) and text[0] > 60]
    assert all(y + 7 < lowest for _, y, _ in legend), "the legend lies on the curves"
    return legend


def _pairs(points: str) -> list[list[str]]:
    return [pair.split(",") for pair in points.split()]


def test_a_legend_takes_as_many_lines_as_its_names_need():
    names = ["prior", "context", "fixed", "jpeg", "webp", "avif", "jpeg2000"]
    found = _legend_of(names)
    assert [name for _, _, name in found] == names
    assert len({y for _, y, _ in found}) == 2
    assert all(x + 6.2 * len(name) <= 360 for x, _, name in found)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_legends_never_leave_the_chart(seed):
    draw = np.random.default_rng(seed)
    names = ["abcdefgh"[index % 8] * int(draw.integers(1, 90)) for index in range(draw.integers(2, 30))]
    found = _legend_of(names)
    assert found
    assert all(x + 6.2 * (len(name) - 1) <= 360 for x, _, name in found), seed

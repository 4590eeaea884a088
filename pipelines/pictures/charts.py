"""Line charts as SVG for pages and as PNG for files, from one layout and without a plotting library."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw

from codegrid.names import printable
from codegrid.pipelines.pictures.lettering import lettering
from codegrid.pipelines.system.numbers import number

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 46, 38
_INK, _PALE = "#374151", "#e5e7eb"
_LETTER = 6.2  # the mean width of one in a legend
_GAP = 18  # of a legend's name, for its dot
_LINE, _MOST_LINES = 15, 3  # height of a line of the legend, and the number of lines
_SHARPNESS = 2  # PNG pixels per unit of the layout


class Series(NamedTuple):
    """A line through points (x, y) in their order. Points that are not finite are left out.

    A legend that is too wide for one line takes up to three; names beyond that share the width and are cut to it. In a
    PNG, the number of the series (from 1) stands in the place of a name that no font of the system can write.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """The content of a chart. A series of few points gets dots."""

    title: str
    x_label: str
    series: Sequence[Series]


class _Line(NamedTuple):
    points: list[tuple[float, float]]
    colour: str
    width: float


class _Dot(NamedTuple):
    x: float
    y: float
    colour: str


class _Text(NamedTuple):
    x: float
    y: float  # of the middle
    text: str
    anchor: str  # "start", "middle" or "end"
    size: int
    colour: str
    stand_in: str | None = None  # in a PNG, where no font has the letters


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element."""
    parts = []
    for shape in _layout(chart):
        if isinstance(shape, _Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            style = f'stroke="{shape.colour}" stroke-width="{shape.width}" stroke-linejoin="round"'
            parts.append(f'<polyline fill="none" {style} points="{points}"/>')
        elif isinstance(shape, _Dot):
            parts.append(f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="2.5" fill="{shape.colour}"/>')
        else:
            place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}" dominant-baseline="central"'
            text = html.escape(shape.text)
            parts.append(f'<text {place} font-size="{shape.size}" fill="{shape.colour}">{text}</text>')
    label = html.escape(printable(chart.title), quote=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}"'
    return f'{head} font-family="system-ui, sans-serif">{"".join(parts)}</svg>'


def png(charts: Sequence[Chart], columns: int = 3) -> Image.Image:
    """The charts as one picture, `columns` per row."""
    columns = max(1, min(columns, len(charts)))
    width, height = _SHARPNESS * _WIDTH, _SHARPNESS * _HEIGHT
    sheet = Image.new("RGB", (columns * width, math.ceil(len(charts) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, chart in enumerate(charts):
        left, top = index % columns * width, index // columns * height

        def place(x: float, y: float, left: int = left, top: int = top) -> tuple[float, float]:
            return left + _SHARPNESS * x, top + _SHARPNESS * y

        for shape in _layout(chart):
            if isinstance(shape, _Line):
                points = [place(*point) for point in shape.points]
                draw.line(points, shape.colour, round(_SHARPNESS * shape.width), joint="curve")
            elif isinstance(shape, _Dot):
                draw.circle(place(shape.x, shape.y), 2.5 * _SHARPNESS, shape.colour)
            else:
                room = {"start": _WIDTH - shape.x, "middle": 2 * min(shape.x, _WIDTH - shape.x), "end": shape.x}
                most = _SHARPNESS * room[shape.anchor]
                written = lettering(shape.text, _SHARPNESS * shape.size, most, shape.stand_in)
                anchor = {"start": "lm", "middle": "mm", "end": "rm"}[shape.anchor]
                draw.text(place(shape.x, shape.y), written.text, shape.colour, font=written.font, anchor=anchor)
    return sheet


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` round numbers from `low` to `high`; their step is 1, 2 or 5 times a power of ten."""
    room = high - low
    power = 10 ** math.floor(math.log10(room / most))
    step = next(step * power for step in (1, 2, 5, 10, 20) if room / (step * power) < most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _layout(chart: Chart) -> list[_Line | _Dot | _Text]:
    lines = [
        [point for point in series.points if math.isfinite(point[0]) and math.isfinite(point[1])]
        for series in chart.series
    ]
    shapes: list[_Line | _Dot | _Text] = [_Text(_LEFT, 12, _within(chart.title, _WIDTH - _LEFT), "start", 13, _INK)]
    points = [point for line in lines for point in line]
    if not points:
        return [*shapes, _Text(_WIDTH / 2, _HEIGHT / 2, "nothing to show", "middle", 12, _INK)]
    (x_low, x_high), (y_low, y_high) = (_bounds([point[axis] for point in points]) for axis in (0, 1))
    legend = _legend([series.name for series in chart.series])
    top = _TOP + max((line for line, _, _ in legend), default=0) * _LINE

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - top - _BOTTOM)

    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        shapes += [_Line([(_LEFT, y), (_WIDTH - _RIGHT, y)], _PALE, 1)]
        shapes += [_Text(_LEFT - 6, y, _tick(value), "end", 11, _INK)]
    for value in ticks(x_low, x_high):
        shapes.append(_Text(place(value, y_low)[0], _HEIGHT - _BOTTOM + 12, _tick(value), "middle", 11, _INK))
    shapes.append(
        _Text(
            (_LEFT + _WIDTH - _RIGHT) / 2,
            _HEIGHT - 10,
            _within(chart.x_label, _WIDTH - _LEFT - _RIGHT),
            "middle",
            11,
            _INK,
        )
    )
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        placed = [place(*point) for point in line]
        shapes += [_Line(placed, colour, 1.5)] if len(placed) > 1 else []
        shapes += [_Dot(*point, colour) for point in placed] if len(placed) <= 12 else []
    for index, (line, across, name) in enumerate(legend):
        y, colour = 31 + line * _LINE, COLOURS[index % len(COLOURS)]
        shapes += [_Dot(across + 3, y, colour), _Text(across + 10, y, name, "start", 11, _INK, str(index + 1))]
    return shapes


def _legend(names: Sequence[str]) -> list[tuple[int, float, str]]:
    """Line, left end and text of each name; none of a single series."""
    if len(names) < 2:
        return []
    for room in (_WIDTH, max(2 * _LETTER, _MOST_LINES * (_WIDTH - _LEFT) / len(names) - _GAP)):
        line, across, found = 0, float(_LEFT), []
        for name in (_within(name, min(room, _WIDTH - _LEFT - _GAP)) for name in names):
            width = _GAP + _length(name)
            if across > _LEFT and across + width > _WIDTH:
                line, across = line + 1, float(_LEFT)
            found.append((line, across, name))
            across += width
        if line < _MOST_LINES:
            return found
    return [one for one in found if one[0] < _MOST_LINES]


def _length(text: str) -> float:
    """About how wide a text is. Letters of East Asia take two places."""
    return sum(_LETTER * (1 + (unicodedata.east_asian_width(letter) in "WF")) for letter in text)


def _within(text: str, room: float) -> str:
    text = printable(text)
    if _length(text) <= room:
        return text
    while text and _length(text) > room - _LETTER:
        text = text[: min(len(text) - 1, math.ceil(room / _LETTER))]
    return f"{text}…"


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """A range with a margin around the values, even if they are all equal."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _tick(value: float) -> str:
    """A number that fits beside the chart."""
    if abs(value) >= 1e12:
        return f"{value:.2e}".replace("e+", "e")
    return f"{number(value / 1e6, 6)}M" if abs(value) >= 1e7 else number(float(value), 6)

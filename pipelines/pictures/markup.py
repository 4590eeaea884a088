"""Parts of a self-contained HTML page: it embeds its pictures, has no scripts and needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from codegrid.names import printable
from codegrid.pipelines.pictures.charts import Chart, svg
from codegrid.pipelines.system.numbers import number

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 24px; color: #1f2937; background: #fff;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 44px 0 6px; font-size: 20px; } h3 { margin: 26px 0 4px; }
p { margin: 4px 0 12px; max-width: 80ch; color: #4b5563; overflow-wrap: anywhere; }
nav { margin: 14px 0; } nav a { margin-right: 16px; color: #2563eb; text-decoration: none; }
img { display: block; image-rendering: pixelated; max-width: 100%; }
figure > img { min-width: min(100%, 640px); margin: 6px 0; }
.atlas img { min-width: 0; margin: 0; }
figure { margin: 0; } figcaption { color: #6b7280; font-size: 12px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; }
.tile { border: 1px solid #e5e7eb; border-radius: 8px; padding: 8px 14px; min-width: 90px; }
.tile b { display: block; font-size: 20px; } .tile span { color: #6b7280; font-size: 12px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px; }
.atlas { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 10px; }
.atlas div { display: flex; gap: 3px; } .atlas img { height: 84px; }
.atlas img:first-child { width: 44px; height: 44px; }
table { border-collapse: collapse; margin: 8px 0 16px; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #e5e7eb; padding: 3px 12px 3px 0; text-align: left; vertical-align: top; }
th { overflow-wrap: anywhere; min-width: 5ch; } td { white-space: nowrap; } details td { white-space: normal; }
details { margin: 6px 0; } summary { cursor: pointer; color: #374151; }
"""


def escape(text: str, quote: bool = True) -> str:
    """Text for HTML: no tags, no control characters, no marks that turn what follows. Line ends stay."""
    return html.escape("\n".join(map(printable, text.split("\n"))), quote=quote)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page: sections of (heading, body), with links to the sections at the top."""
    links = "".join(f'<a href="#s{index}">{escape(name)}</a>' for index, (name, _) in enumerate(sections))
    bodies = "".join(
        f'<section id="s{index}"><h2>{escape(name)}</h2>{body}</section>' for index, (name, body) in enumerate(sections)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{paragraph(subtitle)}<nav>{links}</nav>{bodies}"
        "</body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def subheading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def picture(image: Image.Image, description: str, caption: str = "") -> str:
    """An image embedded in the page, with its caption."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    tag = f'<img alt="{escape(description, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{tag}<figcaption>{escape(caption)}</figcaption></figure>" if caption else tag


def charts(shown: Iterable[Chart]) -> str:
    return f'<div class="charts">{"".join(f"<div>{svg(chart)}</div>" for chart in shown)}</div>'


def tiles(values: Mapping[str, Any]) -> str:
    """The most important numbers, in large type."""
    cells = (
        f'<div class="tile"><b>{escape(show(value))}</b><span>{escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line per row. A column that is None in all rows is dropped; a single row gets a line per value."""
    rows = [_with_spread(row) for row in rows]
    names = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    if len(rows) == 1:
        return pairs({name: rows[0][name] for name in names})
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ("".join(f"<td>{escape(show(row.get(name)))}</td>" for name in names) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _with_spread(row: Mapping[str, Any]) -> dict[str, Any]:
    """A value and its deviation NAME_std in one cell."""
    merged = {name: value for name, value in row.items() if not name.endswith("_std")}
    for name, value in row.items():
        of = name.removesuffix("_std")
        if of != name and merged.get(of) is not None and value is not None:
            merged[of] = f"{show(merged[of])} ± {number(value, 2)}"
    return merged


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values. Nested values get names with dots."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(show(value))}</td></tr>" for name, value in _flat(values))
    return f"<table>{''.join(lines)}</table>"


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def show(value: Any) -> str:
    """A value as text for people."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

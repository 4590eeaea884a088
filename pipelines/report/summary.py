"""The top of a quickstart's page: what it was made from, and the figures that say how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegrid.pipelines.pictures import markup
from codegrid.pipelines.system.numbers import duration, number, share


def summary(report: Mapping[str, Any], pictures: str) -> str:
    """report.json of a quickstart as tiles, with a sentence on each; all of it is folded below.

    Args:
        report: its content. Figures that it lacks are left out.
        pictures: what the tokenizer was trained on, or "".
    """
    made, seen = report.get("reconstruction", {}), report.get("generation", {})
    real, copies = seen.get("class_agreement_of_real_images"), seen.get("near_copy_share_of_real_images")
    figures = {
        "PSNR of reconstructions": _figure(made.get("psnr"), lambda v: f"{number(v)} dB", "the higher the nearer"),
        "codes in use": _figure(made.get("code_usage"), share, "few: the codebook has collapsed"),
        "samples seen as their class": _figure(
            seen.get("class_agreement"), share, "" if real is None else f"real pictures: {share(real)}"
        ),
        "variety within a class": _figure(seen.get("diversity_ratio"), number, "1: as much as real pictures have"),
        "near copies of training pictures": _figure(
            seen.get("near_copy_share"), share, "" if copies is None else f"real pictures: {share(copies)}"
        ),
        "the whole job": _figure(report.get("seconds", {}).get("total"), duration, ""),
    }
    tiles = {
        f"{name} ({note})" if note else name: value for name, (value, note) in figures.items() if value is not None
    }
    body = markup.paragraph(f"Pictures: {pictures}.") if pictures else ""
    return body + markup.tiles(tiles) + markup.folded("All numbers", markup.pairs(report))


def _figure(value: float | None, shown: Any, note: str) -> tuple[str | None, str]:
    return (None if value is None else shown(value)), note

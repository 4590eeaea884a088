"""The other codecs beside ours: their settings, and which bytes of their files are header."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, features

from codegrid.errors import CodegridError


@dataclass(frozen=True)
class Other:
    """Another codec: Pillow's format, the feature of Pillow that it needs, and the options of each setting."""

    format: str
    feature: str
    settings: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def is_there(self) -> bool:
        return bool(features.check(self.feature))

    def saved(self, image: Image.Image, options: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        image.save(file, format=self.format, **options)
        return file.getvalue()


OTHERS = {
    "jpeg": Other("JPEG", "jpg", tuple((f"q{q}", {"quality": q, "optimize": True}) for q in (1, 5, 15, 30, 60, 90))),
    "webp": Other("WEBP", "webp", tuple((f"q{q}", {"quality": q, "method": 6}) for q in (0, 1, 10, 25, 50, 75, 95))),
    "avif": Other("AVIF", "avif", tuple((f"q{q}", {"quality": q, "speed": 4}) for q in (0, 10, 25, 50, 75, 90))),
    # The bare codestream: the boxes of a .jp2 file around it would add 85 bytes.
    "jpeg2000": Other(
        "JPEG2000",
        "jpg_2000",
        tuple(
            (f"{rate}:1", {"quality_mode": "rates", "quality_layers": [rate], "no_jp2": True})
            for rate in (1600, 800, 400, 200, 100, 50, 20, 8)
        ),
    ),
}
# Which bytes of a file are not header, for people.
CODED = {
    "jpeg": "what lies between the header of the scan and the end marker: no tables",
    "webp": "the data of the VP8 or VP8L chunk",
    "avif": "the data of mdat",
    "jpeg2000": "everything from the first tile part (SOT) on",
}


def coded_bytes(name: str, file: bytes) -> int:
    """Number of bytes of a file without its header: see `CODED`.

    Raises:
        CodegridError: the file has no such part.
    """
    found = sum(last - first for first, last in _PARTS[name](file) if last <= len(file))
    if found <= 0:
        raise CodegridError(f"A file of {name} holds no coded picture.", "Report it, with the version of Pillow.")
    return found


def _jpeg(file: bytes) -> Iterator[tuple[int, int]]:
    """Scans, of the segments behind SOI; a progressive file has several."""
    place = 2
    while place + 4 <= len(file) and file[place] == 0xFF:
        kind, length = file[place + 1], int.from_bytes(file[place + 2 : place + 4], "big")
        if kind == 0xD9 or length < 2:  # EOI, or damage
            return
        place += 2 + length
        if kind == 0xDA:  # SOS: bytes up to the next marker, which neither is stuffed nor restarts
            first = place
            while place + 1 < len(file) and (
                file[place] != 0xFF or file[place + 1] == 0 or 0xD0 <= file[place + 1] <= 0xD7
            ):
                place += 1
            yield first, place


def _webp(file: bytes) -> Iterator[tuple[int, int]]:
    """Chunks of RIFF: a name, a length, the data, filled up to an even length."""
    place = 12
    while place + 8 <= len(file):
        name, length = file[place : place + 4], int.from_bytes(file[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            yield place + 8, place + 8 + length
        place += 8 + length + length % 2


def _avif(file: bytes) -> Iterator[tuple[int, int]]:
    """Boxes of ISO base media: a length with its head, a name, the data."""
    place = 0
    while place + 8 <= len(file):
        length, head = int.from_bytes(file[place : place + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(file[place + 8 : place + 16], "big"), 16
        end = place + length if length else len(file)
        if file[place + 4 : place + 8] == b"mdat":
            yield place + head, end
        place = max(end, place + head)


def _jpeg2000(file: bytes) -> Iterator[tuple[int, int]]:
    """Segments of the main header up to SOT."""
    place = file.find(b"\xff\x4f\xff\x51") + 2  # SOC, directly before SIZ
    while place >= 2 and place + 4 <= len(file):
        if file[place : place + 2] == b"\xff\x90":
            yield place, len(file)
            return
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")


_PARTS = {"jpeg": _jpeg, "webp": _webp, "avif": _avif, "jpeg2000": _jpeg2000}

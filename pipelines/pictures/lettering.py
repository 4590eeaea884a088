"""Text in pictures: a font that has its letters, whatever their script, or a stand-in.

Pillow's own font has ASCII and little more. A system's fonts are found by fontconfig, or by the names that are usual.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import unicodedata
from typing import NamedTuple

from PIL import ImageFont, features

from codegrid.names import printable

_MOST_LETTERS = 300
_MOST_FONTS = 40  # that fontconfig names, best first
_NO_LETTER = "\U0010ffff"  # a noncharacter: a font draws for it what it draws for any letter that it lacks
_USUAL = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansArabic-Regular.ttf")
_USUAL += ("NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf")
_USUAL += ("Arial Unicode.ttf", "Hiragino Sans GB.ttc", "segoeui.ttf", "msyh.ttc", "meiryo.ttc", "malgun.ttf")


class Lettering(NamedTuple):
    """A text of one line, and a font that has all of its letters."""

    text: str
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    @property
    def width(self) -> float:
        """In pixels."""
        return self.font.getlength(self.text)


def lettering(text: str, size: int, width: float | None = None, stand_in: str | None = None) -> Lettering:
    """`text` on one line, `size` pixels high, cut to `width` pixels with three dots at its end.

    Control characters and marks of direction are written as escapes. Where no font has all letters: `stand_in`
    (ASCII, such as the number of a class), by default the letters' numbers as escapes.
    """
    text = unicodedata.normalize("NFC", printable(text[:_MOST_LETTERS]))
    letters = "".join(sorted({letter for letter in text if _is_drawn(letter)}))
    found = _font_file(letters, _needs_shaping(text))
    if found is None or (text.strip() and not letters):  # marks of no width alone are no name to read
        text = text.encode("ascii", "backslashreplace").decode() if stand_in is None else stand_in
        found = _Face()
    return _cut(Lettering(text, _open(found, size)), width)


class _Face(NamedTuple):
    file: str | None = None  # None is Pillow's own
    index: int = 0  # of the face in a collection


def _cut(whole: Lettering, width: float | None) -> Lettering:
    if width is None or whole.width <= width:
        return whole
    for end in range(len(whole.text) - 1, 0, -1):
        if unicodedata.category(whole.text[end])[0] == "M":
            continue  # a mark belongs to the letter before it
        cut = whole._replace(text=f"{whole.text[:end].rstrip()}...")
        if cut.width <= width:
            return cut
    return whole._replace(text="...")


def _is_drawn(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Zs", "Cf") and not "\ufe00" <= letter <= "\ufe0f"


def _needs_shaping(text: str) -> bool:
    """Whether letters change by their neighbours, or run from the right: drawn one by one they would be wrong."""
    return any(
        unicodedata.category(letter)[0] == "M" or unicodedata.bidirectional(letter) in ("R", "AL") for letter in text
    )


@functools.lru_cache(maxsize=1000)
def _font_file(letters: str, needs_shaping: bool) -> _Face | None:
    """The first font that has all `letters`, or None."""
    if needs_shaping and not features.check("raqm"):
        return None
    if _has(_Face(), letters):
        return _Face()
    known = (face for face in (*_by_fontconfig(letters), *map(_Face, _USUAL)) if _has(face, f"{letters}."))
    return next(known, None)


def _has(face: _Face, letters: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # no such file, a font of bitmaps, one that FreeType cannot read
        font = _open(face, 24)
        lacking = _drawn(font, _NO_LETTER)
        return all(_drawn(font, letter) != lacking for letter in letters)
    return False


def _drawn(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=64)
def _open(face: _Face, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if face.file is None:
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(face.file, size, index=face.index)


def _by_fontconfig(letters: str) -> list[_Face]:
    """Fonts of the system that should have these letters, best first."""
    program = shutil.which("fc-match")
    if program is None:
        return []
    wanted = "sans-serif:charset=" + " ".join(f"{ord(letter):x}" for letter in letters)
    try:
        done = subprocess.run(
            [program, "--sort", "--format", "%{file}\t%{index}\n", wanted], capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line.rpartition("\t") for line in done.stdout.decode(errors="surrogateescape").splitlines()]
    faces = [_Face(file, int(index) & 0xFFFF) for file, _, index in lines if file and index.isdecimal()]
    return faces[:_MOST_FONTS]

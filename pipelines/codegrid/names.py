"""File names as text for tables, hashes, logs and terminals: one reversible escape.

A file name is bytes that need not be UTF-8. Python keeps invalid bytes as lone surrogates, which no UTF-8 file can
hold. A name may also hold line ends, and marks that reverse a terminal's text. Letters of all scripts stay unchanged.
"""

from __future__ import annotations

import os
import re
import unicodedata

# Control characters, lone surrogates, line and paragraph separators.
_ESCAPED_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
# Marks that change the direction of the following text, and the byte order mark.
_ESCAPED = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})")


def shown(name: str | os.PathLike[str]) -> str:
    """The name with `\\xHH` for invalid UTF-8 bytes and control characters, and `\\uHHHH` for other marks.

    A name that needs no escape stays unchanged. `hidden` is the inverse.
    """
    name = os.fspath(name)
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(_escaped(name, place) for place in range(len(name)))


def hidden(text: str) -> str:
    """The name for which `shown` returned `text`."""

    def back(found: re.Match[str]) -> str:
        number = int(found[1] or found[2], 16)
        return chr(0xDC00 + number if found[1] and number >= 0x80 else number)

    return _ESCAPE.sub(back, text)


def encodable(text: str) -> str:
    """Escape the characters that UTF-8 cannot hold, in a text with names that did not pass `shown`."""
    return re.sub("[\ud800-\udfff]", lambda found: shown(found[0]), text)


def printable(text: str) -> str:
    """Escape line ends, control characters, bidi marks and lone surrogates in a text for a page, picture or terminal.

    Unlike `shown` it leaves backslashes alone: names in the text may have passed `shown` already.
    """
    return "".join(letter if letter == "\\" else _escaped(letter, 0) for letter in text)


def for_file(text: str, most_bytes: int, kept: str = "", last: bool = False) -> str:
    """A text as a part of a file's name: letters, marks and numbers of any script stay, a run of others is a "_".

    Args:
        most_bytes: the most that stay in UTF-8, of the beginning; no mark is cut off its letter.
        kept: other characters that stay.
        last: keep the end instead of the beginning.
    """
    letters = unicodedata.normalize("NFC", text)
    plain = "".join(letter if letter in kept or unicodedata.category(letter)[0] in "LMN" else " " for letter in letters)
    plain = "_".join(plain.split())
    start, end = 0, len(plain)
    while len(plain[start:end].encode()) > most_bytes or _divides(plain, start) or _divides(plain, end):
        start, end = (start + 1, end) if last else (start, end - 1)
    return plain[start:end]


def _divides(text: str, place: int) -> bool:
    """Whether a mark would be cut off its letter."""
    return 0 < place < len(text) and unicodedata.category(text[place])[0] == "M"


def _escaped(name: str, place: int) -> str:
    letter = name[place]
    if letter == "\\":  # only if it would be read as the start of an escape
        return r"\x5c" if _ESCAPE.match(name, place) else letter
    if letter not in _ESCAPED and unicodedata.category(letter) not in _ESCAPED_CATEGORIES:
        return letter
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}"

"""Names of files as text that every table, hash, log and terminal takes: one escape, which can be undone.

A name is bytes that need not be UTF-8: Python holds the others as lone surrogates, which no UTF-8 file can take. It
may hold line ends, and marks that turn a terminal's text around. Letters of all scripts stay as they are.
"""

from __future__ import annotations

import os
import re
import unicodedata

# Control characters, lone surrogates, and what separates lines and paragraphs.
_ESCAPED_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
# Marks that turn the direction of the text behind them, and the byte order mark.
_ESCAPED = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})")


def shown(name: str | os.PathLike[str]) -> str:
    """The name with `\\xHH` for bytes that are no UTF-8 and for control characters, `\\uHHHH` for other marks.

    A name that needs no escape stays as it is. `hidden` undoes it.
    """
    name = os.fspath(name)
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(_escaped(name, place) for place in range(len(name)))


def hidden(text: str) -> str:
    """The name that `shown` gave `text` for."""

    def back(found: re.Match[str]) -> str:
        number = int(found[1] or found[2], 16)
        return chr(0xDC00 + number if found[1] and number >= 0x80 else number)

    return _ESCAPE.sub(back, text)


def encodable(text: str) -> str:
    """A text with names in it that no `shown` has gone through: what UTF-8 does not take is escaped, the rest stays."""
    return re.sub("[\ud800-\udfff]", lambda found: shown(found[0]), text)


def _escaped(name: str, place: int) -> str:
    letter = name[place]
    if letter == "\\":  # only where it would be read as the beginning of an escape
        return r"\x5c" if _ESCAPE.match(name, place) else letter
    if letter not in _ESCAPED and unicodedata.category(letter) not in _ESCAPED_CATEGORIES:
        return letter
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}"

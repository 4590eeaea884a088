"""pipelines/codegrid/names.py: any name as text that every file and terminal takes, and back."""

import json
import os
import random

import pytest

from codegrid.errors import CodegridError
from codegrid.names import encodable, hidden, printable, shown
from codegrid.pipelines.system.files import write_json, write_text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.png", "plain name.png"),
        ("żółw/鳥/นก/👩‍🔬.png".encode(), "żółw/鳥/นก/👩‍🔬.png"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        (b"two\nlines\t.png", r"two\x0alines\x09.png"),
        ("gnp.\u202egnp.exe".encode(), r"gnp.\u202egnp.exe"),
        ("a\u2028b\x85".encode(), r"a\u2028b\u0085"),
        (rb"back\slash", r"back\slash"),
        (rb"like an escape \xe9", r"like an escape \x5cxe9"),
        (b"\\\xff", "\\\\xff"),
    ],
)
def test_written_names(name, text):
    assert shown(os.fsdecode(name)) == text
    assert os.fsencode(hidden(text)) == name


def test_any_bytes_come_back():
    """Drawn: bytes of all kinds, and pieces that look like escapes."""
    random.seed(5)
    pieces = [b"\\", b"x", b"u", b"5c", b"\\x", b"\\u202e", b"e9", "鳥".encode(), b"\xe9", b"\n", b"\x1b", b"a"]
    for _ in range(3000):
        name = b"".join(random.choice(pieces) for _ in range(random.randrange(1, 9)))
        name += bytes(random.randrange(1, 256) for _ in range(random.randrange(4)))
        text = shown(os.fsdecode(name))
        text.encode()  # UTF-8 takes it
        assert not any(ord(letter) < 32 for letter in text)
        assert os.fsencode(hidden(text)) == name


def test_different_names_stay_different():
    names = [b"\xff", rb"\xff", rb"\x5cxff", rb"\x5cx5cxff", b"\n", rb"\x0a", rb"\n"]
    assert len({shown(os.fsdecode(name)) for name in names}) == len(names)


def test_texts_and_files_with_such_names(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    assert encodable(f"lines\n of {name}") == "lines\n of caf\\xe9"
    assert str(CodegridError(f"{name} is not there.")) == r"caf\xe9 is not there."
    write_json(tmp_path / "a.json", {"source": name, "é": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"source": name, "é": 1}
    write_json(tmp_path / "b.json", {"é": 1})
    assert "é" in (tmp_path / "b.json").read_text()
    write_text(tmp_path / "c.md", f"Trained on {name}.")
    assert (tmp_path / "c.md").read_text() == r"Trained on caf\xe9."


def test_printable_text_has_no_line_ends_and_marks_and_keeps_what_was_escaped():
    assert printable("A\n\u202eb\x1b[2J\udcff, \\x1b \u00e9\u732b") == "A\\x0a\\u202eb\\x1b[2J\\xff, \\x1b \u00e9\u732b"

"""The bytes of a file: what was packed is unpacked, and nothing else is."""

import numpy as np
import pytest

from codegrid.errors import CodegridError
from codegrid.pipelines.codec.file_format import (
    Archive,
    Entry,
    FileFormatError,
    Header,
    checksum,
    pack,
    pack_archive,
    unpack,
    varint,
)

HEADERS = [
    Header("fixed", b"toke", b"", None, (8, 8)),
    Header("context", b"toke", b"cont", None, (200, 1)),
    Header("prior", b"toke", b"prio", 13, (16, 16)),
    Header("prior", b"toke", b"prio", 13, (8, 16), is_short=True),
    Header("context", b"toke", b"cont", None, (45, 90), (0, 7)),
    Header("prior", b"toke", b"prio", 13, (45, 90), (0, 7), overlap=(4, 3)),
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.model)
@pytest.mark.parametrize("label", [None, 0, 127, 128, 70_000])
def test_a_file_says_what_was_packed(header, label):
    entry = Entry(label, 0xDEADBEEF, b"payload")
    data = pack(header, entry)
    archive = unpack(data)
    assert (archive.header, archive.entries, archive.is_single) == (header, (entry,), True)
    if header.grid[0] < 128 and (label or 0) < 128:
        # The size of its own costs a whole picture up to six bytes, of some hundreds or thousands.
        assert len(data) - len(entry.payload) <= (20 if header.added is None else 26)


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.model)
@pytest.mark.parametrize("names", [None, ("a/b.png", "", "\u0416\u4e2d")])
def test_an_archive_says_what_was_packed(header, names):
    entries = (Entry(3, 1, b"one"), Entry(None, 2, b""), Entry(70_000, 2**32 - 1, bytes(300)))
    archive = Archive(header, "someone/pipeline", entries, names)
    assert unpack(pack_archive(archive)) == archive
    empty = Archive(header, "", (), None)
    assert unpack(pack_archive(empty)) == empty
    same = Archive(header, "", (Entry(None, 7, b"xy"),) * 9, None)
    assert unpack(pack_archive(same)) == same


def test_an_image_of_an_archive_costs_six_bytes():
    header = HEADERS[2]
    few, many = (Archive(header, "x/y", (Entry(5, 77, b"z" * 43),) * number) for number in (1, 101))
    assert len(pack_archive(many)) - len(pack_archive(few)) - 100 * 43 <= 600 + 1
    # Lengths from 43 to 74 and ten classes take 5 and 4 bits beside the checksum's 32.
    entries = tuple(Entry(index % 10, 77, b"z" * (43 + index % 32)) for index in range(320))
    payload = sum(len(entry.payload) for entry in entries)
    assert len(pack_archive(Archive(header, "x/y", entries))) - payload - 320 * 41 / 8 < 40


def test_a_damaged_size_of_a_whole_picture_is_told_before_it_is_read():
    data = pack(HEADERS[4], Entry(None, 1, bytes(900)))
    for place in range(3, len(data) - 904):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            try:
                found = unpack(bytes(changed)).header
            except FileFormatError:
                continue
            assert found.added is None  # the flag itself: the checksum of the codes tells it
            assert found.grid[0] * found.grid[1] < 2**16


def test_numbers_of_any_size():
    for number in (0, 1, 127, 128, 300, 2**14, 2**31):
        data = varint(number)
        assert sum((byte & 127) << 7 * place for place, byte in enumerate(data)) == number
        assert all(byte >= 128 for byte in data[:-1])
        assert data[-1] < 128


def test_the_checksum_sees_every_part():
    codes = np.arange(64).reshape(8, 8, 1)
    seen = {checksum(header, None, codes) for header in HEADERS}
    seen |= {checksum(HEADERS[0], label, codes) for label in (0, 1)}
    seen |= {checksum(HEADERS[0], None, codes + 1), checksum(HEADERS[0], None, codes[::-1])}
    assert len(seen) == 10


ABSURD = {
    "magic": b"PNG" + bytes(30),
    "empty": b"",
    "a later version": b"\xcbG\x02" + bytes(30),
    "an index of one image": b"\xcbG\x01\x80" + bytes(30),
    "windows of nothing": b"\xcbG\x01\x03" + bytes(30),
    "a grid of nothing": b"\xcbG\x01\x00toke\x00\x08" + bytes(30),
    "a grid of billions": b"\xcbG\x01\x00toke" + varint(2**16) * 2 + bytes(30),
    "a grid beyond its bytes": b"\xcbG\x01\x00toke" + varint(2000) * 2 + bytes(4 + 30),
    "a number without an end": b"\xcbG\x01\x00toke" + b"\xff" * 30,
    "an archive of billions": b"\xcbG\x01\x08toke\x08\x08\x00" + varint(2**28) + bytes(99),
    "a dense archive of billions": b"\xcbG\x01\xc8toke\x77\x00" + varint(2**28) + bytes(99),
    "lengths of many bits": b"\xcbG\x01\xc8toke\x77\x00\x01\x00\x40" + bytes(99),
    "classes of many bits": b"\xcbG\x01\xcctoke\x77\x00\x01\x40\x00\x08" + bytes(99),
}


@pytest.mark.parametrize("data", ABSURD.values(), ids=ABSURD)
def test_what_is_no_file_of_ours_is_refused_in_a_sentence(data):
    with pytest.raises(FileFormatError) as error:
        unpack(data)
    assert error.value.what.endswith(".")
    assert error.value.remedy


def test_a_cut_or_changed_file_is_read_as_something_or_refused_and_never_crashes():
    draw = np.random.default_rng(0)
    archive = Archive(
        HEADERS[2], "a/b", tuple(Entry(i, i, bytes([i] * 40)) for i in range(20)), tuple("abcdefghijklmnopqrst")
    )
    for data in (pack_archive(archive), pack(HEADERS[1], Entry(4, 5, bytes(50)))):
        for length in range(len(data)):
            try:
                cut = unpack(data[:length])
            except CodegridError:
                continue
            assert cut.is_single  # a cut payload: its checksum is compared by whoever reads the codes
        for _ in range(10_000):
            changed = bytearray(data)
            for place in draw.integers(0, len(data), draw.integers(1, 4)):
                changed[place] = draw.integers(0, 256)
            try:
                read = unpack(bytes(changed))
            except CodegridError:
                continue
            assert sum(len(entry.payload) for entry in read.entries) <= len(data)


def test_a_damaged_index_is_found():
    data = bytearray(pack_archive(Archive(HEADERS[0], "", (Entry(None, 7, bytes(9)),) * 3)))
    data[14] ^= 1
    with pytest.raises(FileFormatError):
        unpack(bytes(data))

"""The bytes of a file of one image, and of an archive of many: docs/file-format.md is the specification.

Nothing here knows a model: a payload is bytes. What a header says is checked before anything of its size is made.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from codegrid.errors import CodegridError

MAGIC, VERSION = b"\xcbG", 1
MODELS = ("fixed", "context", "prior")
_MODEL_BITS, _HAS_CLASS, _IS_ARCHIVE, _HAS_NAMES, _IS_WHOLE, _IS_SHORT, _IS_DENSE = 3, 4, 8, 16, 32, 64, 128
# Bounds of what a header may say. A code takes at least 1 / 1024 of a bit of payload, or the file is not ours.
MOST_SIDE, MOST_CODES, MOST_CLASS, MOST_IMAGES, MOST_ADDED = 2**16, 2**22, 2**24, 2**28, 2**12
_CODES_A_BYTE = 8 * 1024
_MOST_SHORT = 16  # rows and columns of a grid that one byte holds
_CHECKSUM_BITS = 32
_WINDOWS = 3  # in the place of a model: the prior over windows
_LONGEST_VARINT = 5


class FileFormatError(CodegridError):
    """The bytes are not a file of this format, or a damaged one."""


@dataclass(frozen=True)
class Header:
    """What all images of a file share.

    Attributes:
        model: a name of `MODELS`.
        tokenizer: first 4 bytes of the fingerprint of the tokenizer's codes.
        model_fingerprint: 4 bytes of the model's; none for "fixed".
        bound: of "prior": logits of writer and reader may differ by 2^-bound; else None.
        grid: rows and columns of codes.
        added: of a picture that was not cut: rows of pixels below and columns at the right that are no part of it. None
            of pictures that were cut as in training.
        overlap: of "prior" over windows of the trained grid's size (a larger grid): rows and columns that neighbouring
            windows have in common; else None.
        is_short: whether one byte holds the grid, of at most 16 x 16; two numbers in files of earlier writers.
    """

    model: str
    tokenizer: bytes
    model_fingerprint: bytes
    bound: int | None
    grid: tuple[int, int]
    added: tuple[int, int] | None = None
    is_short: bool = False
    overlap: tuple[int, int] | None = None

    def packed(self) -> bytes:
        """Everything behind the flags."""
        bound = b"" if self.bound is None else bytes([self.bound])
        rows, columns = self.grid
        grid = bytes([16 * (rows - 1) + columns - 1]) if self.is_short else varint(rows) + varint(columns)
        rest = (*(self.added or ()), *(self.overlap or ()))
        return self.tokenizer + self.model_fingerprint + bound + grid + b"".join(map(varint, rest))

    @property
    def flags(self) -> int:
        """The bits of the flags that a header decides."""
        model = MODELS.index(self.model) if self.overlap is None else _WINDOWS
        return model | (0 if self.added is None else _IS_WHOLE) | _IS_SHORT * self.is_short


def is_short(grid: tuple[int, int]) -> bool:
    """Whether one byte holds a grid."""
    return max(grid) <= _MOST_SHORT


@dataclass(frozen=True)
class Entry:
    """One image: its class (None: without), the checksum of its codes, and its payload."""

    label: int | None
    checksum: int
    payload: bytes


@dataclass(frozen=True)
class Archive:
    """Many images of one header.

    Attributes:
        source: name of the pipeline's repository or folder, for people; may be empty.
        names: a name an image, or None.
        is_single: whether this is the one image of a file of its own.
    """

    header: Header
    source: str
    entries: tuple[Entry, ...]
    names: tuple[str, ...] | None = None
    is_single: bool = False


def checksum(header: Header, label: int | None, codes: np.ndarray) -> int:
    """CRC-32 of the header, the class and the codes [h, w, depth], each code as 4 bytes, the highest first."""
    told = bytes([header.flags]) + header.packed() + varint(0 if label is None else label + 1)
    return zlib.crc32(np.ascontiguousarray(codes).astype(">u4").tobytes(), zlib.crc32(told))


def pack(header: Header, entry: Entry) -> bytes:
    """A file of one image."""
    flags = header.flags | (0 if entry.label is None else _HAS_CLASS)
    label = b"" if entry.label is None else varint(entry.label)
    head = MAGIC + bytes([VERSION, flags]) + header.packed() + label
    if header.added is not None:
        head += _head_checksum(head)
    return head + entry.checksum.to_bytes(4, "big") + entry.payload


def _head_checksum(head: bytes) -> bytes:
    """2 bytes that tell a damaged size before anything of that size is read."""
    return (zlib.crc32(head) & 0xFFFF).to_bytes(2, "big")


def pack_archive(archive: Archive) -> bytes:
    """A file of many images: header, an index of a few bytes an image, names, and the payloads."""
    header, entries = archive.header, archive.entries
    labelled = any(entry.label is not None for entry in entries)
    flags = header.flags | _IS_ARCHIVE | _IS_DENSE | (_HAS_CLASS if labelled else 0)
    flags |= 0 if archive.names is None else _HAS_NAMES
    names = [_text(name) for name in archive.names or ()]
    head = MAGIC + bytes([VERSION, flags]) + header.packed() + _text(archive.source) + varint(len(entries))
    head += _index(entries, labelled) + b"".join(names)
    return head + zlib.crc32(head).to_bytes(4, "big") + b"".join(entry.payload for entry in entries)


def _index(entries: tuple[Entry, ...], labelled: bool) -> bytes:
    """Class, length and checksum of each image, in as many bits as the largest takes."""
    shortest = min((len(entry.payload) for entry in entries), default=0)
    classes = [0 if entry.label is None else entry.label + 1 for entry in entries]
    longer = [len(entry.payload) - shortest for entry in entries]
    widths = (max(classes, default=0).bit_length(), max(longer, default=0).bit_length(), _CHECKSUM_BITS)
    columns = zip((classes, longer, [entry.checksum for entry in entries]), widths, strict=True)
    parts = [np.array(values, dtype=np.int64)[:, None] >> np.arange(width)[::-1] & 1 for values, width in columns]
    bits = np.packbits(np.concatenate(parts, axis=1).astype(np.uint8)) if entries else np.empty(0, np.uint8)
    return (bytes([widths[0]]) if labelled else b"") + varint(shortest) + bytes([widths[1]]) + bits.tobytes()


def unpack(data: bytes) -> Archive:
    """Read a file of either kind; one image is an archive of one without a source.

    Raises:
        FileFormatError: the bytes are of something else, of a later version, cut off, or absurd.
    """
    reader = _Reader(data)
    require_format(reader.take(2, "magic") == MAGIC, "These bytes are not a compressed image of this project.")
    version = reader.byte("version")
    require_format(
        version == VERSION,
        f"The file has version {version} of the format, and this program reads version {VERSION}.",
        "Update codegrid.",
    )
    flags = reader.byte("flags")
    header = _header(reader, flags)
    if flags & _IS_ARCHIVE:
        return _archive(reader, header, flags)
    require_format(not flags & (_HAS_NAMES | _IS_DENSE), "The file of one image says that it has names or an index.")
    label = reader.varint("class", MOST_CLASS) if flags & _HAS_CLASS else None
    if header.added is not None:
        own = _head_checksum(data[: reader.position])
        require_format(reader.take(2, "checksum of the header") == own, "The file's header is damaged.")
    entry = Entry(label, reader.number("checksum"), reader.rest())
    _check_size(header, len(entry.payload))
    return Archive(header, "", (entry,), is_single=True)


def _header(reader: _Reader, flags: int) -> Header:
    windows = flags & _MODEL_BITS == _WINDOWS
    model = "prior" if windows else MODELS[flags & _MODEL_BITS]
    tokenizer = reader.take(4, "tokenizer")
    fingerprint = b"" if model == "fixed" else reader.take(4, "model")
    bound = reader.byte("bound") if model == "prior" else None
    if short := bool(flags & _IS_SHORT):
        rows, columns = divmod(reader.byte("grid"), 16)
        grid = (rows + 1, columns + 1)
    else:
        grid = (reader.varint("rows", MOST_SIDE), reader.varint("columns", MOST_SIDE))
    require_format(
        min(grid) >= 1 and grid[0] * grid[1] <= MOST_CODES,
        f"The file says that its grid has {grid[0]} x {grid[1]} codes: that is nothing, or beyond {MOST_CODES}.",
    )
    added = None
    if flags & _IS_WHOLE:
        added = (reader.varint("added rows", MOST_ADDED), reader.varint("added columns", MOST_ADDED))
    overlap = None
    if windows:
        overlap = (reader.varint("overlap", MOST_SIDE), reader.varint("overlap", MOST_SIDE))
    return Header(model, tokenizer, fingerprint, bound, grid, added, short, overlap)


def _archive(reader: _Reader, header: Header, flags: int) -> Archive:
    source = reader.text("source")
    number = reader.varint("number of images", MOST_IMAGES)
    index = (_read_dense if flags & _IS_DENSE else _read_index)(reader, number, bool(flags & _HAS_CLASS))
    names = tuple(reader.text("name") for _ in range(number)) if flags & _HAS_NAMES else None
    end = reader.position
    require_format(
        reader.number("checksum of the index") == zlib.crc32(reader.data[:end]), "The file's index is damaged."
    )
    require_format(
        sum(length for _, length, _ in index) == reader.left,
        f"The file's images have {sum(length for _, length, _ in index)} bytes by its index, and {reader.left} are "
        "there.",
    )
    for _, length, _ in index:
        _check_size(header, length)
    entries = tuple(Entry(label, crc, reader.take(length, "payload")) for label, length, crc in index)
    return Archive(header, source, entries, names)


def _require_room(number: int, bits: int, reader: _Reader) -> None:
    require_format(
        bits * number <= 8 * reader.left,
        f"The file says that it holds {number} images and has {reader.left} bytes for them.",
    )


def _read_index(reader: _Reader, number: int, labelled: bool) -> list[tuple[int | None, int, int]]:
    """Class, length and checksum of each image, in whole bytes, as earlier writers wrote them."""
    _require_room(number, 8 + _CHECKSUM_BITS, reader)
    index = []
    for _ in range(number):
        label = reader.varint("class", MOST_CLASS) - 1 if labelled else -1
        length = reader.varint("length", len(reader.data))
        index.append((None if label < 0 else label, length, reader.number("checksum")))
    return index


def _read_dense(reader: _Reader, number: int, labelled: bool) -> list[tuple[int | None, int, int]]:
    """What `_index` wrote."""
    of_class = reader.byte("bits of a class") if labelled else 0
    shortest, of_length = reader.varint("length", len(reader.data)), reader.byte("bits of a length")
    require_format(
        of_class <= (MOST_CLASS + 1).bit_length() and of_length <= _CHECKSUM_BITS,
        f"The file says that a class has {of_class} bits, and a length {of_length}.",
    )
    widths = (of_class, of_length, _CHECKSUM_BITS)
    _require_room(number, sum(widths), reader)
    size = -(-number * sum(widths) // 8)
    bits = np.unpackbits(np.frombuffer(reader.take(size, "index"), np.uint8))
    require_format(not bits[number * sum(widths) :].any(), "The file's index is damaged.")
    rows, columns, start = bits[: number * sum(widths)].reshape(number, sum(widths)), [], 0
    for width in widths:
        columns.append((rows[:, start : start + width] @ (1 << np.arange(width, dtype=np.int64)[::-1])).tolist())
        start += width
    return [(one - 1 if one else None, shortest + more, crc) for one, more, crc in zip(*columns, strict=True)]


def _check_size(header: Header, payload: int) -> None:
    codes = header.grid[0] * header.grid[1]
    require_format(
        codes <= _CODES_A_BYTE * (payload + 1),
        f"The file says that {payload} bytes hold {codes} codes, which no model reaches.",
    )


def varint(number: int) -> bytes:
    """A number of at least 0 in groups of 7 bits, the lowest first; the highest bit of a byte says that more follow."""
    groups = []
    while number >= 128:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return varint(len(encoded)) + encoded


def require_format(condition: bool, what: str, remedy: str = "Get the file again: it is cut off or damaged.") -> None:
    if not condition:
        raise FileFormatError(what, remedy)


class _Reader:
    """Reads bytes from the front, and refuses what is not there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, number: int, what: str) -> bytes:
        require_format(number <= self.left, f"The file ends within its {what}.")
        self.position += number
        return self.data[self.position - number : self.position]

    def rest(self) -> bytes:
        return self.take(self.left, "payload")

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def number(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "big")

    def varint(self, what: str, most: int) -> int:
        value = 0
        for place in range(_LONGEST_VARINT):
            byte = self.byte(what)
            value |= (byte & 127) << 7 * place
            if byte < 128:
                require_format(byte or not place, f"The file's {what} is written in more bytes than it needs.")
                require_format(value <= most, f"The file's {what} is {value}: at most {most} is possible.")
                return value
        raise FileFormatError(f"The file's {what} has no end.", "Get the file again: it is cut off or damaged.")

    def text(self, what: str) -> str:
        data = self.take(self.varint(f"length of the {what}", len(self.data)), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"The file's {what} is not UTF-8.", "Get the file again: it is cut off or damaged."
            ) from error


__all__ = ["Archive", "Entry", "FileFormatError", "Header", "checksum", "is_short", "pack", "pack_archive", "unpack"]

"""What was understood of a source, in lines for people: shown before anything is computed from it."""

from __future__ import annotations

from collections.abc import Iterable

from codegrid.pipelines.data.labels import numeric_order_note
from codegrid.pipelines.data.records import ImageSource, ImageStream, Understood

_MOST_CLASSES, _MOST_NAMES = 12, 8
_HEIF = 'pip install "codegrid[heif]" reads them'
_REMEDIES = {
    ".heic": _HEIF,
    ".heif": _HEIF,
    ".hif": _HEIF,
    ".npy": "arrays are pictures where there are no others: give them a folder of their own",
    ".npz": "save each array as .npy",
    ".mat": "save each array as .npy",
    ".psd": "convert them to PNG",
    ".svg": "convert them to PNG",
    ".jxl": "convert them to PNG",
    ".dng": "develop them to PNG or TIFF",
    ".txt": "captions and notes are no labels",
    ".zip": "unpack them",
    ".gz": "unpack them",
}


def describe_source(source: ImageStream) -> list[str]:
    """Lines that say which pictures and labels are read, and what there is beside them that is not."""
    understood = source.understood
    if understood is None:
        return [f"{source.description}."]
    lines = [f"{source.description}.", f"Read as: {understood.kind}, {_splits(understood)}."]
    if isinstance(source, ImageSource) and source.indices is not None:
        lines.append(f"Of these: {len(source):,}.")
    lines.append(_labels(source, understood))
    if understood.pictures:
        left = f"; not taken: {_listed(understood.pictures_left)}" if understood.pictures_left else ""
        lines.append(f"Pictures: {understood.pictures}{left}.")
    if understood.others:
        lines.append(f"Not read beside them: {_listed(understood.others)}.")
    if note := numeric_order_note(source.class_names):
        lines.append(note)
    if understood.unread:
        lines.append(f"Files that are not read: {_listed(map(_unread, *zip(*_by_count(understood), strict=True)))}.")
    if understood.links:
        lines.append(f"Links that are left out: {understood.links:,} (--data.follow-links reads them).")
    lines += [f"{note[0].upper()}{note[1:]}." for note in understood.notes]
    return lines


def describe_reading(source: ImageStream) -> str:
    """The lines of `describe_source` behind the description, each indented and ended: for an announcement."""
    return "".join(f"  {line}\n" for line in describe_source(source)[1:])


def describe_channels(channels: int) -> str:
    """A line, indented and ended, on what the channels of a picture are; "" for grey and colour."""
    if channels in (1, 3):
        return ""
    arrays = f"arrays [H, W, {channels}] in .npy files, .tif files of {channels} samples or pages"
    pictures = "pictures as red, green, blue and alpha; " if channels == 4 else ""
    return f"  Channels: {channels}, of {pictures}{arrays}. Pictures for people show the first three.\n"


def _splits(understood: Understood) -> str:
    parts = [
        name + ("" if count is None else f" {count:,}") + (" (this one)" if name == understood.split else "")
        for name, count in understood.splits.items()
    ]
    return f"split{'s' if len(parts) > 1 else ''} {_listed(parts)}"


def _labels(source: ImageStream, understood: Understood) -> str:
    names, counts = source.class_names, understood.class_counts
    if not names:
        return "Labels: none." if not understood.labels else f"Labels: {understood.labels}, of unknown classes."
    shown = [f"{number} {name}" for number, name in enumerate(names)]
    if counts:
        shown = [f"{text} ({count:,})" for text, count in zip(shown, counts, strict=True)]
    empty = sum(not count for count in counts or ())
    unknown = _unlabelled(understood)
    more = f"; {empty:,} classes without a picture" if empty else ""
    more += f"; {unknown:,} pictures without a label" if unknown else ""
    return f"Labels: {understood.labels}, {len(names):,} classes: {_listed(shown, _MOST_CLASSES)}{more}."


def _unlabelled(understood: Understood) -> int:
    total = understood.splits.get(understood.split)
    return 0 if total is None or understood.class_counts is None else total - sum(understood.class_counts)


def _by_count(understood: Understood) -> list[tuple[str, int]]:
    return sorted(understood.unread.items(), key=lambda entry: (-entry[1], entry[0]))


def _unread(suffix: str, count: int) -> str:
    remedy = f" ({_REMEDIES[suffix]})" if suffix in _REMEDIES else ""
    return f"{count:,} {suffix}{remedy}"


def _listed(parts: Iterable[str], most: int = _MOST_NAMES) -> str:
    parts = list(parts)
    return ", ".join(parts[:most]) + (f" and {len(parts) - most:,} more" if len(parts) > most else "")

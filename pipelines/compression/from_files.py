"""`codegrid decompress` and `codegrid codec-info`: compressed files on disk -> pictures, and what a file says."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from codegrid.errors import MissingFileError, require
from codegrid.names import encodable, shown
from codegrid.pipelines.codec.file_format import Archive, FileFormatError, unpack
from codegrid.pipelines.compression.codec import ImageCodec
from codegrid.pipelines.compression.imported_codes import write_codes
from codegrid.pipelines.compression.to_files import ARCHIVE_SUFFIX, AT_ONCE, SUFFIX, plain_name
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import OutputError, write_atomically, write_json
from codegrid.tokenizer.images import to_pil

MADE_FROM_NAME = "decompressed.json"


def decompress(files: str, pipeline: str, output_dir: str, batch_size: int = AT_ONCE) -> Path:
    """Write the pictures of compressed files as PNG, or imported codes as codes.npy, whose rows have the axes of the
    source. The same command again goes on after a stop.

    decompressed.json beside the pictures says of which files and by which decoder they were made.

    Args:
        files: a file (.cgc), an archive (.cga), or a folder of them.
        pipeline: the pipeline with which they were compressed, folder or Hub name.
        output_dir: folder for the pictures, named after the files or as the archive says.
        batch_size: pictures decoded at once.

    Raises:
        MissingFileError: there are no such files.
        FileFormatError: a file is damaged, or was written with another pipeline; no picture is made up.
        LoadingError: the pipeline cannot be loaded.
        OutputError: the folder holds pictures of these names from other files, or by another decoder.
    """
    require(batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    paths = _found(Path(files))
    codec = ImageCodec.from_pretrained(pipeline)
    codec.pipe.to(make_accelerator().device)
    folder = Path(output_dir)
    contents = [path.read_bytes() for path in paths]
    archives = [(path, _unpacked(path, data)) for path, data in zip(paths, contents, strict=True)]
    if codec.is_of_codes:
        return write_codes(codec, archives, folder)
    named = [[folder / name for name in _picture_names(path, archive)] for path, archive in archives]
    sources = {encodable(path.name): data for path, data in zip(paths, contents, strict=True)}
    record = _made_from(folder, sources, named, codec.pictures.tokenizer.fingerprint())
    bar = tqdm(total=sum(len(archive.entries) for _, archive in archives), unit="image", dynamic_ncols=True)
    for (path, archive), targets in zip(archives, named, strict=True):
        missing = [place for place, target in enumerate(targets) if not target.is_file()]
        bar.update(len(targets) - len(missing))
        for first in range(0, len(missing), batch_size):
            places = missing[first : first + batch_size]
            with _naming(path):
                images = to_pil(codec.decoded(archive, places))
            if record:  # before the first picture, and not before one could be read
                write_json(folder / MADE_FROM_NAME, record)
                record = {}
            for place, image in zip(places, images, strict=True):
                write_atomically(targets[place], lambda aside, image=image: image.save(aside, format="PNG"))
            bar.update(len(places))
    bar.close()
    print(f"{bar.n} pictures are in {folder}.")
    return folder


def _made_from(
    folder: Path, sources: dict[str, bytes], named: list[list[Path]], decoder: str
) -> dict[str, dict[str, str]]:
    """The record of what the pictures are made from; empty if the folder has it. Those that are there already must have
    been made from the same.

    Args:
        sources: the files' contents by their names.
        named: the pictures of each file.
        decoder: the tokenizer's fingerprint. Tokenizers with other decoders read the same files (`codes_fingerprint`).
    """
    before = _read_record(folder / MADE_FROM_NAME)
    now = {name: {"sha256": hashlib.sha256(data).hexdigest(), "decoder": decoder} for name, data in sources.items()}
    for (name, made_from), targets in zip(now.items(), named, strict=True):
        there = next((target for target in targets if target.is_file()), None)
        known = before.get(name)
        if there is None or known == made_from:
            continue
        why = f"and no {MADE_FROM_NAME} beside it says what it was made from"
        if known:
            same = known["sha256"] == made_from["sha256"]
            why = "made by another decoder" if same else f"made from another file than this {shown(name)}"
        raise OutputError(
            f"{shown(there)} is there already, {why}.", "Choose another --output-dir, or delete the pictures."
        )
    found = {**before, **now}
    return found if found != before else {}


def _read_record(path: Path) -> dict[str, dict[str, str]]:
    """The record of `_made_from` by the names of the files; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: {key: made_from[key] for key in ("sha256", "decoder")} for name, made_from in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _unpacked(path: Path, data: bytes) -> Archive:
    """What the file `path` of these bytes holds; an error names the file."""
    with _naming(path):
        return unpack(data)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Context in which an error about what a file holds names the file: a folder may hold thousands."""
    try:
        yield
    except FileFormatError as error:
        what = error.what.rstrip(".")
        raise FileFormatError(f"{shown(path)} cannot be read ({what}).", error.remedy) from error


def codec_info(file: str) -> None:
    """Say what a compressed file holds, without a pipeline.

    Args:
        file: a file (.cgc) or an archive (.cga).

    Raises:
        MissingFileError, FileFormatError: there is no such file, or it is damaged.
    """
    path = Path(file)
    if not path.is_file():
        raise MissingFileError(f"{path} is no file.", "Give a compressed file (.cgc) or an archive (.cga).")
    data = path.read_bytes()
    archive = _unpacked(path, data)
    header, payload = archive.header, sum(len(entry.payload) for entry in archive.entries)
    number = len(archive.entries)
    # A file of the pipeline's own shape does not say what its codes are of.
    one, several = (
        ("image", "images") if header.added is not None else ("image, or row of imported codes", "images, or of rows")
    )
    what = f"one {one}" if archive.is_single else f"an archive of {number:,} {several}"
    print(f"{path}: {len(data):,} bytes, {what}.")
    if archive.source:
        print(f"Pipeline: {shown(archive.source)}.")
    size = "as the pipeline's are" if header.added is None else "of the picture's own size"
    windows = "" if header.overlap is None else ", window by window"
    print(f"Grid: {header.grid[0]} x {header.grid[1]} codes, {size}. Model: {header.model}{windows}.")
    own = header.model_fingerprint.hex() or "-"
    print(f"Fingerprints begin with: tokenizer (or source of the codes) {header.tokenizer.hex()}, model {own}.")
    if header.bound is not None:
        print(f"It is read where logits differ from the writer's by at most 2^-{header.bound}.")
    labels = sorted({entry.label for entry in archive.entries if entry.label is not None})
    if labels:
        print(f"Classes (ids): {', '.join(map(str, labels[:20]))}{' ...' if len(labels) > 20 else ''}.")
    codes = number * header.grid[0] * header.grid[1]
    print(f"Codes take {payload:,} bytes, {8 * payload / max(1, codes):.3f} bits a position of the grid.")


def _picture_names(path: Path, archive: Archive) -> list[str]:
    """File names of an archive's pictures: nothing that the file says reaches a path without a check."""
    if archive.is_single:
        return [f"{path.stem}.png"]
    names = archive.names or [""] * len(archive.entries)
    return [
        f"{path.stem}-{index:06d}{'-' if name else ''}{name}.png" for index, name in enumerate(map(plain_name, names))
    ]


def _found(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*") if p.suffix in (SUFFIX, ARCHIVE_SUFFIX)) if path.is_dir() else []
    if not found:
        raise MissingFileError(
            f"{path} is no compressed file and no folder of them ({SUFFIX}, {ARCHIVE_SUFFIX}).",
            "codegrid compress writes them.",
        )
    return found

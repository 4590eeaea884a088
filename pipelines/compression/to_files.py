"""`codegrid compress`: pictures -> compressed files on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from codegrid.errors import require
from codegrid.names import encodable, for_file, shown
from codegrid.pipelines.codec.file_format import Archive, pack, pack_archive, unpack
from codegrid.pipelines.codec.prior import BOUND
from codegrid.pipelines.compression.codec import ImageCodec, ModelName
from codegrid.pipelines.compression.imported_codes import Opened, opened_codes
from codegrid.pipelines.data.batches import prepared_batches
from codegrid.pipelines.data.records import DataConfig, DataError, ImageRecord, ImageSource, ImageStream
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.pipelines.generation.to_folder import SETTINGS_NAME, claim_images
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.pipelines.system.files import write_atomically
from codegrid.tokenizer.images import BadImage, to_model

SUFFIX, ARCHIVE_SUFFIX = ".cgc", ".cga"
AT_ONCE = 64  # images
_LONGEST_NAME = 160  # bytes of a picture's own name in a file's name
_SKIPPED_SHOWN = 5


@dataclass(frozen=True)
class _Settings:
    """What files of pictures depend on."""

    codec: ImageCodec
    model: ModelName
    bound: int
    classes: dict[int, int] | None  # from the data's labels to the pipeline's
    whole: bool


def compress(
    pipeline: str,
    data: DataConfig,
    output_dir: str | None = None,
    archive: str | None = None,
    model: ModelName = "prior",
    names: bool = False,
    bound: int = BOUND,
    batch_size: int = AT_ONCE,
    whole: bool = False,
) -> Path:
    """Compress pictures to files of codes: one file a picture, or one archive of all.

    The same command again goes on after a stop. What a file keeps of a picture is what the tokenizer sees: the picture
    upright and cut as in training, in sRGB, transparency over white. EXIF, other frames and the original size are gone.

    Args:
        pipeline: folder or Hub name. Whoever reads the files needs the same pipeline. Of imported codes the prior's
            folder.
        data: the pictures; data.source may be one picture's file. Of imported codes, a code data set or what
            `codegrid import-codes` reads, in rows of the prior's shape.
        output_dir: folder for a file a picture.
        archive: one file for all pictures, instead of output_dir: a few bytes smaller for each.
        model: probabilities of the codes. "prior": the transformer's, the smallest files, and the slowest. "context":
            those of neighbouring codes, if the pipeline was made with --context. "fixed": the same for every code.
        names: keep the pictures' names in the archive.
        bound: of "prior": a machine reads the files if its logits differ from this one's by at most 2^-bound.
        batch_size: pictures encoded at once.
        whole: keep each picture's own size: nothing is cut or scaled. For a file a picture. "prior" codes grids larger
            than it was trained on window by window; pictures with fewer codes a side are left out.

    Raises:
        DataError: the pictures cannot be read as configured, or none could be used.
        LoadingError: the pipeline cannot be loaded.
        OutputError: the folder holds something else.
        CodegridError: a number is out of its range, or the pipeline lacks the model.
    """
    require(
        (output_dir is None) != (archive is None),
        "Where to is not clear: give either an output_dir or an archive.",
        "Give --output-dir OUT for a file a picture, or --archive FILE for one file of all.",
    )
    require(batch_size >= 1, f"batch_size is {batch_size}.", "Give at least 1.")
    require(
        not whole or archive is None,
        "whole is set, with an archive: the pictures of an archive have one size.",
        "Give --output-dir for a file a picture.",
    )
    codec = ImageCodec.from_pretrained(pipeline)
    codec.pipe.to(make_accelerator().device)
    codec.model(model, bound)
    require(
        not (codec.is_of_codes and whole), "whole keeps a picture's size, and these are codes.", "Leave --whole out."
    )
    records, total, known, identity = (opened_codes if codec.is_of_codes else _opened)(data, codec)
    settings = _Settings(codec, model, bound, _classes(codec, known), whole)
    claim = {"pipeline": codec.fingerprints, "model": model, "bound": bound, "source_fingerprint": identity}
    claim |= {"whole": True} if whole else {}
    parts = Path(archive).with_name(f".{Path(archive).name}.parts") if archive else Path(output_dir or "")
    claim_images(parts, claim)
    if not codec.is_of_codes:
        print(_say_kept(codec, whole))
    skipped: dict[str, str] = {}
    bar = tqdm(total=total, unit="row" if codec.is_of_codes else "image", dynamic_ncols=True)
    write = _write_part if archive else _write_each
    for first, chunk in _chunks(records, batch_size):
        write(settings, parts, first, chunk, skipped)
        bar.update(len(chunk))
    bar.close()
    _say_skipped(skipped)
    _check_any(parts, data)
    if archive is None:
        return _said(codec, parts, [*parts.glob(f"*{SUFFIX}")])
    _join(parts, Path(archive), codec.source, names)
    return _said(codec, Path(archive), [Path(archive)])


def _opened(data: DataConfig, codec: ImageCodec) -> Opened:
    """The pictures, their number, their classes, and what tells them from others."""
    path = Path(data.source)
    if path.is_file() and path.suffix.lower() not in (".parquet", ".tar"):
        state = path.stat()
        return [ImageRecord(path, None, path.name)], 1, None, f"{path.name} {state.st_size} {state.st_mtime_ns}"
    source: ImageStream = open_images(data)
    print("\n".join(describe_source(source)))
    total = len(source) if isinstance(source, ImageSource) else None
    return source, total, source.class_names, source.fingerprint


def _classes(codec: ImageCodec, names: tuple[str, ...] | None) -> dict[int, int] | None:
    """From the data's labels to the pipeline's by name; None where one of them has no classes."""
    own = codec.pipe.sequence.class_names
    if own is None or names is None:
        return None
    unknown = [name for name in names if name not in own]
    if unknown:
        print(f"Without classes: the pipeline does not know {', '.join(map(shown, unknown[:8]))}.")
        return None
    print("The classes of the pictures are kept, and used for their probabilities.")
    return {index: own.index(name) for index, name in enumerate(names)}


def _chunks(records: Iterable[ImageRecord], size: int) -> Iterator[tuple[int, list[ImageRecord]]]:
    first, chunk = 0, []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield first, chunk
            first, chunk = first + size, []
    if chunk:
        yield first, chunk


def _write_each(
    settings: _Settings, folder: Path, first: int, records: list[ImageRecord], skipped: dict[str, str]
) -> None:
    paths = {r.source_id: folder / _file_name(first + index, r.source_id) for index, r in enumerate(records)}
    missing = [record for record in records if not paths[record.source_id].is_file()]
    for name, archive in _compressed(settings, missing, skipped) if missing else ():
        blob = pack(archive.header, archive.entries[0])
        write_atomically(paths[name], lambda aside, blob=blob: aside.write_bytes(blob))


def _write_part(
    settings: _Settings, folder: Path, first: int, records: list[ImageRecord], skipped: dict[str, str]
) -> None:
    path = folder / f"{first:09d}{ARCHIVE_SUFFIX}"
    if path.is_file():
        kept = set(unpack(path.read_bytes()).names or ())
        skipped.update({r.source_id: "in an earlier try" for r in records if encodable(r.source_id) not in kept})
        return
    made = list(_compressed(settings, records, skipped))
    if made:
        names = tuple(encodable(name) for name, _ in made)
        entries = tuple(archive.entries[0] for _, archive in made)
        blob = pack_archive(Archive(made[0][1].header, "", entries, names))
        write_atomically(path, lambda aside: aside.write_bytes(blob))


def _compressed(
    settings: _Settings, records: list[ImageRecord], skipped: dict[str, str]
) -> Iterator[tuple[str, Archive]]:
    """The name of each picture that could be used, and its compressed form."""
    codec, classes = settings.codec, settings.classes
    if settings.whole:
        yield from _compressed_whole(settings, records, skipped)
        return
    for used, codes in _encoded(codec, records, skipped):
        labels = None
        if classes is not None and all(record.label is not None for record in used):
            labels = [classes[record.label] for record in used]
        blobs = codec.compress_codes(codes, labels, settings.model, settings.bound)
        for record, blob in zip(used, blobs, strict=True):
            yield record.source_id, unpack(blob)


def _encoded(
    codec: ImageCodec, records: list[ImageRecord], skipped: dict[str, str]
) -> Iterator[tuple[list[ImageRecord], torch.Tensor]]:
    """Those that could be used, and their codes, in batches."""
    if codec.is_of_codes:
        yield records, torch.from_numpy(np.stack([record.data for record in records]))
        return
    tokenizer = codec.pictures.tokenizer
    for batch in prepared_batches(tokenizer, records, max(1, len(records))):
        skipped.update(batch.skipped)
        if not batch.records:
            continue
        with evaluating(tokenizer), torch.inference_mode():
            codes = tokenizer.encode(to_model(batch.pixels).to(tokenizer.device)).cpu()
        yield batch.records, codes


def _compressed_whole(
    settings: _Settings, records: list[ImageRecord], skipped: dict[str, str]
) -> Iterator[tuple[str, Archive]]:
    """As `_compressed`, each picture in its own size."""
    codec, classes = settings.codec, settings.classes or {}
    for record in records:
        label = classes.get(-1 if record.label is None else record.label)
        try:
            (blob,) = codec.compress(record.data, label, settings.model, settings.bound, whole=True)
        except (BadImage, FileNotFoundError) as error:
            skipped[record.source_id] = str(error)
            continue
        yield record.source_id, unpack(blob)


def _join(parts: Path, path: Path, source: str, keep_names: bool) -> None:
    """One archive of all parts; the parts go when it is there."""
    read = [unpack(part.read_bytes()) for part in sorted(parts.glob(f"*{ARCHIVE_SUFFIX}"))]
    entries = tuple(entry for part in read for entry in part.entries)
    names = tuple(name for part in read for name in part.names or ()) if keep_names else None
    blob = pack_archive(Archive(read[0].header, source, entries, names))
    write_atomically(path, lambda aside: aside.write_bytes(blob))
    shutil.rmtree(parts)


def plain_name(name: str) -> str:
    """A picture's name in a file's: its end, with the suffix."""
    return for_file(encodable(name), _LONGEST_NAME, ".-", last=True).strip("_.")


def _file_name(index: int, source_id: str) -> str:
    return f"{index:06d}-{plain_name(source_id)}{SUFFIX}"


def _say_kept(codec: ImageCodec, whole: bool) -> str:
    height, width = codec.pictures.tokenizer.config.preprocessing_config.size
    if whole:
        return (
            "Pictures are turned upright and keep their size, with transparency over white; EXIF and further frames "
            "are not kept."
        )
    return (
        f"Pictures are turned upright and cut to {width}x{height} pixels, with transparency over white; EXIF, further "
        "frames and their own sizes are not kept (--whole keeps the size)."
    )


def _say_skipped(skipped: dict[str, str]) -> None:
    if skipped:
        shown_names = "; ".join(f"{shown(name)} ({why})" for name, why in [*skipped.items()][:_SKIPPED_SHOWN])
        more = f" and {len(skipped) - _SKIPPED_SHOWN} more" if len(skipped) > _SKIPPED_SHOWN else ""
        print(f"{len(skipped)} pictures are left out: {shown_names}{more}.")


def _check_any(folder: Path, data: DataConfig) -> None:
    """Refuse a source without a usable picture, and leave no claim of a folder that holds nothing else."""
    if any(file.suffix in (SUFFIX, ARCHIVE_SUFFIX) for file in folder.iterdir()):
        return
    if [file.name for file in folder.iterdir()] == [SETTINGS_NAME]:
        shutil.rmtree(folder)
    raise DataError(f"None of the pictures of {shown(data.source)} could be used.", "The reasons stand above.")


def _said(codec: ImageCodec, result: Path, files: list[Path]) -> Path:
    size = sum(file.stat().st_size for file in files)
    number = len(files) if result.is_dir() else len(unpack(result.read_bytes()).entries)
    what = "rows of codes" if codec.is_of_codes else "pictures"
    print(f"{number:,} {what} take {size:,} bytes, {size / number:.1f} each, in {result}.")
    return result

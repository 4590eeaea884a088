"""Decides the work of a tokenization: everything, the rest of an earlier run, or only the new images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from codegrid.names import shown
from codegrid.pipelines.codes.shards import changed_since, is_done, read_records, remove_shard, renew_mark, source_ids
from codegrid.pipelines.data.records import ImageSource, ImageStream
from codegrid.pipelines.system.console import resumable
from codegrid.pipelines.system.files import OutputError, lock_folder, remove_leftovers, said_twice, write_json
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.prior.codes import MANIFEST_NAME

_PLAN_NAME = ".plan.json"
_LONGEST = 60  # characters of a value in a message
# Entries that may differ after images were added to a folder, or the folder was moved or copied. All others decide an
# image's codes. The place alone, and the times of files, decide nothing: what the images are is compared.
_GROWS = {"source", "source_fingerprint", "names"}
_PLACE = {"source"}


@dataclass(frozen=True)
class Job:
    """Args:
    images: the images of this round: all of them, unless images were added.
    first_shard: number of the shard that holds the first of these images.
    shards: the unfinished shards, for all ranks together; None if the number of images is unknown (streams).
    finished: whether nothing is left to do.
    """

    images: ImageStream
    first_shard: int
    shards: list[int] | None
    finished: bool


@contextmanager
def claimed(folder: Path, plan: dict[str, Any], images: ImageStream, accelerator: Accelerator) -> Iterator[Job]:
    """Claim the folder for this job, or check that it belongs to it already. The main process decides for all ranks.

    Args:
        plan: everything that the rows depend on, with `images_per_shard`, as JSON.

    Raises:
        OutputError: the folder holds something else, or another process is working there.
    """
    lock: IO[str] | None = None
    box: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            lock, box[0] = _decide(folder, json.loads(json.dumps(plan)), images)
        except OutputError as error:
            box[0] = error
        except OSError as error:
            box[0] = OutputError(*said_twice(error))
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(box)
    if isinstance(box[0], OutputError):
        raise box[0]
    first_shard, remaining, shards, finished = box[0]
    part = images if remaining is None else images.subset(remaining, "new")
    try:
        with resumable():
            yield Job(part, first_shard, shards, finished)
    finally:
        if lock is not None:
            lock.close()


def _decide(folder: Path, plan: dict[str, Any], images: ImageStream) -> tuple[IO[str] | None, tuple]:
    """(lock, (first shard, images of this round or None for all, unfinished shards or None, finished))."""
    path = folder / _PLAN_NAME
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if before is not None:
        before.setdefault("condition", None)  # older plans have none
    if before is None and (folder.exists() and (not folder.is_dir() or any(map(_visible, folder.iterdir())))):
        there = what_it_holds(folder) if folder.is_dir() else "a file"
        raise OutputError(
            f"{shown(folder)} is not empty and holds no code data set, but {there}.", "Choose another --output-dir."
        )
    different = [] if before is None else [name for name in plan if name in before and before[name] != plan[name]]
    if set(different) - _GROWS and not _has_codes(folder):
        tqdm.write(f"{shown(folder)} was claimed by a command that made no codes: this one takes its place.")
        before, different = None, []
    if before is not None and set(different) - _GROWS:
        raise _other_job(folder, before, plan, different)
    manifest = folder / MANIFEST_NAME
    if before is not None and not set(different) - _PLACE and manifest.is_file():
        made_of = json.loads(manifest.read_text(encoding="utf-8")).get("source_fingerprint")
        if made_of == plan["source_fingerprint"] and all(is_done(folder, shard) for shard in read_records(folder)):
            return None, (0, None, [], True)
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, "tokenizing")
    try:
        remove_leftovers(folder, folder / "data", folder / ".shards")
        if before is None:
            before = {**plan, "first_shard": 0}
            write_json(path, before)
        elif set(different) - _PLACE:
            first = _after_growth(folder, images, before, plan, different)
            before = {**plan, "first_shard": first}
            write_json(path, before)
        elif different:
            before = {**plan, "first_shard": before.get("first_shard", 0)}
            write_json(path, before)
        return lock, _rest(folder, images, before.get("first_shard", 0), plan["images_per_shard"])
    except BaseException:
        lock.close()
        raise


def _has_codes(folder: Path) -> bool:
    return bool(read_records(folder)) or any((folder / "data").glob("codes-*")) or (folder / MANIFEST_NAME).exists()


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _other_job(
    folder: Path, before: dict[str, Any], plan: dict[str, Any], different: list[str], detail: str = ""
) -> OutputError:
    was = "; ".join(f"{name} was {_short(before[name])}, is {_short(plan[name])}" for name in different)
    return OutputError(
        f"{shown(folder)} holds codes of another job (different: {', '.join(different)}){detail}: {was}.",
        "Choose another --output-dir, or pass what the codes were made of.",
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _after_growth(
    folder: Path, images: ImageStream, before: dict[str, Any], plan: dict[str, Any], different: list[str]
) -> int:
    """Check that images were only added or copied, drop unfinished shards, and return the first new shard's number."""
    records = read_records(folder)
    done = {shard: record for shard, record in records.items() if is_done(folder, shard)}
    accepted: list[tuple[int, dict[str, Any], ImageSource]] = []
    for shard, record in done.items():
        if not isinstance(images, ImageSource) or changed_since(folder, shard, record, images):
            detail = f"; images can only be added, and shard {shard} was made of files that are not there"
            raise _other_job(folder, before, plan, different, detail)
        accepted.append((shard, record, images))
    for each in accepted:
        renew_mark(folder, *each)
    if plan.get("names") is not None and plan["names"] == before.get("names"):  # copies of the same files
        return before.get("first_shard", 0)
    written = {int(path.stem.rpartition("-")[2]) for path in (folder / "data").glob("codes-*.parquet")}
    for shard in (set(records) | written) - set(done):
        remove_shard(folder, shard)
    return max(done, default=-1) + 1


def _rest(folder: Path, images: ImageStream, first_shard: int, images_per_shard: int) -> tuple:
    if not isinstance(images, ImageSource):
        return first_shard, None, None, False
    remaining, total = None, len(images)
    if first_shard:
        earlier = read_records(folder)
        known: set[str] = set()
        for shard in (shard for shard in earlier if shard < first_shard):
            if not is_done(folder, shard):
                raise OutputError(
                    f"Shard {shard} of {folder} is damaged, and images were added since it was made.",
                    "Choose another --output-dir to make all codes anew.",
                )
            known.update(source_ids(folder, shard, earlier[shard]))
        names = images.names()
        remaining = np.array([index for index, name in enumerate(names) if name not in known], dtype=np.int64)
        total = len(remaining)
    shards = range(first_shard, first_shard + math.ceil(total / images_per_shard))
    return first_shard, remaining, [shard for shard in shards if not is_done(folder, shard)], False

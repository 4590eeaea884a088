"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from codegrid.errors import CodegridError
from codegrid.names import encodable, shown
from codegrid.pipelines.system.machine import take_lock

LOCK_NAME = ".lock"  # of `lock_folder`, inside the folder
# Advice for a full disk or a read-only folder: finished work is never lost.
GO_ON = "Free disk space or make the folder writable, then run the same command again: it goes on where it stopped."

# Errors of file systems that do not support the call (Lustre without -o flock, some NFS and FUSE mounts).
_UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_WITHOUT_LOCKS: set[int] = set()  # devices for which the missing locks were reported already
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class OutputError(CodegridError):
    """The output folder cannot be used, or the disk is full. The message says what to do."""


def said_twice(error: Exception) -> tuple[str, str]:
    """(what is wrong, remedy): the two sentences of our errors; of a system call's error, its file and what to do."""
    if isinstance(error, CodegridError):
        return error.what, error.remedy
    if not isinstance(error, OSError) or error.errno is None:
        return str(error), ""
    name = "" if error.filename is None else f"{shown(os.fsdecode(error.filename))}: "
    advice = GO_ON if error.errno in _FULL else "Check the path, then run the same command again."
    return f"{name}{error.strerror}.", advice


def describe(error: Exception) -> str:
    """The error's message; of a system call's error, its file and what to do."""
    return " ".join(filter(None, said_twice(error)))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it to `path`."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
            fsync(aside)
            os.replace(aside, path)
            fsync(path.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"Could not write {shown(path)}: {error.strerror or error}.", GO_ON) from error


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if encodable(text) != text:  # a path that is not UTF-8 must survive the round trip
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda aside: aside.write_text(encodable(text), encoding="utf-8") and None)


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt":  # Windows cannot open folders, and flushes only files that are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _UNKNOWN:
            raise
        # Several FUSE mounts cannot flush folders. Files are still written whole.
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def replace_folder(aside: Path, target: Path) -> None:
    """Rename the finished folder `aside` to `target`. An older `target` is deleted only afterwards."""
    for file in aside.rglob("*"):
        fsync(file)
    fsync(aside)
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(target, old)
        os.rename(aside, target)
        shutil.rmtree(old)
    else:
        os.rename(aside, target)
    fsync(target.parent)


def lock_folder(folder: Path, doing: str) -> IO[str]:
    """Lock `folder` for this process. Keep the returned file open; closing it, or the process's death, unlocks.

    If the file system has no locks, this prints a warning once and continues: nothing then keeps a second process out.

    Args:
        doing: what the process that holds the lock is doing, for the message.

    Raises:
        OutputError: another process holds the lock.
    """
    lock = (folder / LOCK_NAME).open("w")
    try:
        take_lock(lock)
    except OSError as error:
        if error.errno not in _HELD:
            _say_that_there_are_no_locks(folder, error.strerror)
            return lock
        lock.close()
        raise OutputError(
            f"Another process is {doing} in {shown(folder)}.", "Wait for it, or choose another --output-dir."
        ) from error
    return lock


def _say_that_there_are_no_locks(folder: Path, reason: str | None) -> None:
    device = folder.stat().st_dev
    if device not in _WITHOUT_LOCKS:
        print(
            f"The file system of {shown(folder)} has no locks ({reason}): see to it that no second process writes "
            "there.",
            file=sys.stderr,
        )
    _WITHOUT_LOCKS.add(device)


def remove_leftovers(*folders: Path) -> None:
    """Remove temporary files that killed processes left. Only for folders that this process has locked."""
    for folder in folders:
        for path in folder.glob(".*"):
            if path.name.endswith(".tmp"):
                path.unlink(missing_ok=True)
            elif path.name.startswith(".tmp-"):
                shutil.rmtree(path, ignore_errors=True)

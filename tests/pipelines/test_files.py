"""Files and folders on file systems that know less than a local disk's."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest

from codegrid.pipelines.system import files
from codegrid.pipelines.system.files import OutputError, lock_folder, write_text


def fail(number: int):
    def call(*args):
        raise OSError(number, os.strerror(number))

    return call


def fail_for_folders(number: int):
    fsync = os.fsync
    return lambda descriptor: (fail(number) if stat.S_ISDIR(os.fstat(descriptor).st_mode) else fsync)(descriptor)


@pytest.fixture(autouse=True)
def nothing_was_said():
    files._WITHOUT_LOCKS.clear()


def test_a_folder_that_another_process_has_locked_is_refused(tmp_path):
    lock = lock_folder(tmp_path, "training")
    with pytest.raises(OutputError, match="Another process is training in"):
        lock_folder(tmp_path, "training")
    lock.close()
    lock_folder(tmp_path, "training").close()


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_what_a_held_lock_answers(number, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fail(number))
    with pytest.raises(OutputError, match="Another process is training in"):
        lock_folder(tmp_path, "training")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_says_so_once_and_goes_on(number, tmp_path, monkeypatch, capsys):
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(fcntl, "flock", fail(number))
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        lock_folder(folder, "training").close()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"The file system of {tmp_path} has no locks ({os.strerror(number)})" in line


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_folders_that_cannot_be_flushed_are_written_to(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_for_folders(number))
    write_text(tmp_path / "file.txt", "whole")
    assert (tmp_path / "file.txt").read_text() == "whole"


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    with pytest.raises(OutputError, match=r"Could not write .*file\.txt"):
        write_text(tmp_path / "file.txt", "whole")


def test_a_folder_on_a_broken_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_for_folders(errno.EIO))
    with pytest.raises(OutputError, match="Could not write"):
        write_text(tmp_path / "file.txt", "whole")

"""Row "where it runs": in threads, and on systems that lack modules of POSIX."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import tokenizer_run, write_pictures

from codegrid.pipelines.system import machine
from codegrid.pipelines.system.files import OutputError, lock_folder
from codegrid.pipelines.training.tokenizer.train import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
POSIX = ("fcntl", "resource", "pwd", "grp", "termios", "syslog")


def test_every_module_imports_without_what_only_posix_has():
    """Our modules alone: a library may use what its own system has."""
    code = f"""
import builtins, importlib
from pathlib import Path
real = builtins.__import__
def refusing(name, globals=None, locals=None, fromlist=(), level=0):
    if name.partition(".")[0] in {POSIX} and (globals or {{}}).get("__name__", "").startswith("codegrid"):
        raise ImportError(name + " is not there")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = refusing
names = []
for folder in ("tokenizer", "prior", "pipelines"):
    for path in sorted(Path(folder).rglob("*.py")):
        parts = path.with_suffix("").parts
        if path.name == "__main__.py" or parts[:2] == ("pipelines", "codegrid"):
            continue
        names.append(".".join(("codegrid", *(parts[:-1] if parts[-1] == "__init__" else parts))))
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
from codegrid.pipelines.system import machine
assert machine.fcntl is None and machine.resource is None
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 100


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def a_thread(call) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def a_pool(call) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def a_thread_of_a_thread(call) -> None:
    a_thread(lambda: a_pool(call))


PLACES = [a_thread, a_pool, a_thread_of_a_thread]


@pytest.mark.parametrize("place", [*PLACES, 4])
def test_training_in_a_thread_says_that_signals_are_not_its_own(place, pictures, tmp_path, capsys):
    place = random.Random(place).choice(PLACES) if isinstance(place, int) else place
    place(lambda: train_tokenizer(tokenizer_run(tmp_path / "thread", pictures)))
    assert capsys.readouterr().out.count("not in the main thread and does not listen for Ctrl-C") == 1, place
    train_tokenizer(tokenizer_run(tmp_path / "main", pictures))
    assert "main thread" not in capsys.readouterr().out
    assert (tmp_path / "thread" / "model.safetensors").read_bytes() == (
        tmp_path / "main" / "model.safetensors"
    ).read_bytes()


def test_locks_are_windows_own_or_their_lack_is_said(tmp_path, monkeypatch, capsys):
    held = []

    def locking(descriptor: int, mode: int, number: int) -> None:
        if held:
            raise PermissionError(13, "Permission denied")
        held.append(descriptor)

    monkeypatch.setattr(machine, "fcntl", None)
    monkeypatch.setattr(machine, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    lock_folder(tmp_path, "training")
    with pytest.raises(OutputError, match="Another process is training"):
        lock_folder(tmp_path, "training")
    monkeypatch.setattr(machine, "msvcrt", None)
    lock_folder(tmp_path, "training").close()
    assert "has no locks" in capsys.readouterr().err


@pytest.mark.parametrize(("platform", "factor"), [("darwin", 1), ("linux", 1024)])
def test_peak_memory_is_in_bytes(platform, factor, monkeypatch):
    """getrusage(2) counts bytes on macOS and kibibytes on Linux."""
    monkeypatch.setattr(sys, "platform", platform)
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3_000))
    monkeypatch.setattr(machine, "resource", usage)
    assert machine.peak_memory() == 3_000 * factor
    monkeypatch.setattr(machine, "resource", None)
    assert 10**7 < machine.peak_memory() < 10**11  # what psutil says

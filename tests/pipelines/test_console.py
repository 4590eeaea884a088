"""How a command ends: with a sentence and a status."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakSet

import pytest
from tqdm import tqdm

from codegrid.errors import CodegridError, MissingFileError
from codegrid.pipelines.data.batches import AugmentationConfig, AugmentedImages
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.workers import load
from codegrid.pipelines.system.console import guarded, resumable
from codegrid.tokenizer import Preprocessing


def ends(capsys, run, status: int = 1) -> str:
    with pytest.raises(SystemExit) as end:
        guarded(run)
    assert end.value.code == status
    return capsys.readouterr().err


def raising(error: Exception):
    def run() -> None:
        raise error

    return run


def test_errors_of_the_disk_say_what_to_do(capsys):
    said = ends(capsys, raising(OSError(errno.ENOSPC, "No space left on device", "/data/x")))
    assert "/data/x" in said
    assert "Free disk space or make the folder writable, then run the same command again" in said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed.", "A process that loads images was killed."),
        ("[/pytorch/third_party/gloo/gloo/x.cc:5] Connection closed by peer", "Another process of this job has died"),
    ],
)
def test_dead_processes_are_named(capsys, text, sentence):
    assert f"error: {sentence}" in ends(capsys, raising(RuntimeError(text)))


def test_a_defect_shows_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(raising(RuntimeError("shapes cannot be multiplied")))


def test_a_librarys_errors_are_defects_and_ours_are_sentences(capsys):
    """torch, numpy and datasets raise ValueErrors and OSErrors for what no user can mend."""
    for error in (ValueError("operands could not be broadcast"), OSError("no file descriptor")):
        with pytest.raises(type(error), match=str(error)):
            guarded(raising(error))
    for error in (CodegridError("x is 3.", "Set it to 2."), MissingFileError("There is no x: make it.")):
        assert f"error: {error}" in ends(capsys, raising(error))
    assert str(CodegridError("x is 3.", "Set it to 2.")) == "x is 3. Set it to 2."


def test_our_errors_survive_a_process(tmp_path):
    error = pickle.loads(pickle.dumps(CodegridError("x is 3.", "Set it to 2.")))
    assert (type(error), str(error)) == (CodegridError, "x is 3. Set it to 2.")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_their_status(capsys, number, status):
    """What it says holds: only some commands can be gone on with."""
    before = signal.getsignal(number)
    assert ends(capsys, lambda: os.kill(os.getpid(), number), status) == "Stopped.\n"
    assert signal.getsignal(number) is before

    def job() -> None:
        with resumable("The outer one goes on."), resumable():
            os.kill(os.getpid(), number)

    assert ends(capsys, job, status) == "Stopped. Run the same command to go on.\n"


def test_a_stop_is_said_on_a_line_of_its_own(capsys, monkeypatch):
    # A bar that an error in another test left open would push this one down a line.
    monkeypatch.setattr(tqdm, "_instances", WeakSet())

    def job() -> None:
        bar = tqdm(total=9, mininterval=0)
        bar.update()
        with resumable():
            os.kill(os.getpid(), signal.SIGINT)

    assert "Stopped. Run the same command to go on." in re.split(r"[\r\n]+", ends(capsys, job, 130))


def test_a_thread_leaves_signals_to_the_main_one(capsys):
    with ThreadPoolExecutor(1) as threads:
        threads.submit(guarded, lambda: print("done")).result()
        with pytest.raises(SystemExit) as end:
            threads.submit(guarded, raising(CodegridError("x is 3.", "Set it to 2."))).result()
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: x is 3. Set it to 2.\n"


def test_an_error_in_a_loading_process_is_the_one_that_was_raised(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    images = AugmentedImages(
        open_images(DataConfig(str(tmp_path))), Preprocessing(image_size=16), 3, AugmentationConfig(), seed=0
    )
    with pytest.raises(DataError) as error:
        next(load(images, 1, batch_sampler=[[(0, 0)]]))
    assert str(error.value).startswith("1 images in a row could not be used; the last: ")
    assert "Check data.source and preprocessing" in error.value.remedy


def test_an_error_line_has_no_marks_that_turn_the_terminal(capfd):
    def run() -> None:
        raise CodegridError("The class a\u202egnp\x1b[2J is unknown.", "Name\nanother.")

    with pytest.raises(SystemExit):
        guarded(run)
    assert capfd.readouterr().err.rstrip("\r\n") == "error: The class a\\u202egnp\\x1b[2J is unknown. Name another."

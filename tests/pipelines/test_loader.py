"""Worker processes: which signals reach them, and that they never outlive the one that started them."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.data.workers import load

# The first iterator starts multiprocessing's tracker; of the second one a batch is taken, and it is kept to the end.
SCRIPT = """
import multiprocessing
from pathlib import Path

from codegrid.pipelines.data.workers import load


def blocked():
    (worker,) = multiprocessing.active_children()
    return Path(f"/proc/{worker.pid}/status").read_text().partition("SigBlk:")[2].split()[0]


if __name__ == "__main__":
    print(multiprocessing.active_children())
    for index in range(2):
        batches = load(range(100), 1, batch_size=4)
        next(batches)
        print(blocked())
        if index == 0:
            batches.close()
            print(multiprocessing.active_children())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the signal masks in /proc")
def test_workers_take_no_signals_and_end_with_their_iterator_or_the_process(tmp_path):
    script = tmp_path / "keeps.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,  # it would wait for its worker for ever
    )
    assert done.returncode == 0, done.stderr
    before, first, between, second = done.stdout.split()
    assert before == between == "[]"
    signals = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM))
    assert int(first, 16) & signals == int(second, 16) & signals == signals
    assert "Traceback" not in done.stderr


# A module of its own, because the worker imports it.
FAILING = """
from codegrid.pipelines.data.records import DataError


class Failing:
    message = "The server said: codegrid.DataError: gone. Also DataError: try again"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise DataError(self.message)
        return index
"""


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("options", [{"batch_size": None}, {"batch_size": 2}], ids=["single", "batches"])
def test_an_error_comes_as_it_was_raised(num_workers, options, tmp_path, monkeypatch):
    """Also one that quotes another error."""
    (tmp_path / "failing_samples.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    dataset = importlib.import_module("failing_samples").Failing()
    batches = load(dataset, num_workers, **options)
    assert torch.as_tensor(next(batches)).flatten().tolist() == list(range(options["batch_size"] or 1))
    with pytest.raises(DataError) as caught:
        list(batches)
    assert type(caught.value) is DataError
    assert str(caught.value) == dataset.message


# Its batches are tensors, whose memory is asked for from the worker that made them.
KILLED = """
import multiprocessing
import os
import signal

from codegrid.pipelines.data.workers import load

if __name__ == "__main__":
    batches = load(range(100_000), 2, batch_size=4)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    try:
        for _ in batches:
            pass
    except RuntimeError as error:
        print(error)
"""


def test_a_killed_worker_is_named(tmp_path):
    """`console` makes a sentence of "DataLoader worker"."""
    script = tmp_path / "kills.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "DataLoader worker" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every worker is a new interpreter")
def test_workers_are_forked_from_one_process_that_has_imported_the_libraries(tmp_path):
    script = tmp_path / "parents.py"
    script.write_text(PARENTS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    parents = done.stdout.split()
    assert len(parents) == 4
    assert len(set(parents)) == 1
    assert done.stderr == ""


PARENTS = """
import multiprocessing
import os
from pathlib import Path

from codegrid.pipelines.data.workers import load

if __name__ == "__main__":
    for _ in range(2):
        batches = load(range(100), 2, batch_size=4)
        next(batches)
        for worker in multiprocessing.active_children():
            print(Path(f"/proc/{worker.pid}/status").read_text().partition("PPid:")[2].split()[0])
        batches.close()
"""

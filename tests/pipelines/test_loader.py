"""Worker processes: which signals reach them, and that they never outlive the one that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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

"""Memory that is kept for the next step, and how threads wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from codegrid.pipelines.commands import threads

FAULTS = """
import resource, sys
import numpy as np
from codegrid.pipelines.system.machine import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
pages = []
for turn in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [np.ones(3 * 2**20) for _ in range(5)]  # of 24 MiB; glibc learns by itself to keep two
    del maps
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(told, min(pages[1:]))
"""


def pages_a_turn(way: str, **environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, way]
    told, pages = subprocess.check_output(command, env={**clean, **environment}, text=True).split()
    return told == "True", int(pages)


@pytest.mark.skipif("glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc's")
def test_what_is_freed_is_kept_for_the_next_step_unless_the_user_says_otherwise():
    assert pages_a_turn("plain")[1] > 1000
    told, pages = pages_a_turn("keep")
    assert told
    assert pages < 100
    assert pages_a_turn("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] is False


@pytest.mark.parametrize(
    ("loaded", "environment", "expected"),
    [
        (False, {}, "1000"),
        (True, {}, None),  # too late
        (False, {"GOMP_SPINCOUNT": "7"}, "7"),
        (False, {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_awake_for_a_moment(monkeypatch, loaded, environment, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is taken back afterwards
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads.sys, "modules", {"torch": None} if loaded else {})
    threads.wait_awake_for_a_moment()
    assert os.environ.get("GOMP_SPINCOUNT") == expected

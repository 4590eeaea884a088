"""How torch's threads wait for each other; it is decided before torch is loaded."""

from __future__ import annotations

import os
import sys

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_awake_for_a_moment() -> None:
    """Let threads turn in a loop for some microseconds at a barrier, and then sleep.

    torch's threads (libgomp's) turn for milliseconds. Beside a busy process that takes the processor from the thread
    that all wait for, and steps take many times as long; sleeping at once costs a quiet machine a third
    (docs/experiments.md). What the user has set stays.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = "1000"

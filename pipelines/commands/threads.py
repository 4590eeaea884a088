"""How torch's threads wait for each other; it is decided before torch is loaded."""

from __future__ import annotations

import os
import sys

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep_beside_others() -> None:
    """Let threads sleep while they wait, if other processes compute on this machine now.

    torch's threads (libgomp's) turn in a loop at each barrier. Beside a busy process that takes the processor from the
    thread that all wait for, and steps take many times as long (docs/experiments.md). On a quiet machine the loop is
    the faster way, so nothing is set there, nor where the user has set how to wait.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SETTINGS):
        return
    try:
        busy = os.getloadavg()[0]  # processes that compute or wait to, mean of the last minute
    except (AttributeError, OSError):  # Windows has none
        return
    if busy >= 1:
        os.environ["OMP_WAIT_POLICY"] = "passive"

"""What differs between systems: locks of files, a process's memory, and who may listen for signals."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

import psutil

# POSIX has the first two, Windows the third.
try:
    import fcntl as _fcntl

    fcntl: Any = _fcntl
except ImportError:
    fcntl = None
try:
    import resource as _resource

    resource: Any = _resource
except ImportError:
    resource = None
try:
    import msvcrt as _msvcrt

    msvcrt: Any = _msvcrt
except ImportError:
    msvcrt = None


def take_lock(file: IO[str]) -> None:
    """Lock an open file for this process without waiting; closing the file unlocks it.

    Raises:
        OSError: another process holds it (EWOULDBLOCK, EAGAIN, EACCES), or there are no locks here (ENOSYS and others).
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def peak_memory() -> int:
    """The most bytes of RAM that this process has had so far; what it has now where the system does not keep that."""
    if resource is not None:
        # getrusage(2): kibibytes on Linux, bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)


def handle_signals(handler: Callable[[int, Any], None]) -> Callable[[], None] | None:
    """Let SIGTERM and Ctrl-C call `handler`.

    Returns:
        a function that brings the earlier handlers back; None in a thread other than the main one, where Python
        accepts no handlers and nothing has changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, earlier in before.items():
            signal.signal(number, earlier)

    return restore

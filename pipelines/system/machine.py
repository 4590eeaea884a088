"""What differs between systems: locks of files, a process's memory and threads, and who may listen for signals."""

from __future__ import annotations

import ctypes
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


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, up to pieces of 32 MiB, for the next step instead of giving it back.

    glibc asks the system for each large map anew, which fills it with zeros, page by page. Returns whether it was told:
    not where the C library is another one, or where the environment has its settings already.
    """
    by_user = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or by_user:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    # malloc.h: M_MMAP_THRESHOLD, of which 32 MiB is the most, and M_TRIM_THRESHOLD.
    return bool(mallopt(-3, 32 * 2**20) and mallopt(-1, 2**31 - 1))


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

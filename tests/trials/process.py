"""What this process holds: memory, files and threads; and forks of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

HANGS, POLL = 120.0, 0.005  # seconds that a fork may take, and between looks at it


def fork(work: Callable[[], int]) -> int:
    """A process that does it, prints nothing, and ends with what it returns. Threads of this one do not live in it."""
    process = os.fork()
    if process == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        try:
            os._exit(work())
        except BaseException:
            os._exit(1)
    return process


def finish(process: int) -> int:
    """Its exit code, once it has ended. Raises TimeoutError for one that hangs, and ends it."""
    for _ in range(int(HANGS / POLL)):  # not by the clock: a machine that stood still is no hang
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"a fork took more than {HANGS:.0f} s")


def resident_memory() -> int:
    """Bytes in memory now; Linux alone tells."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes that were in memory at once."""
    if sys.platform == "linux":
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def n_threads() -> int:
    """Of every kind, Python's and others."""
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()  # noqa: PTH208


def n_open_files() -> int:
    """File descriptors that are open; Linux alone tells."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208  the listing's own


def _status(key: str) -> int:
    if sys.platform != "linux":
        raise NotImplementedError("only Linux tells what is in memory now")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))

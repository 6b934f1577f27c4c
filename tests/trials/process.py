"""What this process holds: memory, files and threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


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

"""Move weights to huge pages, on Linux: every token reads all weights, and address translation of small pages costs."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

# In Linux 6.1 and later; earlier versions return EINVAL, and pages stay as they are.
_MADV_COLLAPSE = 25
_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# Smaller ranges are stacks, or weights that fit into the processor's caches.
LEAST = 16 << 20  # bytes
DELAY = 0.5  # seconds
"""Until pages are moved. A pass that runs meanwhile takes several times as long, so the first token comes before it."""
Range = tuple[int, int]
"""The first address, and the address past the end."""


def anonymous_ranges() -> list[Range]:
    """The writable memory of the process that is not of a file; empty on systems that do not list it."""
    if sys.platform != "linux":
        return []
    try:
        # Read as bytes: names of mapped files may not be UTF-8, and str.splitlines would split at some characters.
        lines = Path("/proc/self/maps").read_bytes().split(b"\n")
    except OSError:
        return []
    fields = (line.split(None, 5) for line in lines if line)
    return [_range(first) for first, access, _, _, inode, *_ in fields if access == b"rw-p" and inode == b"0"]


def _range(text: bytes) -> Range:
    begin, end = (int(address, 16) for address in text.split(b"-"))
    return begin, end


def collapse_what_is_new(since: list[Range]) -> threading.Thread | None:
    """Move memory that is not in `since` to huge pages, in a thread, after DELAY.

    Returns the thread; None if there are no huge pages, or no large new memory.
    """
    try:
        page = int(_PAGE_SIZE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    new = [(-(-begin // page) * page, end // page * page) for begin, end in _without(anonymous_ranges(), since)]
    large = [(begin, end) for begin, end in new if end - begin >= LEAST]
    if not large:
        return None
    thread = threading.Thread(target=_collapse, args=(large,), name="gpt2-edge huge pages", daemon=True)
    thread.start()
    return thread


def _without(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """The parts of `ranges` that no range of `others` covers."""
    left = list(ranges)
    for begin, end in others:
        cut = ((first, min(last, begin)) for first, last in left), ((max(first, end), last) for first, last in left)
        left = [(first, last) for part in cut for first, last in part if first < last]
    return left


def _collapse(ranges: Iterable[Range]) -> None:
    """Ask the system for huge pages. If it refuses, the memory stays on small pages."""
    time.sleep(DELAY)
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end in ranges:
        madvise(begin, end - begin, _MADV_COLLAPSE)

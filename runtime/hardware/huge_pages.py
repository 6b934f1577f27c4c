"""Weights on huge pages, on Linux: every token reads all of them, and looking up small pages takes part of its time."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

_MADV_COLLAPSE = 25  # Linux 6.1 and newer; others answer EINVAL, and pages stay as they are
_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
LEAST = 16 << 20  # smaller ranges are stacks, and weights that fit into caches
Range = tuple[int, int]  # addresses, the second one past the end


def anonymous_ranges() -> list[Range]:
    """What the process has mapped without a file and may write; nothing where the system does not tell."""
    if sys.platform != "linux":
        return []
    try:
        # bytes: names of mapped files need be no UTF-8, and may hold what str.splitlines takes for the end of a line
        lines = Path("/proc/self/maps").read_bytes().split(b"\n")
    except OSError:
        return []
    fields = (line.split(None, 5) for line in lines if line)
    return [_range(first) for first, access, _, _, inode, *_ in fields if access == b"rw-p" and inode == b"0"]


def _range(text: bytes) -> Range:
    begin, end = (int(address, 16) for address in text.split(b"-"))
    return begin, end


def collapse_what_is_new(since: list[Range]) -> threading.Thread | None:
    """Move what was mapped after `since` to huge pages, beside whatever the process does meanwhile.

    Returns the thread that does it; None where there are no huge pages, or nothing large is new.
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
    """The parts of ranges that no other covers."""
    left = list(ranges)
    for begin, end in others:
        cut = ((first, min(last, begin)) for first, last in left), ((max(first, end), last) for first, last in left)
        left = [(first, last) for part in cut for first, last in part if first < last]
    return left


def _collapse(ranges: Iterable[Range]) -> None:
    """A refusal changes nothing: the same memory stays on small pages."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end in ranges:
        madvise(begin, end - begin, _MADV_COLLAPSE)

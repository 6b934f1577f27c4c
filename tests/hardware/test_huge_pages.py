"""Weights move to huge pages where the system has them; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.hardware import huge_pages
from runtime.hardware.huge_pages import LEAST, Range

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: (r[0], r[0] + r[1])), max_size=6)


@given(ranges, ranges)
def test_what_is_new_is_what_nothing_covered_before(now: list[Range], before: list[Range]) -> None:
    def covered(parts: list[Range]) -> set[int]:
        return {address for begin, end in parts for address in range(begin, end)}

    new = huge_pages._without(now, before)
    assert covered(new) == covered(now) - covered(before)
    assert all(begin < end for begin, end in new)


@linux_only
@pytest.mark.parametrize("name", [b"caf\xe9", b"\x85 0-1 rw-p 0 0:0 0", b"two  spaces\x0b\x1c"])
def test_a_mapped_file_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(b"x" * mmap.PAGESIZE)
    before = huge_pages.anonymous_ranges()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert {begin for begin, _ in before} & {begin for begin, _ in huge_pages.anonymous_ranges()}


@linux_only
def test_new_memory_moves_to_huge_pages_and_keeps_what_it_holds() -> None:
    before = huge_pages.anonymous_ranges()
    with mmap.mmap(-1, 2 * LEAST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        pattern = bytes(range(256)) * 16
        memory[:] = pattern * (len(memory) // len(pattern))
        thread = huge_pages.collapse_what_is_new(before)
        if thread is None:
            pytest.skip("this kernel has no transparent huge pages")
        thread.join()
        exported = (ctypes.c_char * len(memory)).from_buffer(memory)
        n_huge = huge_kilobytes(ctypes.addressof(exported))
        del exported
        assert memory[:] == pattern * (len(memory) // len(pattern))
        if n_huge == 0:
            pytest.skip("this kernel does not move memory to huge pages when asked: it is older than 6.1")
        assert n_huge <= len(memory) // 1024


def huge_kilobytes(address: int) -> int:
    """Of the mapping that holds the address."""
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            found = begin <= address < end
        elif found and first == "AnonHugePages:":
            return int(line.split()[1])
    raise AssertionError(f"{address:x} is not mapped")


def test_small_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "anonymous_ranges", lambda: [(0, LEAST - 1)])
    assert huge_pages.collapse_what_is_new([]) is None


def test_nothing_happens_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert huge_pages.anonymous_ranges() == []
    monkeypatch.setattr(huge_pages, "_PAGE_SIZE", tmp_path / "missing")
    assert huge_pages.collapse_what_is_new([]) is None

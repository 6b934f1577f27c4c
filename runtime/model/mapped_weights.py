"""Move weights that onnxruntime reads from a mapped file into the memory of the process; Linux only.

onnxruntime maps the file of the weights. It rearranges most of them and unmaps the originals; the embedding and the
vectors stay mapped for the life of the session. A write to the file would then change the weights, and a truncation
would end the process with SIGBUS at the next access. So once a session is open, what is still mapped is replaced by
memory with the same content at the same addresses. It takes no more memory than the pages of the file did.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAP_FIXED = 0x10
_MADV_HUGEPAGE = 14
_MAPS = Path("/proc/self/maps")
# How much is replaced at a time: the pages of the file and their copy are in memory together.
_CHUNK = 4 << 20  # bytes
Range = tuple[int, int, int]
"""The first address of a mapping, the address past its end, and its offset in the file."""
Mappings = dict[int, list[Range]]
"""By file descriptor."""


def find(descriptors: Iterable[int]) -> Mappings:
    """The private mappings of these files in this process; none on systems that do not list them."""
    if sys.platform != "linux" or not _MAPS.exists():
        return {}
    return {descriptor: _mappings(descriptor) for descriptor in descriptors if os.fstat(descriptor).st_size}


def detach(descriptors: Iterable[int], before: Mappings) -> bool:
    """Replace the mappings of these files by memory of the same content; returns whether the system allows it.

    before: what `find` returned before the session was opened; these mappings belong to others and stay. The caller
    holds a lock for all sessions of the process, since nothing else may map or unmap these files meanwhile.
    Raises OSError if a file has become shorter.
    """
    if sys.platform != "linux" or not _MAPS.exists():
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for descriptor, places in find(descriptors).items():
        size = os.fstat(descriptor).st_size
        for begin, end, offset in places:
            if (begin, end, offset) in before.get(descriptor, ()):
                continue
            for at in range(begin, end, _CHUNK):
                length = min(_CHUNK, end - at)
                _replace(libc, at, length)
                # Huge pages are filled in half the time. Where the system has none, the memory stays on small ones.
                libc.madvise(at, length, _MADV_HUGEPAGE)
                _fill(descriptor, at, min(length, size - (offset + at - begin)), offset + at - begin)
    return True


def _mappings(descriptor: int) -> list[Range]:
    """The private mappings of a file: writing to their memory does not write to the file."""
    # On some file systems the list of mappings has another device and inode than fstat: a mapping of our own shows how
    # the list names the file.
    with mmap.mmap(descriptor, 1, access=mmap.ACCESS_COPY) as own:
        view = ctypes.c_char.from_buffer(own)
        own_address = ctypes.addressof(view)
        lines = list(_lines())
        name = next(key for (begin, end, _), key in lines if begin <= own_address < end)
        del view
    return [place for place, key in lines if key == name and not place[0] <= own_address < place[1]]


def _lines() -> Iterator[tuple[Range, tuple[bytes, bytes]]]:
    """The range, and device and inode, of each private mapping of a file."""
    # Read as bytes, since file names may not be UTF-8.
    for line in _MAPS.read_bytes().split(b"\n"):
        if not line:
            continue
        addresses, access, offset, device, inode, *_ = line.split(None, 5)
        if access.endswith(b"p") and inode != b"0":
            begin, end = (int(address, 16) for address in addresses.split(b"-"))
            yield (begin, end, int(offset, 16)), (device, inode)


def _replace(libc: ctypes.CDLL, address: int, length: int) -> None:
    """Replace a mapping by empty memory."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    if libc.mmap(address, length, protection, kind, -1, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _fill(descriptor: int, address: int, length: int, offset: int) -> None:
    """Read a part of the file to an address. Beyond the end of the file the memory stays zero, as in a mapping."""
    done = 0
    while done < length:
        target = (ctypes.c_char * (length - done)).from_address(address + done)
        n = os.preadv(descriptor, [target], offset + done)
        if n == 0:
            raise OSError("the file of the weights became shorter while it was read")
        done += n

"""What an ONNX file refers to, read without onnxruntime: the files of its weights, the domains of its operators.

onnxruntime reads weights from anywhere on the disk that the file names, until 1.23 at least; so this looks first.
Only the messages on the way to those two are parsed. A field that comes twice is merged by protobuf; here, each
occurrence counts.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import ModelFolderError

Span = tuple[int, int]  # begin and end of a message in the file
# message -> field number -> what the field holds (github.com/onnx/onnx, onnx.proto)
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_DEPTH = 100  # protobuf's own
_MAX_NUMBER = 2**31 - 1  # of a tag or a length, for every reader


@dataclasses.dataclass
class References:
    """What a graph refers to."""

    locations: set[str] = dataclasses.field(default_factory=set)  # of weights, as written
    domains: set[str] = dataclasses.field(default_factory=set)  # of operators


def read_references(path: Path) -> References:
    """Walk through an ONNX file. Raises ValueError, naming it, for one that is none."""
    found = References()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(data, (0, len(data)), "model", found, _MAX_DEPTH)
    except (IndexError, UnicodeDecodeError, ValueError) as error:  # mmap: an empty file
        raise ModelFolderError(f"{path} is damaged, or no ONNX file: {error}") from None
    return found


def _walk(data: mmap.mmap, span: Span, message: str, found: References, depth: int) -> None:
    if not depth:
        raise ValueError(f"its graphs are nested more than {_MAX_DEPTH} deep")
    fields, keys, values = _FIELDS[message], set[bytes](), set[str]()
    for number, begin, end in _length_delimited(data, span):
        inner = fields.get(number)
        if inner in _FIELDS:
            _walk(data, (begin, end), inner, found, depth - 1)
        elif inner == "key":
            keys.add(data[begin:end])
        elif inner == "value":
            values.add(data[begin:end].decode("utf-8"))
        elif inner == "domain":
            found.domains.add(data[begin:end].decode("utf-8"))
    if b"location" in keys:
        found.locations |= values or {""}  # a value that is not written is empty


def _length_delimited(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of a message that is bytes, text or a message; others are stepped over."""
    at, stop = span
    while at < stop:
        begin = at
        tag, at = _number(data, at)
        kind = tag & 7
        if tag < 8:
            raise ValueError(f"byte {begin} begins a field without a number")
        if kind == _BYTES:
            length, at = _number(data, at)
            yield tag >> 3, at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"byte {at - 1} begins no field")
        if at > stop:
            raise ValueError(f"a field ends at byte {at}, what holds it at {stop}")


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A tag or a length, written as short as it can be, and where it ends.

    Of longer ones protobuf's readers keep what they have bits for, each another part.
    """
    value, end = _varint(data, at)
    if end - at != max(1, -(-value.bit_length() // 7)) or value > _MAX_NUMBER:
        raise ValueError(f"byte {at} begins a number that is too large, or longer than it needs to be")
    return value, end


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"byte {at} is within a number of more than ten bytes")

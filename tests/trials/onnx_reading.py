"""Our reading of ONNX files beside protobuf's: `python -m tests.trials.onnx_reading --count 50000`.

A graph that has weights and operators wherever ONNX can have them is changed, byte by byte and field by field. What
protobuf still reads, by Python's reader or by the one in C++ that onnx and onnxruntime share, ours has to refuse or to
read too: every place of weights and every domain of operators.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper
from runtime.model.onnx_scan import References, read_references

from tests.trials.table import Row, record

REFUSED, READ, NEITHER, BLIND = "refused by both or ours", "read alike", "read by ours alone", "missed"
WIRE_TYPES = 8


def main() -> int:
    """Print a row; returns 1 where ours missed something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="files (default: 50,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: 0)")
    given = parser.parse_args()
    counts, missed = try_changes(given.count, given.seed)
    happened = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in (READ, REFUSED, NEITHER, BLIND))
    print(happened)
    for data in missed[:10]:
        print(data.hex(), file=sys.stderr)
    record("onnx_reading", [Row("ONNX files changed at random, read by ours and by protobuf", given.count, happened)])
    return int(bool(missed))


def try_changes(count: int, seed: int) -> tuple[collections.Counter[str], list[bytes]]:
    """How often each thing happened, and the files of which ours missed something."""
    chance, whole = random.Random(seed), make_graph().SerializeToString()
    counts, missed = collections.Counter[str](), []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(count):
            data = change(whole, chance)
            outcome = compare(data, Path(place) / "model.onnx")
            counts[outcome] += 1
            if outcome == BLIND:
                missed.append(data)
    return counts, missed


def compare(data: bytes, path: Path) -> str:
    """What became of one file."""
    path.write_bytes(data)
    found: References | None = None
    with contextlib.suppress(ValueError):
        found = read_references(path)
    theirs = [references(message) for message in read_by_protobuf(data)]
    if found is None or not theirs:
        return REFUSED if found is None else NEITHER
    sees_all = all(one.locations <= found.locations and one.domains <= found.domains for one in theirs)
    return READ if sees_all else BLIND


def read_by_protobuf(data: bytes) -> Iterator[onnx.ModelProto]:
    """By each of its readers that takes the file."""
    with contextlib.suppress(DecodeError):
        yield onnx.ModelProto.FromString(data)
    # the checker and the passes of onnx are C++; this one reads a model and writes it again
    with contextlib.suppress(Exception):
        yield onnx.ModelProto.FromString(onnx.shape_inference.C.infer_shapes(data, False, False, False))


def references(message: Message) -> References:
    """All that a parsed message has, wherever it is."""
    found = References()
    _collect(message, found)
    return found


def _collect(message: Any, found: References) -> None:
    if isinstance(message, onnx.TensorProto):
        found.locations |= {entry.value for entry in message.external_data if entry.key == "location"}
    if isinstance(message, onnx.NodeProto) and message.HasField("domain"):
        found.domains.add(message.domain)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                _collect(one, found)


def make_graph() -> onnx.ModelProto:
    """Weights and operators in every place that ONNX has for them."""

    def tensor(location: str) -> TensorProto:
        made = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=location)
        made.external_data.add(key="offset", value="0")
        return made

    constant = helper.make_node("Constant", [], ["c"], value=tensor("node"), domain="d1")
    branch = helper.make_graph([constant], "branch", [], [], [tensor("branch")])
    condition = helper.make_node("If", ["x"], ["y"], then_branch=branch, domain="d2")
    lists = helper.make_node("L", [], ["l"], tensors=[tensor("list")], graphs=[branch], domain="d3")
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[1])
    graph = helper.make_graph([condition, lists], "g", [], [], [tensor("top")], sparse_initializer=[sparse])
    model = helper.make_model(graph)
    model.functions.add(name="f", domain="f").node.append(constant)
    model.training_info.add().initialization.CopyFrom(helper.make_graph([], "t", [], [], [tensor("training")]))
    return model


def change(data: bytes, chance: random.Random) -> bytes:
    """One to four changes."""
    for _ in range(chance.randint(1, 4)):
        data = chance.choice(CHANGES)(data, chance)
    return data


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(max(1, len(data)))
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def _insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 6)) + data[at:]


def _cut(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + chance.randint(1, 6) :]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    """The same fields once more: protobuf merges them."""
    begin = chance.randint(0, len(data))
    return data + data[begin : begin + chance.randint(1, len(data) + 1)]


def _add_field(data: bytes, chance: random.Random) -> bytes:
    """At the end, where a message may have any field: of any number and wire type."""
    number = chance.choice([chance.randint(0, 30), 2 ** chance.randint(0, 34)])
    payload = chance.choice([b"", chance.randbytes(4), chance.randbytes(8), varint(chance.getrandbits(64))])
    return data + varint(number << 3 | chance.randrange(WIRE_TYPES)) + payload


def _write_longer(data: bytes, chance: random.Random) -> bytes:
    """A byte that may be a tag or a length, as a number of more bytes than it needs, or with bits too high."""
    at = chance.randrange(max(1, len(data)))
    if not data or data[at] > 0x7F:
        return data
    n = chance.randint(1, 9)
    last = chance.choice([0, chance.randrange(0x80)])
    return data[:at] + bytes([data[at] | 0x80, *[0x80] * (n - 1), last]) + data[at + 1 :]


def _wrap(data: bytes, chance: random.Random) -> bytes:
    """All of it within a field, or a group that nobody knows, beside itself."""
    number = chance.randint(1, 40)
    group = varint(number << 3 | 3) + data + varint(number << 3 | 4)
    return data + chance.choice([group, varint(number << 3 | 2) + varint(len(data)) + data])


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


CHANGES = (_flip, _insert, _cut, _repeat, _add_field, _write_longer, _wrap)

if __name__ == "__main__":
    sys.exit(main())

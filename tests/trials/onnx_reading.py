"""Our reading of ONNX files beside protobuf's: `python -m tests.trials.onnx_reading --count 50000`.

A graph with everything that is read is changed, byte by byte and field by field. What protobuf still reads, by Python's
reader or by the one in C++ that onnx and onnxruntime share, ours has to refuse, or to read as the very same graph.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from runtime.graph.data import Attribute
from runtime.graph.reader import OnnxModel, Tensor, read_model
from tests.trials.table import Row, record

REFUSED, READ, NEITHER, BLIND = "refused by both or ours", "read alike", "read by ours alone", "read differently"
WIRE_TYPES = 8
Content = dict[str, str]
"""What a graph holds, by kind, written so that numbers that are none are equal, too."""


def main() -> int:
    """Print a row; returns 1 where ours read something else."""
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
    """How often each thing happened, and the files that ours read as something else."""
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
    found: Content | None = None
    with contextlib.suppress(ValueError):
        found = our_content(read_model(path))
    if found is None:
        return REFUSED
    theirs = list(read_by_protobuf(data))
    if not theirs:
        return NEITHER
    return READ if all(one.items() <= found.items() for one in theirs) else BLIND


def our_content(model: OnnxModel) -> Content:
    """Of a file as ours reads it."""
    nodes = [
        (
            *(node.operator, node.domain, node.name, node.inputs, node.outputs),
            [_told(one) for one in sorted(node.attributes, key=lambda one: repr(one.name))],
        )
        for node in model.nodes
    ]
    return {
        "header": repr(
            (model.ir_version, sorted(model.opsets.items(), key=repr), sorted(model.metadata.items(), key=repr))
        ),
        "nodes": repr(nodes),
        "constants": repr([_tensor(one) for one in model.constants.values()]),
        "inputs": repr([tuple(one) for one in model.inputs]),
        "outputs": repr([tuple(one) for one in model.outputs]),
        "others": repr([tuple(one) for one in model.others]),
    }


def _told(one: Attribute) -> tuple[object, ...]:
    return one.name, one.type, _tensor(one.value) if one.type == "tensor" else one.value


def _tensor(tensor: Tensor) -> tuple[object, ...]:
    place = None if tensor.place is None else tuple(tensor.place)
    return tensor.name, tensor.dtype, tensor.shape, place, tensor.value


def read_by_protobuf(data: bytes) -> Iterator[Content]:
    """By each of its readers that takes the file."""
    with contextlib.suppress(DecodeError):
        yield content(onnx.ModelProto.FromString(data))
    # the checker and the passes of onnx are C++; this one reads a model and writes it again
    with contextlib.suppress(Exception):
        again = content(onnx.ModelProto.FromString(onnx.shape_inference.C.infer_shapes(data, False, False, False)))
        # the pass adds shapes
        yield {kind: told for kind, told in again.items() if kind not in ("outputs", "others")}


def content(model: onnx.ModelProto) -> Content:
    """Of a parsed message, whatever it holds beside that."""
    graph = model.graph
    header = (
        model.ir_version,
        sorted(((one.domain, one.version) for one in model.opset_import), key=repr),
        sorted(((one.key, one.value) for one in model.metadata_props), key=repr),
    )
    return {
        "header": repr(header),
        "nodes": repr([_node(node) for node in graph.node]),
        "constants": repr([_tensor_proto(tensor) for tensor in graph.initializer]),
        **{
            kind: repr([_value(value) for value in values])
            for kind, values in (("inputs", graph.input), ("outputs", graph.output), ("others", graph.value_info))
        },
    }


def _node(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(node.attribute, key=lambda one: repr(one.name))
    told = [(one.name, *_attribute(one)) for one in attributes]
    return node.op_type, node.domain, node.name, tuple(node.input), tuple(node.output), told


def _attribute(one: onnx.AttributeProto) -> tuple[str, object]:
    fields: dict[int, tuple[str, Any]] = {
        one.FLOAT: ("float", one.f),
        one.INT: ("int", one.i),
        one.STRING: ("string", one.s),
        one.FLOATS: ("floats", tuple(one.floats)),
        one.INTS: ("ints", tuple(one.ints)),
        one.STRINGS: ("strings", tuple(one.strings)),
    }
    return ("tensor", _tensor_proto(one.t)) if one.type == one.TENSOR else fields.get(one.type, ("unknown", one.type))


def _tensor_proto(tensor: TensorProto) -> tuple[object, ...]:
    """With its bytes as onnx's own helper decodes them."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return tensor.name, tensor.data_type
    head = tensor.name, dtype.name, tuple(tensor.dims)
    try:
        if tensor.data_location == TensorProto.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            n_bytes = int(np.prod(tensor.dims, dtype=object)) * dtype.itemsize
            return *head, (told.get("location"), int(told.get("offset", 0)), int(told.get("length", n_bytes))), None
        return *head, None, numpy_helper.to_array(tensor).tobytes()
    except (TypeError, ValueError) as error:
        return *head, None, repr(error)


def _value(value: onnx.ValueInfoProto) -> tuple[object, ...]:
    tensor = value.type.tensor_type
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        return value.name, tensor.elem_type
    shape = tuple(map(_dimension, tensor.shape.dim)) if tensor.HasField("shape") else None
    return value.name, dtype, shape


def _dimension(one: onnx.TensorShapeProto.Dimension) -> int | str | None:
    kind = one.WhichOneof("value")
    found: int | str | None = None if kind is None else getattr(one, kind)
    return found


def make_graph() -> onnx.ModelProto:
    """Everything that ours reads: attributes and tensors of every kind."""

    def external(name: str, location: str) -> TensorProto:
        made = TensorProto(name=name, data_type=1, dims=[2, 300], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, "offset": "4096", "length": "2400"}.items():
            made.external_data.add(key=key, value=value)
        return made

    raw = numpy_helper.from_array(np.arange(3), "raw")
    constants = [external("w1", "here"), external("w2", "there"), raw, *_typed()]
    values = {"f": 0.5, "i": -3, "s": "text", "floats": [1.0, 2.0], "ints": [1, -2], "strings": ["a", "b"], "t": raw}
    # domains that onnx does not know: its pass leaves these nodes alone
    nodes = [
        helper.make_node("A", ["x", "", "w1"], ["a"], "first", domain="d1", **values),
        helper.make_node("B", ["a", "w2"], ["b", "c"], "second", domain="d2", axis=-1, scale=0.25),
    ]
    ends = [helper.make_tensor_value_info(name, 1, ["batch", 300, None]) for name in ("x", "y", "b")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:2], constants, value_info=ends[2:])
    opsets = [helper.make_opsetid(domain, 1) for domain in ("", "d1", "d2")]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, {"key": "value", "other": ""})
    return model


def _typed() -> Iterable[TensorProto]:
    """Numbers in fields of their own type."""
    yield helper.make_tensor("floats", TensorProto.FLOAT, [2], [1.5, -2.0])
    yield helper.make_tensor("int32", TensorProto.INT32, [2], [-1, 2**31 - 1])
    yield helper.make_tensor("int64", TensorProto.INT64, [2], [-1, 2**62])
    yield helper.make_tensor("int8", TensorProto.INT8, [2], [-128, 127])
    yield helper.make_tensor("uint8", TensorProto.UINT8, [], [255])
    yield helper.make_tensor("bool", TensorProto.BOOL, [2], [True, False])


def change(data: bytes, chance: random.Random) -> bytes:
    """One to four changes, mostly one: what is read after several has been hit nowhere that matters."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
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

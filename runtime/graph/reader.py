"""ONNX files read strictly, without onnx: whatever is not known to be harmless is refused.

protobuf's readers are lenient. They skip fields that they do not know, merge a message that comes twice, take the last
of a number that comes twice, and cut numbers that are too long. Two readers can so see two graphs in one file, and a
check of one says nothing about the other. Here every field must be known, of its own wire type, written as short as it
can be, and once unless it is repeated. Whatever passes, every protobuf reader reads alike.

The fields are those of onnx.proto (github.com/onnx/onnx, proto2). Packed lists are taken only where it says packed.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtime.graph.data import Attribute, Node

Bytes = bytes | mmap.mmap
Fields = dict[str, Any]
READ_AT_ONCE = 64 << 20  # bytes; only plain exports with their weights inside are larger, and are mapped
KEPT_BYTES = 1 << 16  # of a tensor; of larger ones only the length is kept

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_LENGTH = 2**31 - 1

# name, wire type or message, and "*" if repeated. Those without a type are refused by name.
_SCHEMA: dict[str, dict[int, str]] = {
    "Model": {
        1: "ir_version int64",
        2: "producer_name string",
        3: "producer_version string",
        4: "domain string",
        5: "model_version int64",
        6: "doc_string string",
        7: "graph Graph",
        8: "opset_import* Opset",
        14: "metadata_props* Entry",
        20: "training_info",
        25: "functions",
        26: "configuration",
    },
    "Graph": {
        1: "node* Node",
        2: "name string",
        5: "initializer* Tensor",
        10: "doc_string string",
        11: "input* ValueInfo",
        12: "output* ValueInfo",
        13: "value_info* ValueInfo",
        14: "quantization_annotation",
        15: "sparse_initializer",
        16: "metadata_props* Entry",
    },
    "Node": {
        1: "input* string",
        2: "output* string",
        3: "name string",
        4: "op_type string",
        5: "attribute* Attribute",
        6: "doc_string string",
        7: "domain string",
        8: "overload",
        9: "metadata_props* Entry",
        10: "device_configurations",
    },
    "Attribute": {
        1: "name string",
        2: "f float",
        3: "i int64",
        4: "s bytes",
        5: "t Tensor",
        6: "g",
        7: "floats* float",
        8: "ints* int64",
        9: "strings* bytes",
        10: "tensors",
        11: "graphs",
        13: "doc_string string",
        14: "tp",
        15: "type_protos",
        20: "type int32",
        21: "ref_attr_name",
        22: "sparse_tensor",
        23: "sparse_tensors",
    },
    "Tensor": {
        1: "dims* int64",
        2: "data_type int32",
        3: "segment",
        4: "float_data bytes",
        5: "int32_data bytes",
        6: "string_data",
        7: "int64_data bytes",
        8: "name string",
        9: "raw_data payload",
        10: "double_data",
        11: "uint64_data",
        12: "doc_string string",
        13: "external_data* Entry",
        14: "data_location int32",
        16: "metadata_props",
    },
    "Entry": {1: "key string", 2: "value string"},
    "Opset": {1: "domain string", 2: "version int64"},
    "ValueInfo": {1: "name string", 2: "type Type", 3: "doc_string string", 4: "metadata_props"},
    "Type": {
        1: "tensor_type TensorType",
        4: "sequence_type",
        5: "map_type",
        6: "denotation",
        7: "opaque_type",
        8: "sparse_tensor_type",
        9: "optional_type",
    },
    "TensorType": {1: "elem_type int32", 2: "shape Shape"},
    "Shape": {1: "dim* Dimension"},
    "Dimension": {1: "dim_value int64", 2: "dim_param string", 3: "denotation"},
}
_WIRE = {"int32": _VARINT, "int64": _VARINT, "float": _FIXED32}
# AttributeProto.AttributeType -> its name here, and the field that holds it
_ATTRIBUTES = {
    1: ("float", "f"),
    2: ("int", "i"),
    3: ("string", "s"),
    4: ("tensor", "t"),
    6: ("floats", "floats"),
    7: ("ints", "ints"),
    8: ("strings", "strings"),
}
_DEFAULTS: Fields = {"f": 0.0, "i": 0, "s": b"", "floats": (), "ints": (), "strings": ()}
# TensorProto.DataType -> numpy's name
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1, "float16": 2, "float64": 8}


class _Field(NamedTuple):
    name: str
    kind: str
    wire: int  # type
    is_repeated: bool
    table: dict[int, _Field] | None  # of the message that it holds


class Place(NamedTuple):
    """Where a tensor's bytes are."""

    location: str
    offset: int
    length: int


class Tensor(NamedTuple):
    """A constant in a file. Its bytes are as many as dtype and shape say."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]
    place: Place | None = None  # None: in the file itself
    value: bytes | None = None  # little-endian; None if they are elsewhere, or more than KEPT_BYTES


class Declared(NamedTuple):
    """An input, an output, or what is said of a value between them."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None  # None: not said


@dataclasses.dataclass
class OnnxModel:
    """An ONNX file, read."""

    path: Path
    ir_version: int
    opsets: dict[str, int]
    metadata: dict[str, str]
    nodes: list[Node]
    constants: dict[str, Tensor]
    inputs: list[Declared]
    outputs: list[Declared]
    others: list[Declared]  # value_info

    @property
    def locations(self) -> set[str]:
        """Files of weights, as written."""
        inside = (one.value for node in self.nodes for one in node.attributes if one.type == "tensor")
        tensors = (*self.constants.values(), *inside)
        return {tensor.place.location for tensor in tensors if tensor.place is not None}


def read_model(path: Path) -> OnnxModel:
    """Read an ONNX file. Raises ValueError, naming it, for one that is none, or holds what is not read here.

    >>> read_model(Path("models/demo-int8/model.onnx")).locations
    {'model.onnx_data'}
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size <= READ_AT_ONCE:
                return _Reader(file.read()).model(path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _Reader(mapped).model(path)
    except (IndexError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged, or no ONNX file that is read here: {error}") from None


class _Reader:
    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._attributes: dict[bytes, Attribute] = {}  # the same few come again in every layer

    def model(self, path: Path) -> OnnxModel:
        fields = self._message(0, len(self._data), _TABLES["Model"])
        if "graph" not in fields:
            raise ValueError("it has no graph")
        graph = fields["graph"]
        constants = [self._tensor(one) for one in graph.get("initializer", ())]
        return OnnxModel(
            path=path,
            ir_version=fields.get("ir_version", 0),
            opsets=_once(
                "opset", ((one.get("domain", ""), one.get("version", 0)) for one in _all(fields, "opset_import"))
            ),
            metadata=_once("metadata", map(_entry, _all(fields, "metadata_props"))),
            nodes=[self._node(one) for one in _all(graph, "node")],
            constants=_once("initializer", ((one.name, one) for one in constants)),
            inputs=[_declared(one) for one in _all(graph, "input")],
            outputs=[_declared(one) for one in _all(graph, "output")],
            others=[_declared(one) for one in _all(graph, "value_info")],
        )

    def _message(self, at: int, stop: int, table: dict[int, _Field]) -> Fields:
        """The fields of one message by name; lists for repeated ones."""
        data = self._data
        found: Fields = {}
        while at < stop:
            begin = at
            tag = data[at]
            at += 1
            if tag > 0x7F:
                tag, at = self._varint(begin)
            field = table.get(tag)
            if field is None:
                raise ValueError(_unknown(begin, tag, table))
            name, kind, wire, is_repeated, inner = field
            value: Any = data[at]
            at += 1
            if wire == _FIXED32:
                (value,) = struct.unpack("<f", data[at - 1 : at + 3])
                at += 3
            elif value > 0x7F:
                value, at = self._varint(at - 1)
            if wire == _BYTES:
                end = at + value
                if end > stop:
                    raise ValueError(f"byte {begin}: {name} ends at byte {end}, what holds it at {stop}")
                value = self._bytes(at, end, kind, inner)
                at = end
            elif kind != "float" and (value >= 1 << 31):
                value = _signed(value, kind, begin)
            if at > stop:
                raise ValueError(f"byte {begin}: {name} ends at byte {at}, what holds it at {stop}")
            if is_repeated:
                if name in found:
                    found[name].append(value)
                else:
                    found[name] = [value]
            elif name in found:
                raise ValueError(f"byte {begin}: {name} comes twice")
            else:
                found[name] = value
        return found

    def _bytes(self, begin: int, end: int, kind: str, table: dict[int, _Field] | None) -> Any:
        """What a field holds that has a length."""
        if kind == "string":
            return self._data[begin:end].decode("utf-8")
        if table is None:
            is_long = kind == "payload" and end - begin > KEPT_BYTES
            return (
                (end - begin, None if is_long else self._data[begin:end])
                if kind == "payload"
                else self._data[begin:end]
            )
        if kind == "Attribute":
            written = self._data[begin:end] if end - begin < 64 else b""
            if written not in self._attributes:
                made = self._attribute(self._message(begin, end, table))
                if not written:
                    return made
                self._attributes[written] = made
            return self._attributes[written]
        return self._message(begin, end, table)

    def _varint(self, at: int) -> tuple[int, int]:
        """A number without sign, written as short as it can be, and where it ends."""
        begin = at
        value = shift = 0
        while True:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ValueError(f"byte {begin} begins a number of more than ten bytes")
        if (byte == 0 and at > begin + 1) or value >= 1 << 64:
            raise ValueError(f"byte {begin} begins a number that is too large, or longer than it needs to be")
        return value, at

    def _node(self, fields: Fields) -> Node:
        attributes = fields.get("attribute", ())
        if len(attributes) > 1:
            attributes = sorted(attributes)
            _once("attribute", ((one.name, one) for one in attributes))
        return Node(
            fields.get("op_type", ""),
            tuple(fields.get("input", ())),
            tuple(fields.get("output", ())),
            fields.get("domain", ""),
            tuple(attributes),
            fields.get("name", ""),
        )

    def _attribute(self, fields: Fields) -> Attribute:
        name = fields.get("name", "")
        if fields.get("type") not in _ATTRIBUTES:
            raise ValueError(f"attribute {name!r} has type {fields.get('type')}, which is not read")
        kind, holder = _ATTRIBUTES[fields["type"]]
        if others := fields.keys() - {"name", "type", "doc_string", holder}:
            raise ValueError(f"attribute {name!r} of type {kind} has {min(others)}, too")
        if kind == "tensor":
            if holder not in fields:
                raise ValueError(f"attribute {name!r} has no tensor")
            return Attribute(name, kind, self._tensor(fields[holder]))
        value = fields.get(holder, _DEFAULTS[holder])
        return Attribute(name, kind, tuple(value) if isinstance(value, list) else value)

    def _tensor(self, fields: Fields) -> Tensor:
        name = fields.get("name", "")
        dtype = _dtype(name, fields.get("data_type", 0))
        shape = tuple(fields.get("dims", ()))
        n_items = 1
        for size in shape:
            if size < 0:
                raise ValueError(f"tensor {name!r} has a dimension of {size}")
            n_items *= size
        n_bytes = n_items * ITEM_BYTES[dtype]
        holders = fields.keys() & {"raw_data", "float_data", "int32_data", "int64_data", "external_data"}
        if fields.get("data_location", 0) not in (0, 1):
            raise ValueError(f"tensor {name!r} has data_location {fields['data_location']}")
        if len(holders) > 1 or (fields.get("data_location", 0) == 1) != (holders == {"external_data"}):
            raise ValueError(f"tensor {name!r} has its bytes in more than one place, or not where it says")
        if "external_data" in fields:
            return Tensor(name, dtype, shape, _place(name, fields["external_data"], n_bytes))
        length, value = _payload(name, dtype, fields)
        if length != n_bytes:
            raise ValueError(f"tensor {name!r} has {length} bytes; {dtype} of shape {list(shape)} has {n_bytes}")
        return Tensor(name, dtype, shape, None, value)


def _payload(name: str, dtype: str, fields: Fields) -> tuple[int, bytes | None]:
    """Number of bytes, and the bytes unless they are many, of a tensor that holds them itself."""
    if "raw_data" in fields:
        found: tuple[int, bytes | None] = fields["raw_data"]
        return found
    if "float_data" in fields and dtype == "float32":
        return len(fields["float_data"]), fields["float_data"]
    # protobuf stores small integers as varints
    if "int64_data" in fields and dtype == "int64":
        value = b"".join(number.to_bytes(8, "little", signed=True) for number in _packed(fields["int64_data"], "int64"))
        return len(value), value
    if "int32_data" in fields and dtype in ("int32", "int8", "uint8", "bool"):
        size = ITEM_BYTES[dtype]
        is_signed = dtype in ("int32", "int8")
        try:
            numbers = [
                number.to_bytes(size, "little", signed=is_signed) for number in _packed(fields["int32_data"], "int32")
            ]
        except OverflowError:
            raise ValueError(f"tensor {name!r} holds a number that is no {dtype}") from None
        return len(numbers) * size, b"".join(numbers)
    if fields.keys() & {"float_data", "int32_data", "int64_data"}:
        raise ValueError(f"tensor {name!r} of {dtype} has its numbers in the field of another type")
    return 0, b""


def _packed(written: bytes, kind: str) -> Iterator[int]:
    """The numbers of a packed list."""
    reader = _Reader(written)
    at = 0
    while at < len(written):
        begin = at
        value, at = reader._varint(at)
        if value >= 1 << 31:
            value = _signed(value, kind, begin)
        yield value


def _place(name: str, entries: list[Fields], n_bytes: int) -> Place:
    """Where external data lies. Raises ValueError for other keys, and for numbers that are none."""
    found = _once("entry", map(_entry, entries))
    if not {"location"} <= found.keys() <= {"location", "offset", "length", "checksum"}:
        raise ValueError(f"tensor {name!r} says {sorted(found)} of its bytes")
    numbers = {"offset": "0", "length": str(n_bytes)} | {
        key: found[key] for key in ("offset", "length") if key in found
    }
    for key, number in numbers.items():
        # of other digits than these, readers differ
        if not (number.isascii() and number.isdigit() and len(number) <= 18 and number == str(int(number))):
            raise ValueError(f"tensor {name!r} has {key} {number!r}")
    if int(numbers["length"]) != n_bytes:
        raise ValueError(
            f"tensor {name!r} has {numbers['length']} bytes in {found['location']!r}; its shape has {n_bytes}"
        )
    return Place(found["location"], int(numbers["offset"]), n_bytes)


def _declared(fields: Fields) -> Declared:
    name = fields.get("name", "")
    if "tensor_type" not in fields.get("type", {}):
        raise ValueError(f"value {name!r} is not said to be a tensor")
    tensor = fields["type"]["tensor_type"]
    shape = None
    if "shape" in tensor:
        shape = tuple(_dimension(name, one) for one in _all(tensor["shape"], "dim"))
    return Declared(name, _dtype(name, tensor.get("elem_type", 0)), shape)


def _dimension(name: str, fields: Fields) -> int | str | None:
    if len(fields) > 1:
        raise ValueError(f"value {name!r} has a dimension with a number and a name")
    for value in fields.values():
        found: int | str = value
        return found
    return None


def _dtype(name: str, data_type: int) -> str:
    if data_type not in DTYPES:
        raise ValueError(f"{name!r} has data type {data_type}; {', '.join(DTYPES.values())} are read")
    return DTYPES[data_type]


def _entry(fields: Fields) -> tuple[str, str]:
    return fields.get("key", ""), fields.get("value", "")


def _all(fields: Fields, name: str) -> list[Fields]:
    found: list[Fields] = fields.get(name, [])
    return found


def _once(what: str, pairs: Any) -> dict[str, Any]:
    """A dictionary of pairs. Raises ValueError for a key that comes twice."""
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{what} {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return found


def _signed(value: int, kind: str, at: int) -> int:
    """A varint of 64 bits as the number with a sign that it stands for."""
    value -= (value >> 63) << 64
    if kind == "int32" and not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"byte {at}: a number passes 32 bits")
    return value


def _unknown(at: int, tag: int, table: dict[int, _Field]) -> str:
    """The message for a field that is not read."""
    number, wire = tag >> 3, tag & 7
    for message, known in _TABLES.items():
        if known is table and number in _SCHEMA[message]:
            name, _, kind = _SCHEMA[message][number].partition(" ")
            if not kind:
                return f"byte {at}: a {message.lower()} with {name}, which is not read here"
            return f"byte {at}: {name.rstrip('*')} of a {message.lower()} has wire type {wire}"
    return f"byte {at} begins a field of number {number} and wire type {wire}, which is not known"


def _tables() -> dict[str, dict[int, _Field]]:
    """Message -> tag -> field."""
    tables: dict[str, dict[int, _Field]] = {message: {} for message in _SCHEMA}
    for message, fields in _SCHEMA.items():
        for number, written in fields.items():
            name, _, kind = written.partition(" ")
            if kind:
                wire = _WIRE.get(kind, _BYTES)
                one = _Field(name.rstrip("*"), kind, wire, name.endswith("*"), tables.get(kind))
                tables[message][number << 3 | wire] = one
    return tables


_TABLES = _tables()

"""Read ONNX files strictly, without the package onnx: anything that is not known to be harmless raises an error.

protobuf's readers are lenient. They skip unknown fields, merge a message that occurs twice, take the last of a number
that occurs twice, and cut numbers that are too long. Two readers may thus see two graphs in one file, so that a check
of one says nothing about the other. Here every field must be known, have its wire type and its shortest encoding, and
occur only once unless it is repeated. Every protobuf reader then sees the same graph.

The fields are those of onnx.proto (github.com/onnx/onnx, proto2). Lists may be packed only where it declares them so.
"""

from __future__ import annotations

import dataclasses
import mmap
import operator
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import ModelFolderError
from runtime.graph.data import Attribute, Node, Subgraph, Value

Bytes = bytes | mmap.mmap
Fields = dict[str, Any]
# Larger files are mapped: only plain exports that contain their weights are.
READ_AT_ONCE = 64 << 20  # bytes
# Of larger tensors only the length is kept.
KEPT_BYTES = 1 << 16
# Attributes of at most this length are cached by their bytes.
SHORT_BYTES = 64

# protobuf's wire types.
_VARINT = 0
_BYTES = 2
_FIXED32 = 5

# Message -> field number -> "name type", with "*" after the name of a repeated field. A text that ends in "!" describes
# a field that raises an error.
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
        20: "training information!",
        25: "functions!",
        26: "device configurations!",
    },
    "Graph": {
        1: "node* Node",
        2: "name string",
        5: "initializer* Tensor",
        10: "doc_string string",
        11: "input* ValueInfo",
        12: "output* ValueInfo",
        13: "value_info* ValueInfo",
        14: "quantization annotations!",
        15: "sparse weights!",
        16: "metadata_props* Entry",
    },
    "Subgraph": {
        1: "node* Node",
        2: "name string",
        5: "a constant of a graph inside a node!",
        10: "doc_string string",
        11: "an input of a graph inside a node!",
        12: "output* ValueInfo",
        13: "a declared value of a graph inside a node!",
        14: "quantization annotations!",
        15: "sparse weights!",
        16: "metadata of a graph inside a node!",
    },
    "Node": {
        1: "input* string",
        2: "output* string",
        3: "name string",
        4: "op_type string",
        5: "attribute* Attribute",
        6: "doc_string string",
        7: "domain string",
        8: "an overload of an operator!",
        9: "metadata_props* Entry",
        10: "device configurations!",
    },
    "Attribute": {
        1: "name string",
        2: "f float",
        3: "i int64",
        4: "s bytes",
        5: "t Tensor",
        6: "g Subgraph",
        7: "floats* float",
        8: "ints* int64",
        9: "strings* bytes",
        10: "a list of tensors inside a node!",
        11: "graphs inside a node!",
        13: "doc_string string",
        14: "a type inside a node!",
        15: "types inside a node!",
        20: "type int32",
        21: "an attribute of a function!",
        22: "a sparse tensor inside a node!",
        23: "sparse tensors inside a node!",
    },
    "Tensor": {
        1: "dims* int64",
        2: "data_type int32",
        3: "a segment of a tensor!",
        4: "float_data bytes",
        5: "int32_data bytes",
        6: "a tensor of texts!",
        7: "int64_data bytes",
        8: "name string",
        9: "raw_data payload",
        10: "a tensor of double_data!",
        11: "a tensor of uint64_data!",
        12: "doc_string string",
        13: "external_data* Entry",
        14: "data_location int32",
        16: "metadata of a tensor!",
    },
    "Entry": {1: "key string", 2: "value string"},
    "Opset": {1: "domain string", 2: "version int64"},
    "ValueInfo": {1: "name string", 2: "type Type", 3: "doc_string string", 4: "metadata of a value!"},
    "Type": {
        1: "tensor_type TensorType",
        4: "a value that is a sequence!",
        5: "a value that is a map!",
        6: "a denotation of a type!",
        7: "a value of opaque type!",
        8: "a value that is sparse!",
        9: "a value that is optional!",
    },
    "TensorType": {1: "elem_type int32", 2: "shape Shape"},
    "Shape": {1: "dim* Dimension"},
    "Dimension": {1: "dim_value int64", 2: "dim_param string", 3: "a denotation of a dimension!"},
}
_WIRE = {"int32": _VARINT, "int64": _VARINT, "float": _FIXED32}
# AttributeProto.AttributeType -> its name in `Attribute.type`, and the field with the value.
_ATTRIBUTES = {
    1: ("float", "f"),
    2: ("int", "i"),
    3: ("string", "s"),
    4: ("tensor", "t"),
    5: ("graph", "g"),
    6: ("floats", "floats"),
    7: ("ints", "ints"),
    8: ("strings", "strings"),
}
_DEFAULTS: Fields = {"f": 0.0, "i": 0, "s": b"", "floats": (), "ints": (), "strings": ()}
# TensorProto.DataType -> numpy's name.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1, "float16": 2, "float64": 8}


_HOLDERS = frozenset({"raw_data", "float_data", "int32_data", "int64_data", "external_data"})


class _Field(NamedTuple):
    """A field of a message. wire: its wire type. table: the fields of the message that it holds, by tag."""

    name: str
    kind: str
    wire: int
    is_repeated: bool
    table: dict[int, _Field] | None


class Place(NamedTuple):
    """The place of a tensor's bytes in a file of weights."""

    location: str
    offset: int
    length: int


class Tensor(NamedTuple):
    """A constant in a file. It has as many bytes as dtype and shape require.

    dtype: numpy's name. place: None for bytes in the ONNX file itself. value: little-endian bytes; None if they are in
    another file, or more than KEPT_BYTES.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: Place | None = None
    value: bytes | None = None


@dataclasses.dataclass
class OnnxModel:
    """The content of an ONNX file. others: the declared types of values that are neither inputs nor outputs."""

    path: Path
    ir_version: int
    opsets: dict[str, int]
    metadata: dict[str, str]
    nodes: list[Node]
    constants: dict[str, Tensor]
    inputs: list[Value]
    outputs: list[Value]
    others: list[Value]

    @property
    def tensors(self) -> list[Tensor]:
        """All constants, those inside nodes too."""
        inside = [one.value for node in self.nodes for one in node.attributes if one.type == "tensor"]
        return [*self.constants.values(), *inside]

    @property
    def locations(self) -> set[str]:
        """The names of the files of weights, as the ONNX file has them."""
        return {tensor.place.location for tensor in self.tensors if tensor.place is not None}


def read_model(path: Path) -> OnnxModel:
    """Read an ONNX file. Raises ValueError, naming it, for a damaged file or one with features that are not allowed.

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
        raise ModelFolderError(f"{path} is damaged, or no ONNX file that is read here: {error}") from None


class _Reader:
    def __init__(self, data: Bytes) -> None:
        self._data = data
        # Attributes by their bytes: the same few occur in every layer.
        self._attributes: dict[bytes, Attribute] = {}
        self._quick: dict[str, Callable[[int, int], Any]] = {
            "Node": self._node_at,
            "Attribute": self._attribute_at,
            "Entry": self._entry_at,
            "Tensor": self._tensor_at,
            "Subgraph": self._subgraph_at,
        }
        self._is_inside = False

    def model(self, path: Path) -> OnnxModel:
        fields = self._message(0, len(self._data), _TABLES["Model"])
        if "graph" not in fields:
            raise ValueError("it has no graph")
        graph = fields["graph"]
        constants: list[Tensor] = graph.get("initializer", [])
        return OnnxModel(
            path=path,
            ir_version=fields.get("ir_version", 0),
            opsets=_once(
                "opset", ((one.get("domain", ""), one.get("version", 0)) for one in _all(fields, "opset_import"))
            ),
            metadata=_once("metadata", fields.get("metadata_props", ())),
            nodes=graph.get("node", []),
            constants=_once("initializer", ((one.name, one) for one in constants)),
            inputs=[_declared(one) for one in _all(graph, "input")],
            outputs=[_declared(one) for one in _all(graph, "output")],
            others=[_declared(one) for one in _all(graph, "value_info")],
        )

    def _message(self, at: int, stop: int, table: dict[int, _Field]) -> Fields:
        """The fields of a message by name; repeated fields as lists."""
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
            value, at = self._value(field, at)
            if at > stop:
                raise ValueError(f"byte {begin}: {field.name} ends at byte {at}, what holds it at {stop}")
            if field.is_repeated:
                found.setdefault(field.name, []).append(value)
            elif field.name in found:
                raise ValueError(f"byte {begin}: {field.name} comes twice")
            else:
                found[field.name] = value
        return found

    def _value(self, field: _Field, at: int) -> tuple[Any, int]:
        """The value of a field, and the position of its end."""
        data = self._data
        if field.wire == _FIXED32:
            return struct.unpack("<f", data[at : at + 4])[0], at + 4
        value = data[at]
        at += 1
        if value > 0x7F:
            value, at = self._varint(at - 1)
        if field.wire == _VARINT:
            return (_signed(value, field.kind, at) if value >= 1 << 31 else value), at
        end = at + value
        if end > len(data):
            raise ValueError(f"{field.name} ends at byte {end}, the file at {len(data)}")
        if field.kind == "string":
            return data[at:end].decode("utf-8"), end
        if field.kind == "payload":
            return (value, data[at:end] if value <= KEPT_BYTES else None), end
        if field.table is None:
            return data[at:end], end
        if field.kind in self._quick:
            return self._quick[field.kind](at, end), end
        return self._message(at, end, field.table), end

    # Fast paths for the messages that most of a file consists of. They read the usual encoding, and leave the rest to
    # `_message`.

    def _node_at(self, at: int, end: int) -> Node:
        data = self._data
        begin = at
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: list[Attribute] = []
        texts: dict[int, str] = {}
        while at < end:
            tag = data[at]
            start = at + 2
            # A length of several bytes has a first byte above 127.
            at = start + data[at + 1]
            if at > end or at - start > 0x7F:
                return self._node(self._message(begin, end, _TABLES["Node"]))
            if tag == _INPUT:
                inputs.append(data[start:at].decode("utf-8"))
            elif tag == _OUTPUT:
                outputs.append(data[start:at].decode("utf-8"))
            elif tag == _ATTRIBUTE:
                attributes.append(self._attribute_at(start, at))
            elif tag in _NODE_TEXTS and tag not in texts:
                texts[tag] = data[start:at].decode("utf-8")
            else:
                return self._node(self._message(begin, end, _TABLES["Node"]))
        name, operator_, domain = (texts.get(tag, "") for tag in _NODE_TEXTS)
        return Node(operator_, tuple(inputs), tuple(outputs), domain, _in_order(attributes), name)

    def _attribute_at(self, begin: int, end: int) -> Attribute:
        """An attribute; equal bytes are read only once."""
        if end - begin > SHORT_BYTES:
            return self._attribute(self._message(begin, end, _TABLES["Attribute"]))
        written = self._data[begin:end]
        found = self._attributes.get(written)
        if found is None:
            found = self._attribute(self._message(begin, end, _TABLES["Attribute"]))
            # Not a graph, which is read differently inside another.
            if found.type != "graph":
                self._attributes[written] = found
        return found

    def _subgraph_at(self, begin: int, end: int) -> Subgraph:
        """A graph inside a node. Raises ValueError for one inside another, so that nothing is nested deeply."""
        if self._is_inside:
            raise ValueError(
                f"byte {begin} begins a graph inside a graph inside a node, which this runtime does not read"
            )
        self._is_inside = True
        fields = self._message(begin, end, _TABLES["Subgraph"])
        self._is_inside = False
        outputs = tuple(_declared(one) for one in _all(fields, "output"))
        return Subgraph(tuple(fields.get("node", ())), outputs)

    def _tensor_at(self, begin: int, end: int) -> Tensor:
        fields = self._tensor_fields(begin, end)
        return self._tensor(self._message(begin, end, _TABLES["Tensor"]) if fields is None else fields)

    def _tensor_fields(self, at: int, end: int) -> Fields | None:
        """The fields of a tensor; None for an unusual encoding, which `_message` reads or raises an error for."""
        data = self._data
        fields: Fields = {}
        while at < end:
            tag = data[at]
            value = data[at + 1]
            start = at + 2
            at = start
            name = _TENSOR_NUMBERS.get(tag)
            if name is not None:
                if value > 0x7F:
                    value, at = self._varint(start - 1)
            else:
                at = start + value
                name = _TENSOR_BYTES.get(tag)
                if name is None or at > end or value > 0x7F:
                    return None
            if tag == _DIMENSION:
                fields.setdefault(name, []).append(value)
            elif tag == _EXTERNAL:
                fields.setdefault(name, []).append(self._entry_at(start, at))
            elif name in fields:
                return None
            elif tag == _TENSOR_NAME:
                fields[name] = data[start:at].decode("utf-8")
            else:
                fields[name] = (value, data[start:at]) if tag == _RAW else value
        return fields if at == end and max(fields.get("dims", ()), default=0) < 1 << 31 else None

    def _entry_at(self, begin: int, end: int) -> tuple[str, str]:
        """The key and the value of an entry. The fast path is for a key and a value of less than 128 bytes."""
        data = self._data
        middle = begin + 2 + data[begin + 1]
        if middle + 2 <= end <= begin + 0x7F and data[begin] == _KEY and data[middle] == _VALUE:
            start = middle + 2
            if start + data[middle + 1] == end:
                return data[begin + 2 : middle].decode("utf-8"), data[start:end].decode("utf-8")
        fields = self._message(begin, end, _TABLES["Entry"])
        return fields.get("key", ""), fields.get("value", "")

    def _varint(self, at: int) -> tuple[int, int]:
        """An unsigned number in its shortest encoding, and the position of its end."""
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
        return Node(
            fields.get("op_type", ""),
            tuple(fields.get("input", ())),
            tuple(fields.get("output", ())),
            fields.get("domain", ""),
            _in_order(fields.get("attribute", [])),
            fields.get("name", ""),
        )

    def _attribute(self, fields: Fields) -> Attribute:
        name = fields.get("name", "")
        if fields.get("type") not in _ATTRIBUTES:
            raise ValueError(f"attribute {name!r} has type {fields.get('type')}, which is not read")
        kind, holder = _ATTRIBUTES[fields["type"]]
        if others := fields.keys() - {"name", "type", "doc_string", holder}:
            raise ValueError(f"attribute {name!r} of type {kind} has {min(others)}, too")
        if kind in ("tensor", "graph"):
            if holder not in fields:
                raise ValueError(f"attribute {name!r} has no {kind}")
            return Attribute(name, kind, fields[holder])
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
        holders = fields.keys() & _HOLDERS
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


def _in_order(attributes: list[Attribute]) -> tuple[Attribute, ...]:
    """Attributes sorted by name. Raises ValueError for a name that occurs twice."""
    if len(attributes) > 1:
        attributes.sort(key=operator.itemgetter(0))
        _once("attribute", ((one.name, one) for one in attributes))
    return tuple(attributes)


def _payload(name: str, dtype: str, fields: Fields) -> tuple[int, bytes | None]:
    """The number of bytes of a tensor that holds them itself, and the bytes unless there are many."""
    if "raw_data" in fields:
        found: tuple[int, bytes | None] = fields["raw_data"]
        return found
    if "float_data" in fields and dtype == "float32":
        return len(fields["float_data"]), fields["float_data"]
    # protobuf stores small integers as varints.
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
    """The numbers in a packed list."""
    reader = _Reader(written)
    at = 0
    while at < len(written):
        begin = at
        value, at = reader._varint(at)
        if value >= 1 << 31:
            value = _signed(value, kind, begin)
        yield value


def _place(name: str, entries: list[tuple[str, str]], n_bytes: int) -> Place:
    """The place of external data. Raises ValueError for unknown keys, and for damaged numbers."""
    found = _once("entry", entries)
    if not {"location"} <= found.keys() <= {"location", "offset", "length", "checksum"}:
        raise ValueError(f"tensor {name!r} says {sorted(found)} of its bytes")
    numbers = {"offset": "0", "length": str(n_bytes)} | {
        key: found[key] for key in ("offset", "length") if key in found
    }
    for key, number in numbers.items():
        # Only plain ASCII digits without leading zeros: readers disagree about other forms.
        if not (number.isascii() and number.isdigit() and len(number) <= 18 and number == str(int(number))):
            raise ValueError(f"tensor {name!r} has {key} {number!r}")
    if int(numbers["length"]) != n_bytes:
        raise ValueError(
            f"tensor {name!r} has {numbers['length']} bytes in {found['location']!r}; its shape has {n_bytes}"
        )
    return Place(found["location"], int(numbers["offset"]), n_bytes)


def _declared(fields: Fields) -> Value:
    name = fields.get("name", "")
    if "tensor_type" not in fields.get("type", {}):
        raise ValueError(f"value {name!r} is not said to be a tensor")
    tensor = fields["type"]["tensor_type"]
    shape = None
    if "shape" in tensor:
        shape = tuple(_dimension(name, one) for one in _all(tensor["shape"], "dim"))
    return Value(name, _dtype(name, tensor.get("elem_type", 0)), shape)


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


def _all(fields: Fields, name: str) -> list[Fields]:
    found: list[Fields] = fields.get(name, [])
    return found


def _once(what: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of pairs. Raises ValueError for a key that occurs twice."""
    listed = list(pairs)
    found = dict(listed)
    if len(found) != len(listed):
        keys = [key for key, _ in listed]
        raise ValueError(f"{what} {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return found


def _signed(value: int, kind: str, at: int) -> int:
    """Convert a varint of 64 bits to a signed number."""
    value -= (value >> 63) << 64
    if kind == "int32" and not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"byte {at}: a number passes 32 bits")
    return value


def _unknown(at: int, tag: int, table: dict[int, _Field]) -> str:
    """The error message for a field that is not allowed."""
    number = tag >> 3
    message = next(name for name, known in _TABLES.items() if known is table)
    written = _SCHEMA[message].get(number)
    if written is None:
        return f"byte {at} begins field {number} of a {message}, which is not known"
    if written.endswith("!"):
        return f"byte {at} begins {written[:-1]}, which this runtime does not read"
    return f"byte {at} begins {written.split()[0].rstrip('*')} of a {message} with wire type {tag & 7}"


def _tables() -> dict[str, dict[int, _Field]]:
    """The schema as tables: message -> tag -> field."""
    tables: dict[str, dict[int, _Field]] = {message: {} for message in _SCHEMA}
    for message, fields in _SCHEMA.items():
        for number, written in fields.items():
            if not written.endswith("!"):
                name, kind = written.split()
                wire = _WIRE.get(kind, _BYTES)
                one = _Field(name.rstrip("*"), kind, wire, name.endswith("*"), tables.get(kind))
                tables[message][number << 3 | wire] = one
    return tables


_TABLES = _tables()
# Tags of a node; the last three are name, operator and domain.
_INPUT = 1 << 3 | _BYTES
_OUTPUT = 2 << 3 | _BYTES
_ATTRIBUTE = 5 << 3 | _BYTES
_NODE_TEXTS = (3 << 3 | _BYTES, 4 << 3 | _BYTES, 7 << 3 | _BYTES)
# Tags of a tensor.
_DIMENSION = 1 << 3
_TENSOR_NAME = 8 << 3 | _BYTES
_RAW = 9 << 3 | _BYTES
_EXTERNAL = 13 << 3 | _BYTES
_TENSOR_NUMBERS = {_DIMENSION: "dims", 2 << 3: "data_type", 14 << 3: "data_location"}
_TENSOR_BYTES = {_TENSOR_NAME: "name", _RAW: "raw_data", _EXTERNAL: "external_data"}
# Tags of an entry.
_KEY = 1 << 3 | _BYTES
_VALUE = 2 << 3 | _BYTES

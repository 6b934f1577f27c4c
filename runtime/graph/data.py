"""A graph as plain data: nodes, constants, inputs and outputs, without onnx."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"  # onnxruntime's own operators
OPSETS = {"": 18, MICROSOFT: 1}
IR_VERSION = 10
INT32, INT64, FLOAT = 6, 7, 1  # onnx.TensorProto.DataType, for `Cast`
INLINE_BYTES = 1024  # smaller constants stay in model.onnx
DATA_FILE = "model.onnx_data"

Shape = tuple[int, ...]


class Attribute(NamedTuple):
    """Of a node."""

    name: str
    type: str  # int, float, string, ints, floats, strings or tensor
    value: Any


class Node(NamedTuple):
    """One operator at work. An input that is left out is ""."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str
    attributes: tuple[Attribute, ...]  # by name
    name: str


class Constant(NamedTuple):
    """An initializer: a weight of the model, or a value that is the same in every model."""

    name: str
    dtype: str  # numpy's name
    shape: Shape
    value: bytes | None = None  # little-endian; None for a weight
    same_bytes: str | None = None  # the constant whose bytes this one reads in another shape


class Value(NamedTuple):
    """An input or an output. A dimension with a name is free."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]


@dataclasses.dataclass
class Graph:
    """All of a graph but its weights; constants are in the order in which they are stored.

    >>> graph = Graph()
    >>> graph.fixed("two", np.array(2, np.float32))
    'two'
    >>> graph.node("Mul", ["x", "two"], ["y"])
    'y'
    """

    nodes: list[Node] = dataclasses.field(default_factory=list)
    constants: dict[str, Constant] = dataclasses.field(default_factory=dict)
    inputs: list[Value] = dataclasses.field(default_factory=list)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    def node(
        self, operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: int | float
    ) -> str:
        """Append a node, named after its first output; returns that output."""
        made = tuple(_attribute(name, attributes[name]) for name in sorted(attributes))
        self.nodes.append(Node(operator, tuple(inputs), tuple(outputs), domain, made, outputs[0]))
        return outputs[0]

    def fixed(self, name: str, array: NDArray[Any]) -> str:
        """Append a constant that is the same in every model; returns its name."""
        value = array.astype(array.dtype.newbyteorder("<")).tobytes()
        self.constants[name] = Constant(name, array.dtype.name, array.shape, value)
        return name

    def weight(self, name: str, dtype: str, shape: Shape) -> str:
        """Append a constant that every model has its own of; returns its name."""
        self.constants[name] = Constant(name, dtype, shape)
        return name

    def same_bytes(self, name: str, source: str, shape: Shape) -> str:
        """Append a constant that reads the bytes of `source` in another shape; returns its name."""
        self.constants[name] = Constant(name, self.constants[source].dtype, shape, same_bytes=source)
        return name


def _attribute(name: str, value: int | float) -> Attribute:
    if isinstance(value, int):
        return Attribute(name, "int", value)
    # ONNX stores fp32
    return Attribute(name, "float", float(np.float32(value)))

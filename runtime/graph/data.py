"""A graph as plain data: nodes, constants, inputs and outputs, without the package onnx."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""
OPSETS = {"": 18, MICROSOFT: 1}
IR_VERSION = 10
# The numbers of onnx.TensorProto.DataType, for `Cast`.
FLOAT = 1
INT32 = 6
INT64 = 7
INLINE_BYTES = 1024
"""Smaller constants are stored in model.onnx itself."""
DATA_FILE = "model.onnx_data"

Shape = tuple[int, ...]


class Attribute(NamedTuple):
    """An attribute of a node. type: int, float, string, ints, floats, strings, tensor or graph; for that a Subgraph."""

    name: str
    type: str
    value: Any


class Node(NamedTuple):
    """A node of the graph. An omitted input is ""; attributes are sorted by name."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str
    attributes: tuple[Attribute, ...]
    name: str


class Subgraph(NamedTuple):
    """A branch of an `If`. Its nodes read values of the graph around it; it has no inputs or constants of its own."""

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]


class Constant(NamedTuple):
    """An initializer: a weight of the model, or a value that is the same in every model.

    dtype: numpy's name. value: little-endian bytes; None for a weight. same_bytes: the constant whose bytes this one
    reads in another shape.
    """

    name: str
    dtype: str
    shape: Shape
    value: bytes | None = None
    same_bytes: str | None = None


class Value(NamedTuple):
    """The declared type of an input, an output or a value between them. dtype: numpy's name.

    A dimension with a name, or None, in place of a number is free. shape: None if it is not declared, as for outputs of
    a Subgraph.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclasses.dataclass
class Graph:
    """A graph without the values of its weights; constants are in the order in which they are stored.

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
    opsets: dict[str, int] = dataclasses.field(default_factory=lambda: dict(OPSETS))
    ir_version: int = IR_VERSION

    def branch(self) -> Graph:
        """An empty graph for the nodes of a Subgraph of this graph; its constants are those of this graph."""
        return Graph(constants=self.constants)

    def node(
        self,
        operator: str,
        inputs: list[str],
        outputs: list[str],
        domain: str = "",
        **attributes: int | float | str | list[int] | Graph,
    ) -> str:
        """Append a node, named after its first output; returns that output. An attribute may be a `branch`."""
        made = tuple(_attribute(name, attributes[name]) for name in sorted(attributes))
        self.nodes.append(Node(operator, tuple(inputs), tuple(outputs), domain, made, outputs[0]))
        return outputs[0]

    def fixed(self, name: str, array: NDArray[Any]) -> str:
        """Append a constant that is the same in every model; returns its name."""
        value = array.astype(array.dtype.newbyteorder("<")).tobytes()
        self.constants[name] = Constant(name, array.dtype.name, array.shape, value)
        return name

    def weight(self, name: str, dtype: str, shape: Shape) -> str:
        """Append a constant whose value differs from model to model; returns its name."""
        self.constants[name] = Constant(name, dtype, shape)
        return name

    def same_bytes(self, name: str, source: str, shape: Shape) -> str:
        """Append a constant that reads the bytes of `source` in another shape; returns its name."""
        self.constants[name] = Constant(name, self.constants[source].dtype, shape, same_bytes=source)
        return name


def _attribute(name: str, value: int | float | str | list[int] | Graph) -> Attribute:
    if isinstance(value, Graph):
        return Attribute(name, "graph", Subgraph(tuple(value.nodes), tuple(value.outputs)))
    if isinstance(value, list):
        return Attribute(name, "ints", tuple(value))
    if isinstance(value, str):
        return Attribute(name, "string", value.encode())
    if isinstance(value, int):
        return Attribute(name, "int", value)
    # ONNX stores attributes in fp32.
    return Attribute(name, "float", float(np.float32(value)))

"""A described graph as an ONNX file: `model.onnx`, and its weights in `model.onnx_data`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime.graph.data import DATA_FILE, INLINE_BYTES, Attribute, Constant, Graph, Node, Subgraph, Value

PAGE = 4096  # a weight that starts on a page can be mapped as it stands


def serialize(graph: Graph, tensors: Sequence[TensorProto]) -> bytes:
    """The bytes of an ONNX model: a described graph with its initializers."""
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()]
    model = helper.make_model(
        _graph("gpt2", graph.nodes, graph.inputs, graph.outputs, tensors),
        opset_imports=opsets,
        ir_version=graph.ir_version,
        producer_name="gpt2-edge",
    )
    helper.set_model_props(model, graph.metadata)
    found: bytes = model.SerializeToString()
    return found


def _graph(
    name: str,
    nodes: Iterable[Node],
    inputs: Iterable[Value],
    outputs: Iterable[Value],
    tensors: Sequence[TensorProto] = (),
) -> onnx.GraphProto:
    return helper.make_graph(
        [_node(node) for node in nodes], name, [*map(_value, inputs)], [*map(_value, outputs)], tensors
    )


def inline_tensor(name: str, array: NDArray[Any]) -> TensorProto:
    """An initializer that holds its own bytes."""
    # ascontiguousarray gives a scalar a dimension.
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def same_bytes_tensor(constant: Constant, source: TensorProto) -> TensorProto:
    """An initializer that has the bytes of `source` in the shape of the constant."""
    tensor = TensorProto()
    tensor.CopyFrom(source)
    tensor.name = constant.name
    tensor.dims[:] = constant.shape
    return tensor


def fixed_array(constant: Constant) -> NDArray[Any]:
    """The value of a constant that is the same in every model."""
    if constant.value is None:
        raise AssertionError(f"{constant.name} is a weight")
    return np.frombuffer(constant.value, np.dtype(constant.dtype).newbyteorder("<")).reshape(constant.shape)


def _node(node: Node) -> onnx.NodeProto:
    attributes = {attribute.name: _attribute_value(attribute) for attribute in node.attributes}
    return helper.make_node(node.operator, node.inputs, node.outputs, name=node.name, domain=node.domain, **attributes)


def _attribute_value(attribute: Attribute) -> Any:
    if not isinstance(attribute.value, Subgraph):
        return attribute.value
    return _graph(attribute.name, attribute.value.nodes, (), attribute.value.outputs)


def _value(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, _data_type(value.dtype), value.shape)


def _data_type(dtype: str) -> int:
    found: int = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return found


class OnnxFile:
    """Streams weights to disk one by one, so that no model is ever in memory whole.

    Use with `with`: leaving it closes the data file. `save` writes `model.onnx`.
    """

    def __init__(self, folder: Path) -> None:
        """Create `model.onnx_data` in an existing folder."""
        self._folder = folder
        self._tensors: dict[str, TensorProto] = {}
        self._data = (folder / DATA_FILE).open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()

    def add(self, constant: Constant, array: NDArray[Any]) -> None:
        """Store a constant, and write it out at once if it is large.

        Raises AssertionError for an array that is not as described.
        """
        if (array.dtype.name, array.shape) != (constant.dtype, constant.shape):
            raise AssertionError(
                f"{constant.name} is described as {constant.dtype} {constant.shape}, not {array.dtype}"
            )
        array = np.ascontiguousarray(array)
        external = array.nbytes >= INLINE_BYTES
        self._tensors[constant.name] = (
            self._write(constant.name, array) if external else inline_tensor(constant.name, array)
        )

    def add_same_bytes(self, constant: Constant) -> None:
        """Store a constant that reads another one's bytes; nothing is written twice."""
        self._tensors[constant.name] = same_bytes_tensor(constant, self._tensors[constant.same_bytes or ""])

    def _write(self, name: str, array: NDArray[Any]) -> TensorProto:
        self._data.write(bytes(-self._data.tell() % PAGE))
        place = {"location": DATA_FILE, "offset": self._data.tell(), "length": array.nbytes}
        self._data.write(array.data)
        data_type = _data_type(array.dtype.name)
        tensor = TensorProto(name=name, data_type=data_type, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def save(self, graph: Graph) -> None:
        """Write `model.onnx`: the graph, whose constants are all stored."""
        self._data.flush()
        tensors = [self._tensors[name] for name in graph.constants]
        (self._folder / "model.onnx").write_bytes(serialize(graph, tensors))

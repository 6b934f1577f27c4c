"""An ONNX graph under construction: nodes in memory, weights written to `model.onnx_data` as they come."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"  # onnxruntime's own operators
OPSET, IR_VERSION = 18, 10
INLINE_BYTES = 1024  # smaller constants stay in model.onnx
PAGE = 4096  # a weight that starts on a page can be mapped as it stands

ValueInfo = tuple[str, int, list[str | int]]  # name, element type, shape


class OnnxGraph:
    """Collects nodes and constants, all in memory."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Append a node, named after its first output; returns that output."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Append an initializer; returns its name."""
        self._constants[name] = self._tensor(name, np.ascontiguousarray(array))
        return name

    def _tensor(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        return numpy_helper.from_array(array, name)

    def same_bytes(self, name: str, source: str, shape: list[int]) -> None:
        """Append an initializer that reads the bytes of `source` in another shape; nothing is written twice."""
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._constants[source])
        tensor.name, tensor.dims[:] = name, shape
        self._constants[name] = tensor

    def shape(self, name: str) -> list[int]:
        """Shape of an initializer."""
        return list(self._constants[name].dims)

    def serialize(self, inputs: list[ValueInfo], outputs: list[ValueInfo], metadata: dict[str, str]) -> bytes:
        """The bytes of an ONNX model: the graph with these inputs and outputs, and key-value metadata."""
        graph = helper.make_graph(
            self._nodes,
            "gpt2",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gpt2-edge")
        helper.set_model_props(model, metadata)
        found: bytes = model.SerializeToString()
        return found


class OnnxFile(OnnxGraph):
    """Streams weights to disk one by one, so that no model is ever in memory whole.

    Use with `with`: leaving it closes the data file. `save` writes `model.onnx`.
    """

    def __init__(self, folder: Path) -> None:
        """Create `model.onnx_data` in an existing folder."""
        super().__init__()
        self._folder = folder
        self._data = (folder / "model.onnx_data").open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()

    def _tensor(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        """Written out at once if it is large."""
        if array.nbytes < INLINE_BYTES:
            return super()._tensor(name, array)
        self._data.write(bytes(-self._data.tell() % PAGE))
        place = {"location": "model.onnx_data", "offset": self._data.tell(), "length": array.nbytes}
        self._data.write(array.data)
        data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=data_type, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def save(self, inputs: list[ValueInfo], outputs: list[ValueInfo], metadata: dict[str, str]) -> None:
        """Write `model.onnx`: the graph with these inputs and outputs, and key-value metadata."""
        self._data.flush()
        (self._folder / "model.onnx").write_bytes(self.serialize(inputs, outputs, metadata))

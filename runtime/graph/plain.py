"""A strict allow-list for plain exports of GPT-2, such as optimum's, also quantized; they have no exact description.

The operators are those that optimum 0.1.0 and onnxruntime's dynamic quantization write, and those of earlier exports.
No node may omit an input, since some kernels of onnxruntime crash without it. `runtime.graph.sizes` checks how large
the tensors become.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import numpy as np

from runtime.errors import ModelFolderError
from runtime.graph.architecture import Architecture
from runtime.graph.data import MICROSOFT, Node
from runtime.graph.places import check_places
from runtime.graph.reader import OnnxModel, Tensor
from runtime.graph.sizes import UNBOUNDED

CURE = "build a model folder from the checkpoint, or verify='off' trusts the graph as it is"
NODES_PER_LAYER = 500
"""The most nodes of a layer, about twice as many as optimum writes."""
_DOMAINS = {
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "ai.onnx.training",
    "com.microsoft",
    "com.microsoft.experimental",
    "com.microsoft.nchwc",
    "org.pytorch.aten",
}
"""Domains that onnxruntime declares in graphs that it saves. Only operators of "" and com.microsoft are allowed."""


class _Operator(NamedTuple):
    """How many inputs and outputs an operator may have, and the type of each attribute by name."""

    inputs: range
    outputs: range
    attributes: dict[str, str]


def _operator(least: int, most: int | None = None, *, outputs: range = range(1, 2), **attributes: str) -> _Operator:
    return _Operator(range(least, (most or least) + 1), outputs, attributes)


_ELEMENTWISE_1 = ("Abs", "Erf", "IsNaN", "Neg", "Not", "Relu", "Sigmoid", "Sqrt", "Tanh", "Identity")
_ELEMENTWISE_2 = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Min", "Max"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)
_CONSTANT = {"value": "tensor", "value_int": "int", "value_ints": "ints", "value_float": "float"}
_GEMM = {"alpha": "float", "beta": "float", "transA": "int", "transB": "int"}
_OPERATORS: dict[tuple[str, str], _Operator] = {
    **{("", name): _operator(1) for name in _ELEMENTWISE_1},
    **{("", name): _operator(2) for name in _ELEMENTWISE_2},
    ("", "Cast"): _operator(1, to="int"),
    ("", "Concat"): _operator(1, 8, axis="int"),
    ("", "Constant"): _Operator(range(1), range(1, 2), _CONSTANT),
    ("", "ConstantOfShape"): _operator(1, value="tensor"),
    ("", "CumSum"): _operator(2, exclusive="int", reverse="int"),
    ("", "DequantizeLinear"): _operator(3, axis="int"),
    ("", "DynamicQuantizeLinear"): _operator(1, outputs=range(3, 4)),
    ("", "Expand"): _operator(2),
    ("", "Flatten"): _operator(1, axis="int"),
    ("", "Gather"): _operator(2, axis="int"),
    ("", "Gelu"): _operator(1, approximate="string"),
    ("", "Gemm"): _Operator(range(2, 4), range(1, 2), _GEMM),
    ("", "LayerNormalization"): _operator(3, axis="int", epsilon="float", stash_type="int"),
    ("", "MatMul"): _operator(2),
    ("", "MatMulInteger"): _operator(2, 4),
    ("", "Range"): _operator(3),
    ("", "ReduceMean"): _operator(1, 2, axes="ints", keepdims="int", noop_with_empty_axes="int"),
    ("", "Reshape"): _operator(2, allowzero="int"),
    ("", "Shape"): _operator(1, start="int", end="int"),
    ("", "Slice"): _operator(3, 5),
    ("", "Softmax"): _operator(1, axis="int"),
    ("", "Split"): _operator(1, 2, outputs=range(2, 5), axis="int", split="ints", num_outputs="int"),
    ("", "Squeeze"): _operator(1, 2, axes="ints"),
    ("", "Transpose"): _operator(1, perm="ints"),
    ("", "Trilu"): _operator(1, 2, upper="int"),
    ("", "Unsqueeze"): _operator(1, 2, axes="ints"),
    ("", "Where"): _operator(3),
    (MICROSOFT, "BiasGelu"): _operator(2),
    (MICROSOFT, "FastGelu"): _operator(1, 2),
    (MICROSOFT, "FusedMatMul"): _operator(2, alpha="float", transA="int", transB="int"),
    (MICROSOFT, "Gelu"): _operator(1),
    (MICROSOFT, "QuickGelu"): _operator(1, alpha="float"),
    (MICROSOFT, "SkipLayerNormalization"): _operator(4, 5, outputs=range(1, 5), epsilon="float"),
}
# float, uint8, int8, int32, int64, bool
_CAST_TO = {1, 2, 3, 6, 7, 9}


def check_plain(model: OnnxModel, architecture: Architecture) -> None:
    """Raise ValueError, naming the file and the node, for a graph with anything that is not on the list.

    Not allowed are other operators and domains, omitted inputs, other attributes, integers larger than any size of the
    model, more nodes than an export has, and weights anywhere but in one file beside the graph.
    """
    if odd := model.opsets.keys() - _DOMAINS:
        raise ModelFolderError(f"{model.path} has operators of {min(odd)!r}: custom operators are code, and not loaded")
    check_places(model, {f"{model.path.name}_data", f"{model.path.name}.data"})
    if len(model.nodes) > NODES_PER_LAYER * (architecture.n_layer + 1):
        _refuse(model, f"it has {len(model.nodes)} nodes for n_layer {architecture.n_layer}")
    for node in model.nodes:
        _check_node(model, node)
    _check_embeddings(model, architecture)
    _check_numbers(model, architecture)


def _refuse(model: OnnxModel, what: str) -> NoReturn:
    raise ModelFolderError(f"{model.path} is no plain export of GPT-2 that is loaded: {what}; {CURE}")


def _check_node(model: OnnxModel, node: Node) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain not in ("", MICROSOFT):
        raise ModelFolderError(f"{model.path} has operators of {domain!r}: custom operators are code, and not loaded")
    allowed = _OPERATORS.get((domain, node.operator))
    named = f"node {node.name!r} is {node.operator!r}"
    if allowed is None:
        _refuse(model, f"{named}, which no export of GPT-2 has")
    if len(node.inputs) not in allowed.inputs or "" in node.inputs:
        _refuse(model, f"{named} with inputs {list(node.inputs)}")
    # Only SkipLayerNormalization may omit outputs.
    if len(node.outputs) not in allowed.outputs or (len(allowed.outputs) == 1 and "" in node.outputs):
        _refuse(model, f"{named} with outputs {list(node.outputs)}")
    for attribute in node.attributes:
        if allowed.attributes.get(attribute.name) != attribute.type:
            _refuse(model, f"{named} with {attribute.name}, {attribute.type}")
    if node.operator == "Cast" and (len(node.attributes) != 1 or node.attributes[0].value not in _CAST_TO):
        _refuse(model, f"{named} to a type that no export of GPT-2 has")
    if node.operator == "Constant" and len(node.attributes) != 1:
        _refuse(model, f"{named} with {len(node.attributes)} values")


def _check_embeddings(model: OnnxModel, architecture: Architecture) -> None:
    """Raise ModelFolderError unless weights have the sizes of config.json, which bound the allowed integers."""
    shapes = {tensor.shape for tensor in model.constants.values()}
    n_embd = architecture.n_embd
    inner = architecture.inner_size
    expected = {
        "vocab_size and n_embd": (architecture.vocab_size, n_embd),
        "n_positions and n_embd": (architecture.n_positions, n_embd),
        "n_embd and n_inner": (n_embd, inner),
    }
    for name, shape in expected.items():
        if shape not in shapes:
            _refuse(model, f"it has no weight of shape {list(shape)}, {name} in config.json")


def _numbers(model: OnnxModel) -> Iterator[tuple[str, Tensor]]:
    """All constants, those inside nodes too, by the name of their value."""
    yield from model.constants.items()
    for node in model.nodes:
        for attribute in node.attributes:
            if attribute.type == "tensor":
                yield node.outputs[0], attribute.value
            elif attribute.name in ("value_int", "value_ints"):
                array = np.array(attribute.value, np.int64)
                yield node.outputs[0], Tensor(node.name, "int64", array.shape, None, array.astype("<i8").tobytes())


def _check_numbers(model: OnnxModel, architecture: Architecture) -> None:
    """Raise ModelFolderError for an integer constant larger than any size of the model: they are sizes and indices."""
    sizes = (architecture.vocab_size, architecture.n_positions, 3 * architecture.n_embd, architecture.inner_size)
    largest = max(sizes)
    ends = {node.inputs[2] for node in model.nodes if node.operator == "Slice"}
    others = {
        name for node in model.nodes for index, name in enumerate(node.inputs) if (node.operator, index) != ("Slice", 2)
    }
    for name, tensor in _numbers(model):
        if tensor.dtype not in ("int32", "int64"):
            continue
        if tensor.value is None:
            _refuse(model, f"constant {name!r} has more whole numbers than any export of GPT-2")
        numbers = np.frombuffer(tensor.value, np.dtype(tensor.dtype).newbyteorder("<"))
        found = [abs(int(number)) for number in numbers]
        if name in ends - others:
            found = [number for number in found if number < UNBOUNDED]
        if max(found, default=0) > largest:
            _refuse(model, f"constant {name!r} holds {found[:8]}, more than any size of the model")

"""Plain exports: what optimum writes is on the list, and what is not there is refused by name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from runtime.graph.architecture import Architecture, read_architecture
from runtime.graph.data import Attribute, Node
from runtime.graph.plain import check_plain
from runtime.graph.reader import OnnxModel, Place, Tensor, read_model


def test_optimums_export_passes(model: OnnxModel, architecture: Architecture) -> None:
    check_plain(model, architecture)
    assert len(model.nodes) > 1000


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=str)
def test_it_passes_after_quantize_dynamic(
    demo_reference_folder: Path, architecture: Architecture, tmp_path: Path, kind: QuantType, per_channel: bool
) -> None:
    target = tmp_path / "model_quantized.onnx"
    # weights in a file of their own: without the flag they are in the graph
    external = kind == QuantType.QInt8
    source = demo_reference_folder / "model.onnx"
    quantize_dynamic(source, target, weight_type=kind, per_channel=per_channel, use_external_data_format=external)
    found = read_model(target)
    check_plain(found, architecture)
    assert found.locations == ({"model_quantized.onnx.data"} if external else set())


def refused(model: OnnxModel, architecture: Architecture, **changes: Any) -> str:
    with pytest.raises(ValueError, match=r"model\.onnx") as error:
        check_plain(dataclasses.replace(model, **changes), architecture)
    return str(error.value)


def node(operator: str, *inputs: str, domain: str = "", n_outputs: int = 1, **attributes: Any) -> Node:
    """With attributes of whole numbers, or tensors."""
    made = [Attribute(name, "tensor" if isinstance(one, Tensor) else "int", one) for name, one in attributes.items()]
    return Node(operator, inputs, tuple(f"odd{i}" for i in range(n_outputs)), domain, tuple(made), "odd")


def whole(*numbers: int, dtype: str = "int64") -> Tensor:
    array = np.array(numbers, dtype)
    return Tensor("odd", dtype, array.shape, None, array.tobytes())


ODD: dict[str, tuple[Node, str]] = {
    "a loop": (node("Loop", "x", "x", "x"), "'Loop', which no export of GPT-2 has"),
    "an If": (node("If", "x"), "'If', which no export"),
    "Pad": (node("Pad", "x", "x"), "'Pad', which no export"),
    "Tile": (node("Tile", "x", "x"), "'Tile', which no export"),
    "Einsum": (node("Einsum", "x", "x"), "'Einsum', which no export"),
    "attention of ours": (node("GroupQueryAttention", "x", domain="com.microsoft"), "which no export of GPT-2 has"),
    "a custom domain": (node("Add", "x", "x", domain="my.operators"), "'my.operators': custom operators are code"),
    "an operator of another domain": (node("Add", "x", "x", domain="com.microsoft"), "which no export of GPT-2 has"),
    "an input left out": (node("Max", "x", ""), r"'Max' with inputs ['x', '']"),
    "one input too few": (node("Add", "x"), r"'Add' with inputs ['x']"),
    "one input too many": (node("MatMul", "x", "x", "x"), "'MatMul' with inputs"),
    "no input": (node("Concat", axis=0), "'Concat' with inputs []"),
    "many inputs": (node("Concat", *["x"] * 9, axis=0), "'Concat' with inputs"),
    "many outputs": (node("Split", "x", n_outputs=9, axis=0), "'Split' with outputs"),
    "an odd attribute": (node("MatMul", "x", "x", odd=1), "'MatMul' with odd, int"),
    "an attribute of another type": (node("Concat", "x", axis=whole(1)), "'Concat' with axis, tensor"),
    "a cast to text": (node("Cast", "x", to=8), "'Cast' to a type"),
    "a cast to nothing": (node("Cast", "x"), "'Cast' to a type"),
    "a constant of two": (node("Constant", value=whole(1), value_int=1), "'Constant' with 2 values"),
    "a huge size": (node("Constant", value=whole(3 << 28)), "more than any size of the model"),
    "a huge negative size": (node("Constant", value=whole(-(2**63))), "more than any size of the model"),
    "a huge number": (node("Constant", value_int=2**40), "more than any size of the model"),
    "a huge size of 32 bits": (node("Constant", value=whole(2**30, dtype="int32")), "more than any size"),
    "an end that is no end": (node("Constant", value=whole(2**63 - 1)), "more than any size of the model"),
    "weights as sizes": (
        node("Constant", value=Tensor("odd", "int64", (9,), Place("model.onnx_data", 0, 0))),
        "more whole numbers",
    ),
}


@pytest.mark.parametrize(("odd", "message"), ODD.values(), ids=ODD)
def test_what_is_not_on_the_list_is_refused(
    model: OnnxModel, architecture: Architecture, odd: Node, message: str
) -> None:
    if "whole numbers" in message:
        constants = model.constants | {"odd": odd.attributes[0].value._replace(place=None)}
        assert message in refused(model, architecture, constants=constants)
        return
    assert message in refused(model, architecture, nodes=[*model.nodes, odd])


def test_nodes_are_not_many_times_those_of_an_export(model: OnnxModel, architecture: Architecture) -> None:
    assert "nodes for n_layer 6" in refused(model, architecture, nodes=model.nodes * 4)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("other", "has its weights in 'other'; model.onnx.data or model.onnx_data beside it is expected"),
        ("sub/model.onnx_data", "has its weights in 'sub/model.onnx_data'"),
        ("*/_ORT_MEM_ADDR_/*", "has its weights in"),
    ],
)
def test_weights_lie_in_the_one_file_of_its_name(
    model: OnnxModel, architecture: Architecture, location: str, message: str
) -> None:
    name, tensor = next(iter(model.constants.items()))
    moved = tensor._replace(place=Place(location, 0, 4), value=None)
    assert message in refused(model, architecture, constants=model.constants | {name: moved})
    # in a constant of a node, too
    hidden = node("Constant", value=tensor._replace(place=Place(location, 0, 4), value=None))
    assert message in refused(model, architecture, nodes=[*model.nodes, hidden])


def test_weights_beyond_the_file_are_refused(model: OnnxModel, architecture: Architecture, tmp_path: Path) -> None:
    (tmp_path / "model.onnx_data").write_bytes(bytes(100))
    name, tensor = next(iter(model.constants.items()))
    moved = tensor._replace(place=Place("model.onnx_data", 96, 8), value=None)
    at = dataclasses.replace(model, path=tmp_path / "model.onnx", constants=model.constants | {name: moved})
    assert "up to byte 104 of model.onnx_data, which has 100" in refused(at, architecture)
    hidden = node("Constant", value=moved)
    beyond = dataclasses.replace(model, path=tmp_path / "model.onnx", nodes=[*model.nodes, hidden])
    assert "up to byte 104 of model.onnx_data" in refused(beyond, architecture)


def test_unknown_operator_sets_are_refused(model: OnnxModel, architecture: Architecture) -> None:
    opsets = model.opsets | {"my.operators": 1}
    assert "'my.operators': custom operators are code" in refused(model, architecture, opsets=opsets)


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 2**30), ("n_positions", 2**30), ("n_embd", 2**20)])
def test_sizes_that_no_weight_has_bound_nothing(
    model: OnnxModel, architecture: Architecture, key: str, value: int
) -> None:
    other = dataclasses.replace(architecture, **{key: value})
    assert "it has no weight of shape" in refused(model, other)


def test_a_graph_of_ours_without_its_format_is_no_plain_export(demo_int8_folder: Path, tmp_path: Path) -> None:
    ours = read_model(demo_int8_folder / "model.onnx")
    shutil.copy(demo_int8_folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match="which no export of GPT-2 has"):
        check_plain(dataclasses.replace(ours, metadata={}), read_architecture(tmp_path))

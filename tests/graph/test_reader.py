"""ONNX files are read strictly: what protobuf's readers would skip, merge or cut is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.graph.reader import Place, read_model
from tests.trials.onnx_reading import make_graph, varint

Edit = Callable[[onnx.ModelProto], object]


def write(path: Path, edit: Edit = lambda _: None) -> Path:
    model = make_graph()
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_what_a_graph_holds(path: Path) -> None:
    model = read_model(write(path))
    assert [(node.operator, node.domain, node.inputs) for node in model.nodes] == [
        ("A", "d1", ("x", "", "w1")),
        ("B", "d2", ("a", "w2")),
    ]
    assert {one.name: one.value for one in model.nodes[1].attributes} == {"axis": -1, "scale": 0.25}
    assert model.constants["w1"].place == Place("here", 4096, 2400)
    assert model.locations == {"here", "there"}
    assert model.opsets == {"": 1, "d1": 1, "d2": 1}
    assert model.metadata == {"key": "value", "other": ""}
    assert model.inputs[0] == ("x", "float32", ("batch", 300, None))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raw", np.arange(3)),
        ("floats", np.array([1.5, -2.0], np.float32)),
        ("int32", np.array([-1, 2**31 - 1], np.int32)),
        ("int64", np.array([-1, 2**62])),
        ("int8", np.array([-128, 127], np.int8)),
        ("uint8", np.array(255, np.uint8)),
        ("bool", np.array([True, False])),
    ],
)
def test_numbers_of_every_type(path: Path, name: str, expected: np.ndarray) -> None:
    found = read_model(write(path)).constants[name]
    assert (found.dtype, found.shape, found.value) == (expected.dtype.name, expected.shape, expected.tobytes())


def branch(*nodes: onnx.NodeProto, **parts: Any) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], parts.pop("outputs", []), **parts)


def add_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch())
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch(inner)))


def add_branch_with_constant(model: onnx.ModelProto) -> None:
    constant = numpy_helper.from_array(np.arange(3), "inner")
    one = branch(initializer=[constant])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=one))


def add_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("d", "f", [], [], [], [helper.make_opsetid("", 18)]))


def add_sparse(model: onnx.ModelProto) -> None:
    raw = numpy_helper.from_array(np.arange(3), "sparse")
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=raw, indices=raw, dims=[9]))


def add_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.CopyFrom(helper.make_graph([], "t", [], []))


def add_sequence(model: onnx.ModelProto) -> None:
    tensors = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    model.graph.input.append(helper.make_value_info("s", helper.make_sequence_type_proto(tensors)))


def edit_place(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        next(one for one in model.graph.initializer[0].external_data if one.key == key).value = value

    return edit


def edit_tensor(**changes: object) -> Edit:
    """Of the one whose bytes are in the file."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[2]
        for key, value in changes.items():
            if isinstance(value, list):
                getattr(tensor, key)[:] = value
            else:
                setattr(tensor, key, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add_branch, "a graph inside a graph inside a node, which this runtime does not read"),
        (add_branch_with_constant, "a constant of a graph inside a node, which this runtime does not read"),
        (add_function, "functions, which this runtime does not read"),
        (add_sparse, "sparse weights"),
        (add_training, "training information"),
        (add_sequence, "a value that is a sequence"),
        (lambda model: model.ClearField("graph"), "no graph"),
        (
            lambda model: model.graph.node[0].attribute.append(helper.make_attribute("i", 1)),
            "attribute 'i' comes twice",
        ),
        (lambda model: model.graph.initializer.append(model.graph.initializer[2]), "initializer 'raw' comes twice"),
        (lambda model: model.opset_import.append(helper.make_opsetid("d1", 2)), "opset 'd1' comes twice"),
        (lambda model: model.metadata_props.add(key="key", value="2"), "metadata 'key' comes twice"),
        (lambda model: setattr(model.graph.node[0].attribute[0], "type", 3), "of type string has"),
        (lambda model: setattr(model.graph.node[0].attribute[0], "type", 0), "type 0"),
        (lambda model: setattr(model.graph.node[0].attribute[0], "ref_attr_name", "x"), "an attribute of a function"),
        (edit_tensor(dims=[4]), r"'raw' has 24 bytes; int64 of shape \[4\] has 32"),
        (edit_tensor(dims=[-3]), "dimension of -3"),
        (edit_tensor(dims=[2**62, 2**62]), "has 24 bytes"),
        (edit_tensor(data_type=8), "data type 8"),
        (edit_tensor(data_location=1), "not where it says"),
        (edit_tensor(int64_data=[1, 2, 3]), "more than one place"),
        (lambda model: model.graph.initializer[6].int32_data.append(300), "no int8"),
        (lambda model: model.graph.initializer[4].float_data.append(1), "more than one place"),
        (edit_place("offset", "+4096"), r"offset '\+4096'"),
        (edit_place("offset", " 4096"), "offset ' 4096'"),
        (edit_place("offset", "4_096"), "offset '4_096'"),
        (edit_place("offset", "٤"), "offset '٤'"),
        (edit_place("offset", "-1"), "offset '-1'"),
        (edit_place("offset", "04096"), "offset '04096'"),
        (edit_place("length", "9" * 30), "length '999"),
        (edit_place("length", "2404"), "2404 bytes in 'here'; its shape has 2400"),
        (
            lambda model: model.graph.initializer[0].external_data.add(key="length", value="2400"),
            "'length' comes twice",
        ),
        (lambda model: model.graph.initializer[0].external_data.add(key="basepath", value="/"), "basepath"),
    ],
)
def test_what_is_not_read_is_refused_by_name(path: Path, edit: Edit, message: str) -> None:
    write(path, edit)
    with pytest.raises(ValueError, match=message) as error:
        read_model(path)
    assert str(error.value).startswith(f"{path} is damaged, or no ONNX file that is read here")


def field(number: int, wire: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire) + payload


def message(number: int, payload: bytes) -> bytes:
    return field(number, 2, varint(len(payload)) + payload)


NAMED = message(3, b"n")
ADDITIONS = {
    "an unknown field": field(99, 0, b"\x01"),
    "an unknown field of a model with another number": field(2**28, 2, b"\x00"),
    "another wire type": field(1, 2, b"\x00"),
    "fixed64": field(1, 1, bytes(8)),
    "a group": field(30, 3, field(30, 4, b"")),
    "the same number again": field(1, 0, b"\x0a"),
    "the same text again": message(2, b"one") + message(2, b"again"),
    "the graph again": message(7, b""),
    "a tag longer than needed": b"\x8a\x00\x00",
    "a length longer than needed": b"\x32\x81\x00a",
    "a number of eleven bytes": b"\x28" + b"\x80" * 10 + b"\x01",
    "a number past 64 bits": b"\x28" + b"\xff" * 9 + b"\x02",
    "a length past the end": b"\x32\x7f",
    "a tag without a value": b"\x28",
    "text that is no UTF-8": message(6, b"\xff"),
    "number 0": b"\x02\x00",
}


@pytest.mark.parametrize("added", ADDITIONS.values(), ids=ADDITIONS)
def test_what_protobufs_readers_take_otherwise(path: Path, added: bytes) -> None:
    path.write_bytes(make_graph().SerializeToString() + added)
    with pytest.raises(ValueError, match="damaged, or no ONNX file"):
        read_model(path)


NODES = {
    "usual": (NAMED, True),
    "an empty input": (message(1, b""), True),
    "a long name": (message(3, b"n" * 300), True),
    "a text for people": (message(6, b"words"), True),
    "the name twice": (NAMED + NAMED, False),
    "the operator twice": (message(4, b"A") + message(4, b"B"), False),
    "an unknown field last": (NAMED + message(77, b""), False),
    "an overload": (NAMED + message(8, b"o"), False),
    "an input that ends beyond": (b"\x0a\x7fx", False),
    "a name of another wire type": (field(3, 0, b"\x01"), False),
}


@pytest.mark.parametrize(("node", "is_read"), NODES.values(), ids=NODES)
def test_nodes(path: Path, node: bytes, is_read: bool) -> None:
    path.write_bytes(message(7, message(1, node)))
    if is_read:
        assert len(read_model(path).nodes) == 1
        return
    with pytest.raises(ValueError, match="damaged, or no ONNX file"):
        read_model(path)


RAW = field(1, 0, b"\x01") + field(2, 0, b"\x03") + message(8, b"w") + message(9, b"\x05")
TENSORS = {
    "usual": (RAW, True),
    "a text for people": (RAW + message(12, b"words"), True),
    "its bytes twice": (RAW + message(9, b"\x05"), False),
    "its type twice": (RAW + field(2, 0, b"\x03"), False),
    "its name twice": (RAW + message(8, b"w"), False),
    "an unknown field last": (RAW + field(80, 0, b"\x00"), False),
    "a segment": (RAW + message(3, b""), False),
    "packed dimensions": (message(1, b"\x01") + RAW[2:], False),
    "a place, and bytes": (RAW + message(13, message(1, b"location") + message(2, b"x")), False),
    "an odd place": (RAW + field(14, 0, b"\x02"), False),
    "a negative type": (field(1, 0, b"\x01") + field(2, 0, b"\xff" * 9 + b"\x01") + RAW[4:], False),
}


@pytest.mark.parametrize(("tensor", "is_read"), TENSORS.values(), ids=TENSORS)
def test_tensors(path: Path, tensor: bytes, is_read: bool) -> None:
    path.write_bytes(message(7, message(5, tensor)))
    if is_read:
        assert read_model(path).constants["w"].value == b"\x05"
        return
    with pytest.raises(ValueError, match="damaged, or no ONNX file"):
        read_model(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"\x3a", b"\x3a\x7f", b"\x0f"])
def test_what_is_no_onnx_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.onnx is damaged, or no ONNX file"):
        read_model(path)


def test_every_cut_is_refused(path: Path) -> None:
    whole = message(7, make_graph().graph.SerializeToString())
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="damaged, or no ONNX file"):
            read_model(path)


def test_a_large_file_is_read_alike(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not read at once; of large constants only the size is kept."""
    write(path, lambda model: model.graph.initializer.append(numpy_helper.from_array(np.ones(20_000), "many")))
    at_once = read_model(path)
    monkeypatch.setattr("runtime.graph.reader.READ_AT_ONCE", 1000)
    assert read_model(path) == at_once
    assert (at_once.constants["many"].shape, at_once.constants["many"].value) == ((20_000,), None)

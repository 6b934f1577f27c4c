"""What hostile graphs refer to: weights elsewhere on the disk, operators that are code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from runtime.model.onnx_scan import read_references

from runtime import load
from tests.support.damaging import build_small, copy_aged, link, list_again


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return copy_aged(whole, tmp_path)


def edit_graph(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    """Change the graph as someone would who writes new checksums too."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(graph)
    onnx.save(graph, folder / "model.onnx")
    list_again(folder)


def move_weights(folder: Path, location: str) -> None:
    def edit(graph: onnx.ModelProto) -> None:
        (first, *_) = (tensor for tensor in graph.graph.initializer if tensor.external_data)
        next(entry for entry in first.external_data if entry.key == "location").value = location

    edit_graph(folder, edit)


@pytest.mark.parametrize("location", ["../outside", "/etc/passwd", "sub/../../outside", "C:/outside", "..\\outside"])
def test_weights_outside_the_folder_are_refused(folder: Path, location: str) -> None:
    shutil.copy(folder / "model.onnx_data", folder.parent / "outside")
    move_weights(folder, location)
    with pytest.raises(ValueError, match=r"model\.onnx has its weights in .*outside the model folder"):
        load(folder)


@pytest.mark.parametrize("location", ["*/_ORT_MEM_ADDR_/*", "", "nothing-here"])
def test_weights_nowhere_are_refused(folder: Path, location: str) -> None:
    move_weights(folder, location)
    with pytest.raises((FileNotFoundError, ValueError), match=r"is missing|is not a file"):
        load(folder)


def test_weights_in_a_linked_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "model.onnx_data", tmp_path / "elsewhere" / "weights")
    move_weights(folder, "sub/weights")
    link(folder / "sub", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="outside the model folder"):
        load(folder)


@pytest.mark.parametrize("location", ["../outside", "/etc/passwd"])
def test_onnxruntime_of_today_refuses_them_too(folder: Path, location: str) -> None:
    shutil.copy(folder / "model.onnx_data", folder.parent / "outside")
    move_weights(folder, location)
    with pytest.raises(ValueError, match=r"(escapes|Absolute)"):
        load(folder, verify="off")


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on: deeper than protobuf itself would write."""
    data = b""
    for number in [6, 5, 1] * depth + [7]:
        length, size = len(data), b""
        while length > 0x7F:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        data = bytes([number << 3 | 2]) + size + bytes([length]) + data
    return data


def test_weights_are_found_wherever_they_hide(tmp_path: Path) -> None:
    def tensor(location: str) -> TensorProto:
        made = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=location)
        return made

    constant = helper.make_node("Constant", [], ["c"], value=tensor("node"))
    branch = helper.make_graph([constant], "branch", [], [], [tensor("branch")])
    condition = helper.make_node("If", ["x"], ["y"], then_branch=branch, domain="odd")
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[1])
    graph = helper.make_graph([condition], "g", [], [], [tensor("top")], sparse_initializer=[sparse])
    model = helper.make_model(graph)
    model.functions.add(name="f", domain="f").node.append(constant)
    model.training_info.add().initialization.CopyFrom(helper.make_graph([], "t", [], [], [tensor("training")]))
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    found = read_references(tmp_path / "g.onnx")
    assert found.locations == {"node", "branch", "values", "indices", "top", "training"}
    assert found.domains == {"odd"}


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 20, b"\x3a", b"\x3a\x7f", b"\x0f", nested(200)], ids=["0", "ff", "3a", "3a7f", "0f", "deep"]
)
def test_what_is_no_onnx_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"g\.onnx is damaged, or no ONNX file"):
        read_references(tmp_path / "g.onnx")


@pytest.mark.parametrize("domain", ["my.operators", "com.microsoft.evil"])
def test_custom_operators_are_refused(folder: Path, domain: str) -> None:
    def edit(graph: onnx.ModelProto) -> None:
        graph.graph.node[0].domain = domain
        graph.opset_import.append(helper.make_opsetid(domain, 1))

    edit_graph(folder, edit)
    with pytest.raises(ValueError, match=rf"operators of '{domain}': custom operators are code"):
        load(folder)
    with pytest.raises(ValueError, match="is missing, or damaged"):
        load(folder, verify="off")

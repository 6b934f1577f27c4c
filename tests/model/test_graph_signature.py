"""Names, types and shapes of a graph's inputs and outputs, compared with config.json, of trusted folders, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from runtime import load
from runtime.model.integrity import Verify


@pytest.fixture
def folder(demo_fp32_folder: Path, tmp_path: Path) -> Path:
    """A copy without checksums, to be changed."""
    ignored = shutil.ignore_patterns("SHA256SUMS")
    return Path(shutil.copytree(demo_fp32_folder, tmp_path / "changed", ignore=ignored))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_interface(folder: Path, edit: Callable[[onnx.GraphProto], object]) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(graph.graph)
    onnx.save(graph, folder / "model.onnx")


def rename_output(graph: onnx.GraphProto, old: str, new: str) -> None:
    """An output of another name, and a node that makes it."""
    graph.node.append(helper.make_node("Identity", [old], [new]))
    next(value for value in graph.output if value.name == old).name = new


def add_input(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))


def change_type(graph: onnx.GraphProto) -> None:
    """Float positions, and a node that makes whole numbers of them."""
    value = next(value for value in graph.input if value.name == "position_ids")
    value.name, value.type.tensor_type.elem_type = "position_ids", TensorProto.INT32
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "position_ids":
                node.input[index] = "cast_position_ids"
    graph.node.insert(0, helper.make_node("Cast", ["position_ids"], ["cast_position_ids"], to=TensorProto.INT64))


def fix_sequence(graph: onnx.GraphProto) -> None:
    value = next(value for value in graph.input if value.name == "input_ids")
    value.type.tensor_type.shape.dim[1].dim_value = 8


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add_input, r"has input 'use_cache_branch'"),
        (change_type, r"input 'position_ids' is a tensor\(int32\).*config\.json says tensor\(int64\)"),
        (fix_sequence, r"input 'input_ids' is .* of shape \['batch_size', 8\].*\['any', 'any'\]"),
        (lambda graph: rename_output(graph, "logits", "scores"), r"has no output 'logits'"),
    ],
)
def test_another_interface_is_refused(folder: Path, edit: Callable[[onnx.GraphProto], object], message: str) -> None:
    edit_interface(folder, edit)
    with pytest.raises(ValueError, match=message) as error:
        load(folder, verify="off")
    assert str(folder / "model.onnx") in str(error.value)


@pytest.mark.parametrize("n_layer", [7, 1_000])
def test_a_number_of_layers_is_compared_before_it_is_used(folder: Path, n_layer: int) -> None:
    edit_json(folder / "config.json", n_layer=n_layer)
    with pytest.raises(ValueError, match=f"config.json says {n_layer}"):
        load(folder)
    with pytest.raises(ValueError, match=f"n_layer 6, but config.json says {n_layer}"):
        load(folder, verify="off")


@pytest.mark.parametrize("verify", [None, "off"])
def test_a_width_that_the_heads_do_not_divide_is_refused(folder: Path, verify: Verify | None) -> None:
    edit_json(folder / "config.json", n_embd=258)
    with pytest.raises(ValueError, match=r"config\.json: n_embd 258 is no multiple of n_head 4"):
        load(folder, verify=verify)

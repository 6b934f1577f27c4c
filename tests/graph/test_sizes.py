"""Sizes of a plain export's tensors are those that onnxruntime finds; hostile ones are refused before they are made."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from runtime import load
from runtime.graph.architecture import Architecture, read_architecture
from runtime.graph.data import Attribute, Node
from runtime.graph.plain import check_plain
from runtime.graph.reader import OnnxModel, Tensor, read_model
from runtime.graph.sizes import _Pass, check_sizes


@pytest.mark.parametrize("n_ids", [1, 2, 7, 256, 512])
def test_every_pass_of_optimums_export_may_run(model: OnnxModel, architecture: Architecture, n_ids: int) -> None:
    check_sizes(model, architecture, n_ids)


@pytest.fixture(scope="module")
def open_graph(demo_reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    """optimum's export, which returns every value between its nodes, too."""
    path = tmp_path_factory.mktemp("open") / "model.onnx"
    graph = onnx.load(demo_reference_folder / "model.onnx")
    known = {value.name for value in graph.graph.output}
    names = [name for node in graph.graph.node for name in node.output if name and name not in known]
    graph.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(graph, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("n_ids", "n_past"), [(1, 0), (1, 9), (5, 0), (5, 3)])
def test_sizes_are_those_that_onnxruntime_finds(
    model: OnnxModel, architecture: Architecture, open_graph: onnxruntime.InferenceSession, n_ids: int, n_past: int
) -> None:
    one = _Pass(model, architecture, n_ids)
    one.check()
    past = np.zeros((1, architecture.n_head, n_past, architecture.head_dim), np.float32)
    feeds = {value.name: past for value in open_graph.get_inputs() if value.name.startswith("past")}
    feeds |= {"input_ids": np.ones((1, n_ids), np.int64), "attention_mask": np.ones((1, n_past + n_ids), np.int64)}
    feeds["position_ids"] = np.arange(n_past, n_past + n_ids)[None]
    names = [value.name for value in open_graph.get_outputs()]
    assert len(names) > 1000
    numbers = 0
    for name, found in zip(names, open_graph.run(names, feeds), strict=True):
        bounds = one.values[name]
        assert tuple(a + b * n_past for a, b in bounds.dims) == found.shape, name
        if bounds.numbers is not None:
            numbers += 1
            assert [a + b * n_past for a, b in bounds.numbers] == found.reshape(-1).tolist(), name
    assert numbers > 300


def node(operator: str, inputs: list[str], out: str, **attributes: Any) -> Node:
    made = [Attribute(name, "tensor" if isinstance(one, Tensor) else "int", one) for name, one in attributes.items()]
    return Node(operator, tuple(inputs), (out,), "", tuple(made), out)


def constant(out: str, *numbers: float, dtype: str = "int64", scalar: bool = False) -> Node:
    array = np.array(numbers[0] if scalar else numbers, dtype)
    return node("Constant", [], out, value=Tensor(out, dtype, array.shape, None, array.tobytes()))


LENGTH = [node("Shape", ["input_ids"], "s"), constant("at", 1), node("Gather", ["s", "at"], "n")]
HOSTILE: dict[str, list[Node]] = {
    "a product of sizes": [
        constant("a", 500),
        node("Mul", ["a", "a"], "b"),
        node("Mul", ["b", "b"], "c"),
        node("ConstantOfShape", ["c"], "y"),
    ],
    "a power": [constant("a", 500), node("Pow", ["a", "a"], "b"), node("ConstantOfShape", ["b"], "y")],
    "a float as a size": [
        constant("a", 1e12, dtype="float32"),
        node("Cast", ["a"], "b", to=7),
        node("ConstantOfShape", ["b"], "y"),
    ],
    "a range of floats": [
        *(constant(name, value, dtype="float32", scalar=True) for name, value in (("a", 0), ("b", 1e12), ("c", 1))),
        node("Range", ["a", "b", "c"], "y"),
    ],
    "a size of the ids": [node("ConstantOfShape", ["row"], "y")],
    "doubling": [node("Concat", ["logits" if i == 0 else f"x{i}"] * 2, f"x{i + 1}", axis=-1) for i in range(30)],
    "an outer product": [
        constant("to", -1, 1),
        constant("across", 1, -1),
        node("Reshape", ["logits", "to"], "a"),
        node("Reshape", ["logits", "across"], "b"),
        node("MatMul", ["a", "b"], "y"),
    ],
    "an outer sum": [
        constant("to", -1, 1),
        constant("across", 1, -1),
        node("Reshape", ["logits", "to"], "a"),
        node("Reshape", ["logits", "across"], "b"),
        node("Add", ["a", "b"], "y"),
    ],
    "expanded": [constant("a", 500, 500, 500, 500), node("Expand", ["at", "a"], "y")],
    "only at some length": [
        node("Shape", ["attention_mask"], "t"),
        node("Gather", ["t", "at"], "length"),
        constant("some", 100),
        node("Equal", ["length", "some"], "is"),
        constant("large", 8000),
        node("Where", ["is", "large", "at"], "size"),
        node("ConstantOfShape", ["size"], "y"),
    ],
    "a product of lengths": [
        node("Shape", ["attention_mask"], "t"),
        node("Mul", ["t", "t"], "b"),
        node("ConstantOfShape", ["b"], "y"),
    ],
    "a number that overflows": [
        constant("a", 2**30),
        node("Mul", ["a", "a"], "b"),
        node("Mul", ["b", "a"], "c"),
        constant("zero", 0),
        node("Equal", ["c", "zero"], "is"),
        node("Where", ["is", "b", "at"], "size"),
        node("ConstantOfShape", ["size"], "y"),
    ],
    "a number that is cast": [constant("a", 300), node("Cast", ["a"], "b", to=9), node("ConstantOfShape", ["b"], "y")],
    "a size that is 0 without a past": [
        node("Shape", ["past_key_values.0.key"], "t"),
        constant("two", 2),
        node("Gather", ["t", "two"], "p"),
        node("Reshape", ["position_ids", "p"], "y"),
    ],
    "a negative size": [constant("a", -5), node("ConstantOfShape", ["a"], "y")],
    "many products": [node("MatMul", ["logits", "square"], f"y{i}") for i in range(300)],
    "an axis beyond": [node("Gather", ["at", "at"], "y", axis=7), node("Transpose", ["y"], "z", perm=3)],
    "a name that is nowhere": [node("Relu", ["nowhere"], "y")],
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_sizes_are_refused(model: OnnxModel, architecture: Architecture, hostile: list[Node]) -> None:
    square = Tensor("square", "float32", (architecture.vocab_size, 8000), None, None)
    constants = model.constants | {"square": square}
    nodes = [*model.nodes, *LENGTH, node("Squeeze", ["input_ids"], "row"), *hostile]
    with pytest.raises(ValueError, match=r"is no plain export of GPT-2 that is run: .*; build a model folder"):
        for n_ids in (1, 256):
            check_sizes(dataclasses.replace(model, nodes=nodes, constants=constants), architecture, n_ids)


def test_a_bomb_that_the_list_allows_is_refused_before_onnxruntime_opens_it(
    demo_reference_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are small, and its operators are those of an export."""
    folder = Path(shutil.copytree(demo_reference_folder, tmp_path / "bomb"))
    bomb = onnx.load(folder / "model.onnx")
    bomb.graph.initializer.append(numpy_helper.from_array(np.array([500] * 4), "size"))
    bomb.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["bomb"]))
    onnx.save(bomb, folder / "model.onnx")
    check_plain(read_model(folder / "model.onnx"), read_architecture(folder))
    monkeypatch.setattr("runtime.model.model.Session", None)
    with pytest.raises(ValueError, match=r"'ConstantOfShape', makes up to 62,500,000,000 numbers"):
        load(folder)


def test_each_pass_is_asked_for_once(demo_reference_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("runtime.graph.sizes.check_sizes", lambda *given: asked.append(given[-1]))
    with load(demo_reference_folder) as model:
        cache = model.new_cache(32)
        for ids in ([1, 2, 3], [4], [5], [6, 7, 8]):
            cache.extend(ids)
    assert asked == [1, 3]


def test_a_pass_that_could_take_too_much_does_not_run(
    demo_reference_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(model: OnnxModel, architecture: Architecture, n_ids: int) -> None:
        if n_ids > 1:
            raise ValueError("too large")

    monkeypatch.setattr("runtime.graph.sizes.check_sizes", check)
    with load(demo_reference_folder) as model:
        cache = model.new_cache(32)
        cache.extend([1])
        with pytest.raises(ValueError, match="too large"):
            cache.extend([2, 3])
        assert cache.lengths == [1]

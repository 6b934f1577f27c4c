"""int8 with one scale a column: what it rounds, what the graph makes of it, and the model built of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxruntime import InferenceSession
from safetensors.numpy import load_file, save_file

import runtime
from export import build
from export.graph.onnx_file import fixed_array, inline_tensor, serialize
from export.quantize.dense import DenseInt8, StaticInt8, activation_grid, quantize_columns
from export.quantize.precision import Linear
from runtime.diagnostics.check import check_folder
from runtime.graph.data import Graph, Value
from runtime.graph.reader import read_model
from runtime.model.model import Model
from tests.conftest import DEMO
from tests.export.checkpoint.test_variants import VARIANTS
from tests.support.building import QUICK, run_here
from tests.support.checkpoints import (
    Floats,
    folder_logits,
    open_checkpoint,
    relative_error,
    some_ids,
    torch_logits,
    write_checkpoint,
)

# processors with dot-product instructions are better served by blocks, and the runtime says so
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 40), st.integers(1, 6)), elements=st.floats(-8, 8, width=32)
)


def dequantized(matrix: Floats) -> Floats:
    """The matrix that the kernel computes with."""
    quantized, scales = quantize_columns(matrix)
    result: Floats = quantized.astype(np.float32) * scales
    return result


@given(MATRICES)
@settings(deadline=None)
def test_a_weight_is_off_by_half_a_scale_at_most(matrix: Floats) -> None:
    matrix[np.abs(matrix) < 1e-30] = 0
    quantized, scales = quantize_columns(matrix)
    assert (quantized.shape, scales.shape) == (matrix.shape, matrix.shape[1:])
    assert (quantized.dtype, scales.dtype) == (np.int8, np.float32)
    assert (np.abs(dequantized(matrix) - matrix) <= 0.5001 * scales + 1e-12).all()


@given(MATRICES)
@settings(deadline=None)
def test_two_neighbours_in_a_column_never_saturate_16_bits(matrix: Floats) -> None:
    quantized = quantize_columns(matrix)[0].astype(int)
    for sign in (1, -1):
        pairs = np.add.reduceat(np.maximum(sign * quantized, 0), np.arange(0, len(quantized), 2))
        assert pairs.max(initial=0) * 255 <= 2**15 - 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("first", [128, 64, 0])
def test_the_product_is_exact_where_it_is_nearest_to_saturation(sign: int, first: int) -> None:
    weight = np.tile(np.array([[first], [128 - first]], np.float32), (32, 40)) * sign / 128
    x = np.array([[[1.0] * 64, [1, -1] * 32, [-1] * 64]], np.float32)
    result = linear(x, Linear(weight, np.zeros(40, np.float32)))
    expected = x @ dequantized(weight)
    assert np.allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_columns_of_zeros_and_many_rows() -> None:
    matrix = np.zeros((5000, 3), np.float32)
    matrix[:, 1] = np.linspace(-1, 1, 5000)
    quantized, scales = quantize_columns(matrix)
    assert (quantized[:, [0, 2]] == 0).all()
    assert scales.tolist() == [1, (matrix[-1, 1] + matrix[-2, 1]) / np.float32(127), 1]
    assert (np.abs(dequantized(matrix) - matrix) <= 0.5001 * scales).all()


def build_dense(checkpoint: Path, target: Path, *more: str) -> Path:
    build.main([str(checkpoint), "--kernel", "dense", "--output", str(target), *more])
    return target


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "tiny"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tiny: Path) -> Path:
    return build_dense(tiny, tiny.with_name("model"), *QUICK)


def test_logits_are_those_of_the_dequantized_weights(tiny: Path, model_folder: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("wte.weight"):
            weights[name] = np.ascontiguousarray(dequantized(weight.T).T)
        elif weight.ndim == 2 and not name.endswith("wpe.weight"):
            weights[name] = dequantized(weight)
    for path in tiny.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids, rounded = some_ids(64), open_checkpoint(tmp_path)
    logits = folder_logits(model_folder, ids)
    assert relative_error(logits, torch_logits(rounded, ids)) < 0.03  # activations are rounded too


@pytest.mark.parametrize(
    "variant",
    ["head size 40", "odd vocabulary beyond the tokenizer", "n_inner wider", "untied"]
    + [f"activation {name}" for name in ("gelu", "quick_gelu", "relu", "silu", "tanh")],
)
def test_logits_of_variants_are_near_transformers(tmp_path: Path, variant: str) -> None:
    oracle = write_checkpoint(tmp_path / "variant", **VARIANTS[variant])
    ids = some_ids(64, oracle.config.vocab_size)
    logits = folder_logits(build_dense(tmp_path / "variant", tmp_path / "model", *QUICK), ids)
    assert relative_error(logits, torch_logits(oracle, ids)) < 0.03


def test_a_row_in_a_batch_is_bit_equal_to_alone(model_folder: Path) -> None:
    rows = [some_ids(24, seed=seed) for seed in range(4)]
    with Model(model_folder, threads=1) as model:
        together = model.new_cache(32, rows=4)
        for row, ids in enumerate(rows):
            together.extend(ids, row=row)
        stepped = [np.copy(together.step(step)) for step in ([1, 2, 3, 4], [50, 60, 70, 80])]
        for row, ids in enumerate(rows):
            alone = model.new_cache(32)
            alone.extend(ids)
            for step, logits in zip(([1, 2, 3, 4], [50, 60, 70, 80]), stepped, strict=True):
                assert np.array_equal(alone.step([step[row]])[0], logits[row])


def run_graph(graph: Graph, arrays: dict[str, Any], feeds: dict[str, Any], shape: tuple[str | int, ...]) -> Floats:
    """Run the nodes with the output `y`."""
    graph.inputs += [
        Value(name, array.dtype.name, tuple(f"{name}.{i}" for i in range(array.ndim))) for name, array in feeds.items()
    ]
    graph.outputs.append(Value("y", "float32", shape))
    tensors = [
        inline_tensor(one.name, arrays[one.name] if one.value is None else fixed_array(one))
        for one in graph.constants.values()
    ]
    result: Floats = InferenceSession(serialize(graph, tensors)).run(["y"], feeds)[0]
    return result


def test_embedding_rows_are_the_dequantized_ones_exactly() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    ids = np.array([[0, 49, 7], [7, 7, 1]], np.int64)
    graph = Graph()
    kernel = DenseInt8().kernel_of("wte")
    kernel.store(graph, "wte", (50, 64))
    kernel.embed(graph, "wte", (50, 64), "y")
    rows = run_graph(graph, DenseInt8().round_matrix("wte", matrix), {"input_ids": ids}, ("a", "b", 64))
    assert np.array_equal(rows, dequantized(matrix.T).T[ids])


def linear(x: Floats, one: Linear, precision: DenseInt8 | None = None) -> Floats:
    """What the product makes of `x` [batch, sequence, n_in], the bias added."""
    precision = precision or DenseInt8()
    n_in, n_out = one.weight.shape
    graph = Graph()
    product, bias = precision.kernel_of("c").linear(graph, "x", "c", (n_in, n_out), one.floor)
    graph.node(*(("Add", [product, bias]) if bias else ("Identity", [product])), ["y"])
    arrays = precision.round_linear("c", one.weight) | {"c.bias": one.bias}
    return run_graph(graph, arrays, {"x": x}, ("a", "b", n_out))


@pytest.mark.parametrize("floor", [None, -0.17, 0.0])
def test_rows_have_their_own_scales_and_zeros_give_the_bias(floor: float | None) -> None:
    noise = np.random.default_rng(1)
    weight, bias = (noise.standard_normal(shape).astype(np.float32) for shape in ((64, 40), (40,)))
    x = noise.standard_normal((1, 3, 64)).astype(np.float32) * np.array([[1], [0], [1000]], np.float32)
    if floor is not None:
        x = np.maximum(x, np.float32(floor))
    result = linear(x, Linear(weight, bias, floor))
    assert np.array_equal(result[0, 1], bias)
    expected = x @ dequantized(weight) + bias
    for row in range(3):
        assert relative_error(result[0, row], expected[0, row]) < 0.02


def test_what_has_a_floor_is_rounded_finer() -> None:
    noise = np.random.default_rng(2)
    weight, bias = noise.standard_normal((256, 40)).astype(np.float32), np.zeros(40, np.float32)
    x = np.maximum(noise.standard_normal((1, 64, 256)).astype(np.float32), np.float32(-0.17))
    expected = x @ dequantized(weight)
    errors = {}
    for name, floor in (("symmetric", None), ("floored", -0.17)):
        errors[name] = relative_error(linear(x, Linear(weight, bias, floor)), expected)
    assert errors["floored"] < 0.75 * errors["symmetric"]


@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32))
def test_an_activation_grid_holds_its_range_and_zero(first: float, second: float) -> None:
    lowest, highest = sorted((first, second))
    grid = activation_grid("x", lowest, highest)
    step, middle = float(grid["x.step"][0]), int(grid["x.middle"][0])
    assert 0 <= middle <= 255
    # zero itself is on the grid, and the ends are off by half a step at most
    assert -middle * step <= min(lowest, 0) + 0.51 * step
    assert (255 - middle) * step >= max(highest, 0) - 0.51 * step


def test_a_static_product_is_that_of_rounded_and_clipped_inputs() -> None:
    noise = np.random.default_rng(4)
    weight, bias = noise.standard_normal((64, 24)).astype(np.float32), noise.standard_normal(24).astype(np.float32)
    x = noise.standard_normal((1, 9, 64)).astype(np.float32)
    precision = StaticInt8({"c": (-1.5, 2.5)})
    quantized, scales = quantize_columns(weight)
    rounded = np.clip(np.rint(x.astype(np.float64) / np.float32(4 / 255)) + 96, 0, 255) - 96
    expected = rounded @ quantized.astype(np.float64) * (4 / 255) * scales + bias
    assert relative_error(linear(x, Linear(weight, bias), precision), expected) < 1e-5


def test_static_activations_decode_with_fewer_nodes(tmp_path: Path) -> None:
    """The demo is verified with static ranges, and its twin without calibration is refused by name."""
    arguments = [str(DEMO), "--activations", "static", "--no-reference", "--output", str(tmp_path / "model")]
    build.main(arguments)
    report = json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))
    assert (report["kernel"], report["activations"], report["upgraded"]) == ("dense", "static", [])
    # twice what a scale for each row costs: 0.0018
    assert 0.0018 < report["mean_kl"] < 0.005
    assert check_folder(tmp_path / "model").passed
    operators = [node.operator for node in read_model(tmp_path / "model" / "model.onnx").nodes]
    # the symmetric grid of one row remains for the output layer alone; mlp.c_proj has a floor, and no Abs
    assert operators.count("Abs") == 1


def test_the_demo_loses_little_and_checks_and_writes(tmp_path: Path) -> None:
    target = build_dense(DEMO, tmp_path / "model", "--no-reference")
    report = json.loads((target / "quality.json").read_text(encoding="utf-8"))
    assert (report["precision"], report["kernel"], report["block_size"]) == ("int8", "dense", None)
    assert report["loss_percent"] < 0.5
    assert report["top1_agreement"] > 0.95
    assert check_folder(target).passed
    with Model(target) as model:
        assert model.kernel == "dense"
        assert len(runtime.generate("Once upon a time", model=model, max_new_tokens=8)) > 0


@pytest.mark.parametrize(
    "typed",
    [
        "--kernel dense --precision int4",
        "--kernel dense --precision fp32",
        "--kernel dense --block-size 32",
        "--precision int4 --block-size 256",
        "--precision fp32 --block-size 32",
    ],
)
def test_combinations_that_make_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, str(DEMO), *typed.split()) == 2
    assert list(tmp_path.iterdir()) == []

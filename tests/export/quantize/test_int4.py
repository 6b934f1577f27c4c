"""Blocks of 4-bit integers: what they lose, how they are packed, and the models built of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.neural_compressor import weight_only

import runtime
from export import build
from export.graph.onnx_file import fixed_array, inline_tensor, serialize
from export.quantize import int4
from export.quantize.int4 import Int4, Packed, halve, quantize_int4
from export.quantize.precision import Arrays
from export.verify.quality import measure_quality
from runtime.diagnostics.check import check_folder
from runtime.graph.data import Graph, Value
from runtime.graph.kernels import FrequentRows
from runtime.model.model import Model
from tests.conftest import DEMO
from tests.support.building import QUICK
from tests.support.checkpoints import (
    Floats,
    build_model,
    folder_logits,
    relative_error,
    some_ids,
    torch_logits,
    write_checkpoint,
)

Bytes = NDArray[np.uint8]


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Floats, int]:
    """Rows of blocks, of any sign and offset, and the size of a block."""
    block_size, n_out, n_blocks = draw(st.sampled_from([16, 32])), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    elements = st.floats(-1, 1, width=32)
    matrix = draw(arrays.arrays(np.float32, (n_out, n_blocks * block_size), elements=elements))
    offset, largest = draw(st.sampled_from([0.0, -2.0, 0.5])), draw(st.sampled_from([1e-6, 1.0, 1e4]))
    return (matrix + np.float32(offset)) * np.float32(largest), block_size


def unpack(packed: Bytes) -> Bytes:
    """Low half first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def dequantize(packed: Bytes, scales: Floats, zeros: Bytes) -> Floats:
    """[n_out, n_blocks, block_size / 2] and its scales and zero points -> [n_out, n_in]."""
    points = unpack(zeros)[:, : scales.shape[1], None].astype(np.float32)
    matrix: Floats = ((unpack(packed) - points) * scales[..., None]).reshape(len(packed), -1)
    return matrix


def min_max(matrix: Floats, block_size: int) -> Floats:
    """The matrix after the plain way: the block's range, zero included, cut into 15 steps."""
    blocks = matrix.reshape(-1, block_size)
    low, high = np.minimum(blocks.min(-1), 0)[:, None], np.maximum(blocks.max(-1), 0)[:, None]
    step = (high - low) / np.float32(15)
    step[step == 0] = 1
    zero = np.clip(np.rint(-low / step), 0, 15)
    rounded: Floats = ((np.clip(np.rint(blocks / step) + zero, 0, 15) - zero) * step).reshape(matrix.shape)
    return rounded


def squared_error(matrix: Floats, other: Floats, block_size: int) -> NDArray[np.float64]:
    """Of each block."""
    difference = matrix.astype(np.float64) - other
    errors: NDArray[np.float64] = np.square(difference).reshape(-1, block_size).sum(-1)
    return errors


@given(matrices())
@settings(deadline=None)
def test_no_block_loses_more_than_by_its_range(case: tuple[Floats, int]) -> None:
    matrix, block_size = case
    matrix[np.abs(matrix) < 1e-12] = 0  # smaller ones have no squares in fp32, and no weight is so small
    ours = squared_error(matrix, dequantize(*quantize_int4(matrix, block_size)), block_size)
    plain = squared_error(matrix, min_max(matrix, block_size), block_size)
    ulps = 1e-5 * np.square(matrix.astype(np.float64)).reshape(-1, block_size).sum(-1)
    assert (ours <= plain * 1.001 + ulps).all()


def test_normal_weights_lose_clearly_less_than_by_their_range() -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    ours = squared_error(matrix, dequantize(*quantize_int4(matrix, 32)), 32).sum()
    assert ours < 0.95 * squared_error(matrix, min_max(matrix, 32), 32).sum()


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4])
def test_shapes_and_types(n_blocks: int) -> None:
    packed, scales, zeros = quantize_int4(np.ones((5, 32 * n_blocks), np.float32), 32)
    assert (packed.shape, scales.shape, zeros.shape) == ((5, n_blocks, 16), (5, n_blocks), (5, (n_blocks + 1) // 2))
    assert (packed.dtype, scales.dtype, zeros.dtype) == (np.uint8, np.float32, np.uint8)


def test_zeros_stay_zeros() -> None:
    matrix = np.zeros((2, 64), np.float32)
    matrix[1, 40] = 3
    packed, scales, zeros = quantize_int4(matrix, 32)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert np.abs(dequantize(packed, scales, zeros) - matrix).max() < 1e-6


@pytest.mark.parametrize("n_in", [16, 33, 48])
def test_rows_that_do_not_divide_are_refused(n_in: int) -> None:
    with pytest.raises(ValueError, match=f"rows of {n_in} do not divide into blocks of 32"):
        quantize_int4(np.ones((2, n_in), np.float32), 32)


def product(x: Floats, matrix: Floats, block_size: int, level: int) -> Floats:
    """One MatMulNBits node of onnxruntime: x [n, n_in] times the quantized matrix transposed."""
    packed, scales, zeros = quantize_int4(matrix, block_size)
    stored = {"q": packed, "scale": scales, "zero": zeros}
    sizes = {"N": matrix.shape[0], "K": matrix.shape[1], "bits": 4, "block_size": block_size}
    node = helper.make_node("MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft", accuracy_level=level, **sizes)
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    constants = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "product", [inputs], [outputs], constants)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    result: Floats = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("level", "close"), [(0, 1e-5), (4, 0.02)])
def test_onnxruntime_reads_the_packing(block_size: int, n_blocks: int, level: int, close: float) -> None:
    noise = np.random.default_rng(block_size + n_blocks)
    matrix = noise.standard_normal((24, n_blocks * block_size)).astype(np.float32)
    matrix += noise.uniform(-2, 2, (24, n_blocks)).astype(np.float32).repeat(block_size, 1)  # zero points of all kinds
    x = noise.standard_normal((3, matrix.shape[1])).astype(np.float32)
    expected = x @ dequantize(*quantize_int4(matrix, block_size)).T
    assert relative_error(product(x, matrix, block_size, level), expected) < close


@pytest.mark.parametrize("block_size", [32, 64])
def test_logits_are_near_transformers(tmp_path: Path, block_size: int) -> None:
    oracle = write_checkpoint(tmp_path / "tiny", tie_word_embeddings=False)
    ids = some_ids(64)
    logits = folder_logits(build_model(tmp_path / "tiny", "int4", block_size), ids)
    assert relative_error(logits, torch_logits(oracle, ids)) < 0.25


@pytest.mark.parametrize(
    ("block_size", "calibrated", "kl", "agreement"),
    [(32, True, 0.02, 0.88), pytest.param(64, False, 0.08, 0.8, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("full_calibration")
def test_the_demo_loses_little_and_checks_and_writes(
    tmp_path: Path, block_size: int, calibrated: bool, kl: float, agreement: float
) -> None:
    target = tmp_path / "model"
    arguments = ["--precision", "int4", "--block-size", str(block_size), "--no-reference"]
    build.main([str(DEMO), "--output", str(target), *arguments, *([] if calibrated else ["--no-calibration"])])
    report = json.loads((target / "quality.json").read_text(encoding="utf-8"))
    assert (report["precision"], report["kernel"], report["block_size"]) == ("int4", "block", block_size)
    assert report["calibrated"] is calibrated
    assert ("calibrated on text" in (target / "README.md").read_text(encoding="utf-8")) is calibrated
    assert report["loss_percent"] < 4
    assert report["mean_kl"] < kl
    assert report["top1_agreement"] > agreement
    assert check_folder(target).passed
    with Model(target) as model:
        assert len(runtime.generate("Once upon a time", model=model, max_new_tokens=8)) > 0


def run_graph(graph: Graph, arrays: Arrays, out: str, feeds: dict[str, NDArray[Any]]) -> Floats:
    """Run the nodes of a graph whose constants are `arrays`; rows are the bytes of the weights in another shape."""
    graph.inputs += [Value(name, array.dtype.name, tuple(map(str, array.shape))) for name, array in feeds.items()]
    graph.outputs.append(Value(out, "float32", ("a", "b", "c")))
    tensors = []
    for one in graph.constants.values():
        array = fixed_array(one) if one.value is not None else arrays[one.same_bytes or one.name]
        tensors.append(inline_tensor(one.name, array.reshape(one.shape)))
    result: Floats = onnxruntime.InferenceSession(serialize(graph, tensors)).run([out], feeds)[0]
    return result


def scales_of(arrays: Arrays, name: str) -> Floats:
    scales: Floats = arrays[f"{name}.half_scale"].astype(np.float32) * arrays[f"{name}.unit"]
    return scales


def vocabulary(n_vocab: int, n_embd: int) -> tuple[Arrays, Floats]:
    """The constants of a matrix of noise, and the matrix that they stand for."""
    matrix = np.random.default_rng(n_vocab).standard_normal((n_vocab, n_embd)).astype(np.float32)
    arrays = Int4(32).round_matrix("wte", matrix)
    first = (arrays["wte.first.q"].astype(np.float32) - 128) * scales_of(arrays, "wte.first")[..., None]
    rest = dequantize(arrays["wte.rest.q"], scales_of(arrays, "wte.rest"), arrays["wte.rest.zero"])
    stored: Floats = np.concatenate([first.reshape(len(first), -1), rest])
    assert relative_error(stored[: len(first)], matrix[: len(first)]) < 0.01
    assert relative_error(stored, matrix) < 0.1
    return arrays, stored


@pytest.mark.parametrize(("n_vocab", "n_embd"), [(2, 32), (50, 64), (51, 96), (300, 128)])
def test_the_embedding_looks_up_rows_of_both_parts(n_vocab: int, n_embd: int) -> None:
    arrays, stored = vocabulary(n_vocab, n_embd)
    graph = Graph()
    kernel = FrequentRows(32)
    kernel.store(graph, "wte", (n_vocab, n_embd))
    kernel.embed(graph, "wte", (n_vocab, n_embd), "y")
    border = kernel.n_first(n_vocab)
    ids = np.array([[0, border - 1, border], [n_vocab - 1, border, 0]], np.int64)
    np.testing.assert_array_equal(run_graph(graph, arrays, "y", {"input_ids": ids}), stored[ids])


@pytest.mark.parametrize(("n_vocab", "n_embd"), [(2, 32), (51, 96), (300, 128)])
def test_the_output_layer_multiplies_by_the_rows_of_the_embedding(n_vocab: int, n_embd: int) -> None:
    arrays, stored = vocabulary(n_vocab, n_embd)
    graph = Graph()
    kernel = FrequentRows(32)
    kernel.store(graph, "wte", (n_vocab, n_embd))
    kernel.logits(graph, "x", "wte", (n_vocab, n_embd), "y")
    x = np.random.default_rng(1).standard_normal((2, 3, n_embd)).astype(np.float32)
    assert relative_error(run_graph(graph, arrays, "y", {"x": x}), x @ stored.T) < 0.02


@given(st.floats(-30, 4), st.floats(0, 6))
@settings(deadline=None)
def test_half_scales_are_near_whatever_their_size(smallest: float, decades: float) -> None:
    """Relative to each scale, over six decades; fp16 alone would be subnormal below 6e-5."""
    scales = (10 ** np.linspace(smallest, smallest + decades, 50)).astype(np.float32)
    half, unit = halve(scales)
    assert half.dtype == np.float16
    assert unit.shape == (1,)
    np.testing.assert_allclose(half.astype(np.float32) * unit, scales, rtol=2**-10.9)


def test_weights_of_zeros_have_half_scales() -> None:
    arrays = Int4(32).round_linear("c", np.zeros((64, 8), np.float32))
    assert np.isfinite(scales_of(arrays, "c")).all()
    assert (unpack(arrays["c.q"]) == unpack(arrays["c.zero"])[:, :2, None]).all()


def quantizer(library: Callable[..., tuple[Any, Any, Any]]) -> Callable[[Floats, int, object], Packed]:
    """One of onnxruntime's own quantizers of blocks in the place of ours; it has no use for moments."""

    def quantized(matrix: Floats, block_size: int, moments: object = None) -> Packed:
        n_out, n_blocks = len(matrix), matrix.shape[1] // block_size
        values, scales, zeros = library(np.ascontiguousarray(matrix).reshape(-1, block_size), 4, block_size)
        points = np.pad(zeros.reshape(n_out, n_blocks).astype(np.uint8), ((0, 0), (0, n_blocks % 2)))
        packed = int4._pack(values.reshape(n_out, n_blocks, block_size).astype(np.uint8))
        return packed, scales.reshape(n_out, n_blocks).astype(np.float32), int4._pack(points)

    return quantized


QUANTIZERS = {
    "calibrated": (quantize_int4, []),
    "a search in each block": (quantize_int4, ["--no-calibration"]),
    "onnxruntime's k-quant": (quantizer(weight_only.quant_tensor_k_quant_cpu), ["--no-calibration"]),
    "onnxruntime's plain rounding": (quantizer(weight_only.quant_tensor), ["--no-calibration"]),
}


@pytest.mark.slow
def test_the_demo_loses_less_than_by_the_quantizers_of_onnxruntime(
    tmp_path: Path, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pytest tests/export/quantize/test_int4.py -m slow -rP` shows the figures."""
    found = {}
    for name, (quantize, options) in QUANTIZERS.items():
        monkeypatch.setattr(int4, "quantize_int4", quantize)
        build.main([str(DEMO), "--precision", "int4", *QUICK, *options, "--output", str(tmp_path / name)])
        text = DEMO / "evaluation.txt"
        found[name] = measure_quality(tmp_path / name, demo_fp32_folder, "the fused fp32 graph", text, tmp_path)
        print(f"{name}: loss {found[name].loss_percent:.3f} %, mean KL {found[name].mean_kl:.5f}")
    calibrated, searched, *others = (one.mean_kl for one in found.values())
    assert calibrated < 0.5 * searched
    assert all(searched < other for other in others)

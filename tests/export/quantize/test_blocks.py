"""Blocks of int8: what they round, and what the products of the graph make of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from export.quantize import blocks
from export.quantize.blocks import dequantize, quantize
from tests.conftest import DEMO
from tests.support.checkpoints import (
    Floats,
    build_model,
    folder_logits,
    open_checkpoint,
    relative_error,
    some_ids,
    torch_logits,
    write_checkpoint,
)

BLOCKS = st.sampled_from([1, 2, 8, 32])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Floats, int]:
    """A matrix of finite fp32, outliers, zeros and the smallest numbers among them, and a block size for its rows."""
    block_size, n_out, n_blocks = draw(BLOCKS), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    largest = draw(st.sampled_from([2.5e-43, 1e-38, 1e-35, 1e-3, 1.0, 1e4, 3e38]))
    elements = st.floats(-1, 1, width=32)
    matrix = draw(arrays.arrays(np.float32, (n_out, n_blocks * block_size), elements=elements))
    return matrix * np.float32(largest), block_size


def scale_of_each(scales: Floats, block_size: int) -> Floats:
    return np.repeat(scales, block_size, axis=1)


@given(matrices())
@settings(deadline=None)
def test_a_weight_is_off_by_half_a_scale_at_most(case: tuple[Floats, int]) -> None:
    matrix, block_size = case
    quantized, scales = quantize(matrix, block_size)
    assert quantized.shape == (len(matrix), matrix.shape[1] // block_size, block_size)
    assert scales.shape == quantized.shape[:2]
    assert (quantized.dtype, scales.dtype) == (np.uint8, np.float32)
    assert quantized.min() >= 1  # 255 levels: as far below zero as above
    error = np.abs(dequantize(quantized, scales).astype(np.float64) - matrix)
    assert (error <= 0.5001 * scale_of_each(scales, block_size)).all()


@given(matrices())
@settings(deadline=None)
def test_zeros_stay_zeros_and_signs_stay_signs(case: tuple[Floats, int]) -> None:
    matrix, block_size = case
    rounded = dequantize(*quantize(matrix, block_size))
    assert (rounded[matrix == 0] == 0).all()
    assert (rounded * np.sign(matrix) >= 0).all()
    assert (dequantize(*quantize(-matrix, block_size)) == -rounded).all()


@given(matrices())
@settings(deadline=None)
def test_rounding_twice_is_rounding_once(case: tuple[Floats, int]) -> None:
    matrix, block_size = case
    quantized, scales = quantize(matrix, block_size)
    again, scales_again = quantize(dequantize(quantized, scales), block_size)
    assert (again == quantized).all()
    zeros = (quantized == 128).all(-1)
    np.testing.assert_allclose(scales_again[~zeros], scales[~zeros], rtol=1e-6)


@given(matrices(), st.integers(1, 4))
@settings(deadline=None)
def test_rows_at_once_change_nothing(case: tuple[Floats, int], rows: int) -> None:
    whole = quantize(*case)
    with mock.patch.object(blocks, "ROWS_AT_ONCE", rows):
        in_parts = quantize(*case)
    assert all((a == b).all() for a, b in zip(whole, in_parts, strict=True))


@given(n_in=st.integers(1, 200), block_size=st.sampled_from([16, 32, 64, 128]))
def test_blocks_that_do_not_divide_a_row_are_refused(n_in: int, block_size: int) -> None:
    matrix = np.ones((2, n_in), np.float32)
    if n_in % block_size:
        with pytest.raises(ValueError, match=f"rows of {n_in} do not divide into blocks of {block_size}"):
            quantize(matrix, block_size)
    else:
        assert (dequantize(*quantize(matrix, block_size)) == matrix).all()


def test_small_example_by_hand() -> None:
    matrix = np.array([[127, -127, 0.4, -0.6, 0, 0, 0, 0], [2.54, 1.0, -0.03, 0.02, -254, 3, -1, 0.5]], np.float32)
    quantized, scales = quantize(matrix, 4)
    assert quantized.tolist() == [
        [[255, 1, 128, 127], [128, 128, 128, 128]],
        [[255, 178, 126, 129], [1, 130, 128, 128]],
    ]
    np.testing.assert_allclose(scales, [[1, 1], [0.02, 2]], rtol=1e-6)
    expected = [[127, -127, 0, -1, 0, 0, 0, 0], [2.54, 1.0, -0.04, 0.02, -254, 4, 0, 0]]
    np.testing.assert_allclose(dequantize(quantized, scales), expected, rtol=1e-6)


def round_weights(model: GPT2LMHeadModel, block_size: int) -> GPT2LMHeadModel:
    """transformers' fp32 with the weights that the int8 graph stores."""
    rounded = copy.deepcopy(model)

    def apply(weight: torch.Tensor) -> torch.Tensor:
        return torch.tensor(dequantize(*quantize(weight.contiguous().numpy(), block_size)))

    with torch.no_grad():
        rounded.transformer.wte.weight.copy_(apply(rounded.transformer.wte.weight))
        for module in rounded.modules():
            if isinstance(module, Conv1D):
                module.weight.copy_(apply(module.weight.T).T)
    return rounded


def round_activations(model: GPT2LMHeadModel, block_size: int) -> GPT2LMHeadModel:
    """The same, and every product's input rounded in blocks as it comes, which is what the int8 kernels do."""
    rounded = copy.deepcopy(model)

    def apply(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        blocks = inputs[0].unflatten(-1, (-1, block_size))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        return (((blocks / scale).round() * scale).flatten(-2),)

    for module in rounded.modules():
        if isinstance(module, Conv1D) or module is rounded.lm_head:
            module.register_forward_pre_hook(apply)
    return rounded


@pytest.fixture(scope="module", params=[32, 64])
def block_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module", params=["tiny", "demo"])
def checkpoint(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    if request.param == "demo":
        return DEMO
    folder = tmp_path_factory.mktemp("quantization") / "tiny"
    write_checkpoint(folder)
    return folder


def test_int8_graph_computes_with_the_rounded_weights(tmp_path: Path, checkpoint: Path, block_size: int) -> None:
    """What separates it from fp32 with those weights is the rounding of activations, where the kernels do it."""
    oracle, ids = open_checkpoint(checkpoint), some_ids(64)
    logits = folder_logits(build_model(checkpoint, "int8", block_size, into=tmp_path), ids, cache="fp32")
    weights = round_weights(oracle, block_size)
    by_weights = torch_logits(weights, ids)
    by_both = torch_logits(round_activations(weights, block_size), ids)
    activations = relative_error(by_both, by_weights)
    assert 0.001 < activations < 0.05
    assert relative_error(logits, by_weights) < 1.5 * activations
    assert relative_error(logits, torch_logits(oracle, ids)) < 0.03


def test_products_of_one_layer_round_as_described(tmp_path: Path, block_size: int) -> None:
    """One last bit can round an activation the other way, and more in every later layer; here few positions."""
    oracle, ids = write_checkpoint(tmp_path / "shallow", n_layer=1), some_ids(96)
    logits = folder_logits(build_model(tmp_path / "shallow", "int8", block_size), ids, cache="fp32")
    weights = round_weights(oracle, block_size)
    described = [torch_logits(model, ids) for model in (weights, round_activations(weights, block_size))]
    off = [np.abs(logits - expected).max(-1) / expected.std() for expected in described]
    assert min(np.median(each) for each in off) < 1e-5

"""Rounding in which weights make up for one another's errors: the paper's steps, and what they gain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.quantize.gptq import DAMPING, Doubles, round_together
from export.quantize.int4_blocks import Rounded, round_alone, search, to_levels
from tests.support.checkpoints import Floats

calm = settings(deadline=None, max_examples=40)


@st.composite
def products(draw: st.DrawFn) -> tuple[Floats, Floats, int]:
    """A matrix [n_out, n_in], inputs [n, n_in] that depend on each other, and the size of a block."""
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    block_size, n_blocks, n_out = draw(st.sampled_from([16, 32])), draw(st.integers(1, 4)), draw(st.integers(8, 16))
    n_in = block_size * n_blocks
    mixed = noise.standard_normal((draw(st.integers(n_in, 3 * n_in)), n_in)) @ noise.standard_normal((n_in, n_in))
    largest = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    return normal(noise, (n_out, n_in)), (mixed * largest).astype(np.float32), block_size


def normal(noise: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return noise.standard_normal(shape).astype(np.float32)


def moments(inputs: Floats) -> Doubles:
    return inputs.T.astype(np.float64) @ inputs / len(inputs)


def dequantized(rounded: Rounded, block_size: int) -> Floats:
    values, scales, zeros = rounded
    matrix: Floats = (values - zeros.repeat(block_size, 1).astype(np.float32)) * scales.repeat(block_size, 1)
    return matrix


def lost(block: Floats, scale: Floats, zero: NDArray[np.uint8]) -> Floats:
    """Squared error of a block's rows [n_out, block_size] with these scales and zero points."""
    off: Floats = (to_levels(block, scale[:, None], zero[:, None]) - zero[:, None]) * scale[:, None] - block
    return np.square(off).sum(-1)


def damped(second: Doubles) -> Doubles:
    return second + DAMPING * second.diagonal().mean() * np.eye(len(second))


def error(matrix: Floats, other: Floats, second: Doubles) -> float:
    """Mean square of what the product is off by, damping included: what the rounding is to make small."""
    off = (matrix - other).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", off, damped(second), off))


@given(products())
@calm
def test_the_product_is_nearer_than_with_blocks_rounded_alone(case: tuple[Floats, Floats, int]) -> None:
    """Nothing is promised for a single row; over eight, the worst of 6,000 cases lost 3 % more."""
    matrix, inputs, block_size = case
    second = moments(inputs)
    together = dequantized(round_together(matrix, second.copy(), block_size), block_size)
    alone = dequantized(round_alone(matrix, block_size), block_size)
    assert error(matrix, together, second) <= 1.3 * error(matrix, alone, second)


def test_it_gains_much_where_inputs_depend_on_each_other() -> None:
    noise = np.random.default_rng(0)
    inputs = normal(noise, (600, 20)) @ normal(noise, (20, 256)) + 0.1 * normal(noise, (600, 256))
    matrix, second = normal(noise, (64, 256)), moments(inputs)
    together = dequantized(round_together(matrix, second.copy(), 32), 32)
    alone = dequantized(round_alone(matrix, 32), 32)
    assert error(matrix, together, second) < 0.2 * error(matrix, alone, second)


@given(products())
@calm
def test_it_is_elimination_weight_by_weight(case: tuple[Floats, Floats, int]) -> None:
    """Optimal brain surgery's own update, which needs no factor: after each weight its row leaves the inverse."""
    matrix, inputs, block_size = case
    second = moments(inputs)
    values, scales, zeros = round_together(matrix, second.copy(), block_size)
    rest, inverse = matrix.astype(np.float64), np.linalg.inv(damped(second))
    for i in range(len(second)):
        if i % block_size == 0:
            block = rest[:, i : i + block_size].astype(np.float32)
            chosen, best = (scales[:, i // block_size], zeros[:, i // block_size]), search(block)
            assert (lost(block, *chosen) <= 1.001 * lost(block, *best)).all()  # the same, but for near ties
        scale, zero = scales[:, i // block_size], zeros[:, i // block_size].astype(np.float32)
        exact = rest[:, i] / scale + zero
        assert np.abs(np.clip(exact, 0, 15) - values[:, i]).max() <= 0.5 + 1e-2
        off = rest[:, i] - (values[:, i] - zero) * scale
        rest -= np.outer(off / inverse[i, i], inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]


@pytest.mark.parametrize("second", [np.eye(64), np.zeros((64, 64)), 1e-9 * np.eye(64)])
def test_inputs_that_do_not_depend_on_each_other_change_nothing(second: Doubles) -> None:
    matrix = normal(np.random.default_rng(1), (5, 64))
    together, alone = round_together(matrix, second.copy(), 32), round_alone(matrix, 32)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_matrix_stays_as_it_was() -> None:
    noise = np.random.default_rng(2)
    matrix, before = (normal(np.random.default_rng(3), (3, 32)) for _ in range(2))
    round_together(matrix, moments(normal(noise, (40, 32))), 32)
    np.testing.assert_array_equal(matrix, before)

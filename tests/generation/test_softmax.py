"""Softmax and its relatives, beside torch's, and in the form they have by definition."""

from __future__ import annotations

import doctest
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from runtime import _math
from runtime._math import likeliest, log_softmax, perplexity, softmax
from runtime.generation.logits import history
from runtime.generation.speculation import proposers

LOGITS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5),
    elements=st.floats(-80, 80, width=32),
)


@pytest.mark.parametrize("module", [_math, history, proposers], ids=lambda module: module.__name__)
def test_the_examples_are_right(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@given(logits=LOGITS)
def test_log_softmax_is_that_of_torch(logits: NDArray[np.float32]) -> None:
    before = logits.copy()
    expected = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, atol=2e-5)
    np.testing.assert_array_equal(logits, before)


@given(scores=LOGITS)
def test_softmax_is_that_of_torch(scores: NDArray[np.float32]) -> None:
    before = scores.copy()
    np.testing.assert_allclose(softmax(scores), torch.softmax(torch.from_numpy(scores), -1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("function", [log_softmax, softmax])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_and_type_stay_and_the_memory_is_new(function: object, dtype: type) -> None:
    assert callable(function)
    for given_ in (np.ones((2, 3, 4), dtype), np.ones((4, 3), dtype).T, np.ones((0, 5), dtype), np.ones(7, dtype)):
        found = function(given_)
        assert (found.shape, found.dtype) == (given_.shape, given_.dtype)
        assert not np.shares_memory(found, given_)
    transposed = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype).T
    np.testing.assert_allclose(function(transposed), function(transposed.copy()), rtol=1e-6)


def test_a_row_is_the_same_alone_and_among_others() -> None:
    """To the last bit: the log-probabilities of a row do not depend on the batch that it was in."""
    logits = np.random.default_rng(1).standard_normal((6, 50_257)).astype(np.float32) * 5
    together = log_softmax(logits)
    for row, alone in zip(logits, together, strict=True):
        np.testing.assert_array_equal(log_softmax(row), alone)
        np.testing.assert_array_equal(log_softmax(row[None])[0], alone)


def test_what_is_impossible_stays_so() -> None:
    logits = np.array([0, -np.inf, 0], np.float32)
    np.testing.assert_allclose(log_softmax(logits), [-math.log(2), -np.inf, -math.log(2)], rtol=1e-6)
    assert softmax(logits).tolist() == [0.5, 0, 0.5]


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    assert perplexity(-6.0, 3) == pytest.approx(math.exp(2))
    assert perplexity(-1e9, 1) == math.inf
    assert perplexity(0.0, 5) == 1


@given(logits=arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-9, 0, width=32), unique=True))
def test_the_likeliest_are_those_of_a_sort(logits: NDArray[np.float32]) -> None:
    for n in range(1, len(logits) + 1):
        found = likeliest(logits, n)
        assert list(found) == np.argsort(-logits, kind="stable")[:n].tolist()
        assert list(found.values()) == sorted(found.values(), reverse=True)

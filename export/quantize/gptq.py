"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round weights to 4 bits with the least error of the product's output.

Weights are rounded one input channel after the other. After each channel, the weights that are not rounded yet are
changed to compensate for its rounding error on the calibration inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.int4_blocks import Rounded, search, to_levels
from export.quantize.precision import Floats

Doubles = NDArray[np.float64]
# Bounds the memory of temporaries.
ROWS_AT_ONCE = 8192
DAMPING = 0.01
"""Added to the diagonal of the moments, relative to the mean of the diagonal, as in the paper."""


def round_together(matrix: Floats, moments: Doubles, block_size: int) -> Rounded:
    """Round a matrix [n_out, n_in] to 4 bits in blocks of `block_size` weights.

    moments: [n_in, n_in], the mean of x x^T over the inputs x of the product. The array is overwritten, since a copy
    of it would be the largest array of the build.
    """
    factor = _inverse_factor(moments)
    # Rows do not depend on each other: a part at a time bounds the memory of temporaries.
    parts = [
        _round_rows(matrix[start : start + ROWS_AT_ONCE], factor, block_size)
        for start in range(0, len(matrix), ROWS_AT_ONCE)
    ]
    values, scales, zeros = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(scales), np.concatenate(zeros)


def _round_rows(matrix: Floats, factor: Floats, block_size: int) -> Rounded:
    """Round some rows of the matrix; factor: see `_inverse_factor`."""
    # The weights, changed to compensate for the errors of those that are rounded already.
    rest = np.array(matrix.T, np.float32, order="C")  # [n_in, n_out]
    values = np.empty(rest.shape, np.uint8)
    scales = []
    zeros = []
    for start in range(0, len(rest), block_size):
        end = start + block_size
        scale, zero = search(np.ascontiguousarray(rest[start:end].T))
        errors = np.empty_like(rest[start:end])
        for i in range(start, end):
            levels = to_levels(rest[i], scale, zero)
            values[i] = levels
            errors[i - start] = (rest[i] - (levels - zero) * scale) / factor[i, i]
            rest[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - start])
        rest[end:] -= factor[start:end, end:].T @ errors
        scales.append(scale)
        zeros.append(zero)
    return np.ascontiguousarray(values.T), np.stack(scales, 1), np.stack(zeros, 1)


def _inverse_factor(moments: Doubles) -> Floats:
    """The upper Cholesky factor of the inverse of the damped moments, [n_in, n_in].

    On row i the diagonal gives the cost of a rounding error in weight i; the entries after it say how much the later
    weights change to compensate for the error.
    """
    # If all inputs are 0 so is the mean; 1 keeps the matrix invertible.
    mean = moments.trace() / len(moments) or 1
    moments[np.diag_indices_from(moments)] += DAMPING * mean
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(moments)).T, np.float32)

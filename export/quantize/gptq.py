"""GPTQ, Frantar et al. 2022 (arXiv 2210.17323): rounding to 4 bits that minimizes the error of the product.

After a weight is rounded, the weights that are not rounded yet are changed to compensate for its error, over the
inputs that the model has on the calibration text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.int4_blocks import Rounded, search, to_levels
from export.quantize.precision import Floats

Doubles = NDArray[np.float64]
DAMPING = 0.01
"""This part of the mean of the diagonal is added to the diagonal of the moments, as in the paper."""


def round_together(matrix: Floats, moments: Doubles, block_size: int) -> Rounded:
    """Round a matrix [n_out, n_in] to 4 bits in blocks of `block_size` weights.

    moments: [n_in, n_in], the mean of x x^T over the inputs x of the product. They are overwritten: a copy would be
    the largest array of the build.
    """
    factor = _inverse_factor(moments)
    # the weights, with the errors of those already rounded compensated
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

    Row i holds the cost of an error in weight i, and how the weights after it compensate for it.
    """
    # 1 where all inputs are 0
    mean = moments.trace() / len(moments) or 1
    moments[np.diag_indices_from(moments)] += DAMPING * mean
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(moments)).T, np.float32)

"""Rounding to 4 bits in which the weights that follow make up for each one's error: GPTQ, Frantar et al. 2022.

What counts is not how near each weight stays, but how near the product does, over inputs as the model has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.int4_blocks import Rounded, search, to_levels
from export.quantize.precision import Floats

Doubles = NDArray[np.float64]
DAMPING = 0.01  # of the mean second moment, added to each, as in the paper


def round_together(matrix: Floats, moments: Doubles, block_size: int) -> Rounded:
    """Round [n_out, n_in]; moments: [n_in, n_in], the mean of x x^T over the inputs x that it is multiplied with.

    The moments are overwritten: they may be the largest array there is.
    """
    makes_up = _make_up(moments)
    rest = np.array(matrix.T, np.float32, order="C")  # [n_in, n_out]: what is left to round, errors made up for
    values, scales, zeros = np.empty(rest.shape, np.uint8), [], []
    for start in range(0, len(rest), block_size):
        end = start + block_size
        scale, zero = search(np.ascontiguousarray(rest[start:end].T))
        errors = np.empty_like(rest[start:end])
        for i in range(start, end):
            values[i] = levels = to_levels(rest[i], scale, zero)
            errors[i - start] = (rest[i] - (levels - zero) * scale) / makes_up[i, i]
            rest[i + 1 : end] -= np.outer(makes_up[i, i + 1 : end], errors[i - start])
        rest[end:] -= makes_up[start:end, end:].T @ errors
        scales.append(scale)
        zeros.append(zero)
    return np.ascontiguousarray(values.T), np.stack(scales, 1), np.stack(zeros, 1)


def _make_up(moments: Doubles) -> Floats:
    """[n_in, n_in], upper: row i says what an error in weight i costs, and how those after it make up for it.

    The Cholesky factor of the inverse.
    """
    moments[np.diag_indices_from(moments)] += DAMPING * (moments.trace() / len(moments) or 1)  # 1: all inputs are 0
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(moments)).T, np.float32)

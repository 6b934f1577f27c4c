"""Weights as int8 with one scale a column: onnxruntime has fast kernels for that on every processor.

For blocks it has none on processors without dot-product instructions, and dequantizes the weights at every call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.blocks import TINY
from export.quantize.precision import Arrays, Floats
from runtime.graph.kernels import Dense, Kernel

COLUMNS_AT_ONCE = 2048  # bounds the temporaries


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """[n_in, n_out] -> signed [n_in, n_out], scales [n_out].

    The AVX2 and SSE kernels add the products of two neighbours in a column in 16 bits, which saturate. With
    activations of at most 255, that cannot happen where the two weights add to no more than 128.
    """
    quantized, scales = np.empty(matrix.shape, np.int8), np.empty(matrix.shape[1], np.float32)
    for start in range(0, matrix.shape[1], COLUMNS_AT_ONCE):
        columns = slice(start, start + COLUMNS_AT_ONCE)
        part = matrix[:, columns]
        scale = _largest_pairs(part) / np.float32(127)  # rounding adds at most 1
        scale[scale < TINY] = 1  # a column of zeros, or of what rounds to them
        quantized[:, columns], scales[columns] = np.rint(part / scale), scale
    return quantized, scales


def _largest_pairs(matrix: Floats) -> Floats:
    """[n_in, n_out] -> [n_out]: the largest sum, of either sign, that two neighbours in a column reach."""
    pairs = np.arange(0, len(matrix), 2)
    up, down = (np.add.reduceat(np.maximum(sign * matrix, 0), pairs).max(0) for sign in (1, -1))
    largest: Floats = np.maximum(up, down)
    return largest


class DenseInt8:
    """Products of u8 and s8; see `runtime.graph.kernels.Dense`."""

    kernel = "dense"
    needs_even_rows = False

    def kernel_of(self, name: str) -> Kernel:  # noqa: ARG002
        return Dense()

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        quantized, scales = quantize_columns(matrix.T)
        # [n_vocab, n_embd]: a lookup touches whole rows
        rounded: Arrays = {f"{name}.q": quantized.T, f"{name}.scale": scales}
        return rounded | {f"{name}.zero": np.zeros(len(matrix), np.int8)}

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        quantized, scales = quantize_columns(weight)
        return {f"{name}.q": quantized, f"{name}.scale": scales}

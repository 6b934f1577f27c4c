"""The dense kernel: int8 weights with one scale for each output column.

onnxruntime has fast kernels for such products on every processor. For weights in blocks it has none on processors
without dot-product instructions: there it dequantizes the weights at every call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from export.quantize.blocks import TINY
from export.quantize.precision import Arrays, Floats
from runtime.graph.kernels import Dense, Kernel, Static

Range = tuple[float, float]
"""The lowest and the highest input of a product."""
LARGEST = 255
"""Of uint8."""
# Bounds the memory of temporaries.
COLUMNS_AT_ONCE = 2048


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Round a matrix [n_in, n_out] to int8 [n_in, n_out] with scales [n_out].

    The AVX2 and SSE kernels add the products of two vertical neighbours in a 16-bit integer, which saturates. With
    activations of at most 255 it cannot saturate if two neighbours of one sign add up to at most 128. The scale of a
    column is therefore set by its largest sum of two neighbours, not by its largest weight.
    """
    quantized = np.empty(matrix.shape, np.int8)
    scales = np.empty(matrix.shape[1], np.float32)
    for start in range(0, matrix.shape[1], COLUMNS_AT_ONCE):
        columns = slice(start, start + COLUMNS_AT_ONCE)
        part = matrix[:, columns]
        # 127, not 128: rounding both weights of a pair adds at most 1 to their sum.
        scale = _largest_pairs(part) / np.float32(127)
        # Avoid a division by zero: the column is all zeros, or so small that it rounds to zeros.
        scale[scale < TINY] = 1
        quantized[:, columns] = np.rint(part / scale)
        scales[columns] = scale
    return quantized, scales


def _largest_pairs(matrix: Floats) -> Floats:
    """The largest sum of two neighbours of one sign in each column, as an absolute value: [n_in, n_out] -> [n_out]."""
    pairs = np.arange(0, len(matrix), 2)
    # A sum may overflow to infinity. The logits are no numbers then, and the build refuses the weights.
    with np.errstate(over="ignore"):
        positive = np.add.reduceat(np.maximum(matrix, 0), pairs).max(0)
        negative = np.add.reduceat(np.maximum(-matrix, 0), pairs).max(0)
    largest: Floats = np.maximum(positive, negative)
    return largest


class DenseInt8:
    """Products of uint8 activations and int8 weights; see `runtime.graph.kernels.Dense`."""

    kernel = "dense"
    needs_even_rows = False

    def kernel_of(self, name: str) -> Kernel:  # noqa: ARG002
        return Dense()

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        quantized, scales = quantize_columns(matrix.T)
        # Stored as [n_vocab, n_embd], so that a lookup of the embedding reads one contiguous row.
        rounded: Arrays = {f"{name}.q": quantized.T, f"{name}.scale": scales}
        # Zero points, which only graphs of earlier formats have.
        return rounded | {f"{name}.zero": np.zeros(len(matrix), np.int8)}

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        quantized, scales = quantize_columns(weight)
        return {f"{name}.q": quantized, f"{name}.scale": scales}


@dataclasses.dataclass(frozen=True)
class StaticInt8(DenseInt8):
    """The dense kernel; products with a measured range have one scale for all activations, see `kernels.Static`.

    ranges: by the name of the product.
    """

    ranges: Mapping[str, Range]

    def kernel_of(self, name: str) -> Kernel:
        return Static() if name in self.ranges else Dense()

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        arrays = super().round_linear(name, weight)
        return arrays | activation_grid(name, *self.ranges[name]) if name in self.ranges else arrays


def activation_grid(name: str, lowest: float, highest: float) -> Arrays:
    """Scale and zero point that map a range, extended to contain 0, to uint8.

    >>> activation_grid("x", -1.0, 1.55)
    {'x.step': array([0.01], dtype=float32), 'x.middle': array([100], dtype=uint8)}
    """
    low = min(lowest, 0.0)
    high = max(highest, 0.0)
    # Avoid a division by zero: all inputs are zeros, or so small that they round to zeros.
    step = max((high - low) / LARGEST, float(TINY))
    return {f"{name}.step": np.array([step], np.float32), f"{name}.middle": np.array([round(-low / step)], np.uint8)}

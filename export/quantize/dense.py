"""Weights as int8 with one scale a column: onnxruntime has fast kernels for that on every processor.

For blocks it has none on processors without dot-product instructions, and dequantizes the weights at every call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.graph.onnx_file import MICROSOFT, OnnxGraph
from export.quantize.blocks import TINY
from export.quantize.precision import Floats, Linear

COLUMNS_AT_ONCE = 2048  # bounds the temporaries
SYMMETRIC_ZERO = 128  # the grid's zero, of 0 to 255: as far down as up
FLOORED_ZERO = 64  # for what hardly goes below 0, such as the output of gelu: half as many steps again above it


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


class _Rounded(NamedTuple):
    """Names of what activations became."""

    x: str  # u8, of the shape they had
    step: str  # of the grid
    middle: str  # its zero
    largest: str  # what each row is to be multiplied by again


class DenseInt8:
    """Products of u8 and s8 with one scale a row of activations and one a column of weights.

    Each row is divided by its own largest number, rounded to a fixed grid, and multiplied by that number after.
    `DynamicQuantizeMatMul` would choose the grid from the whole tensor, and a row would depend on its neighbours.
    """

    kernel = "dense"
    needs_even_rows = False

    def store(self, file: OnnxGraph, name: str, matrix: Floats) -> None:
        quantized, scales = quantize_columns(matrix.T)
        file.constant(f"{name}.q", quantized.T)  # [n_vocab, n_embd]: a lookup touches whole rows
        file.constant(f"{name}.scale", scales)

    def embed(self, file: OnnxGraph, name: str, out: str) -> str:
        node = file.node
        node("Gather", [f"{name}.q", "input_ids"], [f"{out}.rows"])  # [batch, sequence, n_embd]
        node("Cast", [f"{out}.rows"], [f"{out}.cast"], to=TensorProto.FLOAT)
        node("Gather", [f"{name}.scale", "input_ids"], [f"{out}.scale"])
        last = file.constant(f"{out}.last", np.array([-1], np.int64))
        node("Unsqueeze", [f"{out}.scale", last], [f"{out}.scales"])
        return node("Mul", [f"{out}.cast", f"{out}.scales"], [out])

    def logits(self, file: OnnxGraph, x: str, name: str, out: str) -> str:
        """By `QGemm`, which takes the matrix as the embedding reads it, and x with two dimensions."""
        node, (n_vocab, n_embd) = file.node, file.shape(f"{name}.q")
        rounded = self._round(file, x, out)
        flat = file.constant(f"{out}.flat", np.array([-1, n_embd], np.int64))
        node("Reshape", [rounded.x, flat], [f"{out}.rounded_rows"])
        weights = [f"{name}.q", f"{name}.scale", file.constant(f"{name}.zero", np.zeros(n_vocab, np.int8))]
        inputs = [f"{out}.rounded_rows", rounded.step, rounded.middle, *weights]
        node("QGemm", inputs, [f"{out}.unit_rows"], MICROSOFT, transB=1)
        node("Shape", [x], [f"{out}.places"], end=2)
        width = file.constant(f"{out}.width", np.array([n_vocab], np.int64))
        node("Concat", [f"{out}.places", width], [f"{out}.shape"], axis=0)
        node("Reshape", [f"{out}.unit_rows", f"{out}.shape"], [f"{out}.units"])
        return node("Mul", [f"{out}.units", rounded.largest], [out])

    def linear(self, file: OnnxGraph, x: str, name: str, linear: Linear) -> tuple[str, str]:
        quantized, scales = quantize_columns(linear.weight)
        out, rounded = f"{name}.out", self._round(file, x, f"{name}.out", linear.floor)
        weights = [file.constant(f"{name}.q", quantized), rounded.step, file.constant(f"{name}.scale", scales)]
        file.node("MatMulIntegerToFloat", [rounded.x, *weights, rounded.middle], [f"{out}.units"], MICROSOFT)
        product = file.node("Mul", [f"{out}.units", rounded.largest], [out])
        return product, file.constant(f"{name}.bias", linear.bias)

    def _round(self, file: OnnxGraph, x: str, out: str, floor: float | None = None) -> _Rounded:
        """Each row in units of its largest number, on the grid."""
        zero = SYMMETRIC_ZERO if floor is None else FLOORED_ZERO
        largest = self._largest(file, x, out, floor)
        # a row of zeros is divided by 0: whatever integers that makes are multiplied by 0 again
        file.node("Div", [x, largest], [f"{out}.unit"])
        step = file.constant(f"{out}.step", np.array(1 / (255 - zero), np.float32))
        middle = file.constant(f"{out}.middle", np.array(zero, np.uint8))
        rounded = file.node("QuantizeLinear", [f"{out}.unit", step, middle], [f"{out}.rounded"])
        return _Rounded(rounded, step, middle, largest)

    def _largest(self, file: OnnxGraph, x: str, out: str, floor: float | None) -> str:
        """What each row is divided by, [..., 1]: the grid goes up to it, and down at least to the floor."""
        last = file.constant(f"{out}.axis", np.array([-1], np.int64))
        if floor is None:
            return file.node("ReduceMax", [file.node("Abs", [x], [f"{out}.abs"]), last], [f"{out}.largest"])
        largest = file.node("ReduceMax", [x, last], [f"{out}.largest"])
        least = np.array(-floor * (255 - FLOORED_ZERO) / FLOORED_ZERO, np.float32)
        return file.node("Max", [largest, file.constant(f"{out}.least", least)], [f"{out}.range"])

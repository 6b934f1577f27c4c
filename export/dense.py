"""Weights as int8 with one scale a column: onnxruntime has fast kernels for that on every processor.

For blocks it has none on processors without dot-product instructions, and dequantizes the weights at every call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.onnx_file import MICROSOFT, OnnxFile
from export.precision import Floats, Linear
from export.quantization import TINY

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


class DenseInt8:
    """Products of u8 and s8 with one scale a row of activations and one a column of weights.

    Each row is divided by its own largest number, rounded to a fixed grid, and multiplied by that number after.
    `DynamicQuantizeMatMul` would choose the grid from the whole tensor, and a row would depend on its neighbours.
    """

    kernel = "dense"

    def store(self, file: OnnxFile, name: str, matrix: Floats) -> None:
        quantized, scales = quantize_columns(matrix.T)
        file.constant(f"{name}.q", quantized)  # [n_embd, n_vocab]
        file.constant(f"{name}.scale", scales)

    def embed(self, file: OnnxFile, name: str, out: str) -> str:
        node = file.node
        node("Gather", [f"{name}.q", "input_ids"], [f"{out}.columns"], axis=1)  # [n_embd, batch, sequence]
        node("Transpose", [f"{out}.columns"], [f"{out}.rows"], perm=[1, 2, 0])
        node("Cast", [f"{out}.rows"], [f"{out}.cast"], to=TensorProto.FLOAT)
        node("Gather", [f"{name}.scale", "input_ids"], [f"{out}.scale"])
        last = file.constant(f"{out}.last", np.array([-1], np.int64))
        node("Unsqueeze", [f"{out}.scale", last], [f"{out}.scales"])
        return node("Mul", [f"{out}.cast", f"{out}.scales"], [out])

    def logits(self, file: OnnxFile, x: str, name: str, out: str) -> str:
        return self._product(file, x, name, out)

    def linear(self, file: OnnxFile, x: str, name: str, linear: Linear) -> tuple[str, str]:
        quantized, scales = quantize_columns(linear.weight)
        file.constant(f"{name}.q", quantized)
        file.constant(f"{name}.scale", scales)
        return self._product(file, x, name, f"{name}.out", linear.floor), file.constant(f"{name}.bias", linear.bias)

    def _product(self, file: OnnxFile, x: str, name: str, out: str, floor: float | None = None) -> str:
        node, zero = file.node, SYMMETRIC_ZERO if floor is None else FLOORED_ZERO
        largest = self._largest(file, x, out, floor)
        # a row of zeros is divided by 0: whatever integers that makes are multiplied by 0 again
        node("Div", [x, largest], [f"{out}.unit"])
        step = file.constant(f"{out}.step", np.array(1 / (255 - zero), np.float32))
        middle = file.constant(f"{out}.middle", np.array(zero, np.uint8))
        node("QuantizeLinear", [f"{out}.unit", step, middle], [f"{out}.rounded"])
        inputs = [f"{out}.rounded", f"{name}.q", step, f"{name}.scale", middle]
        node("MatMulIntegerToFloat", inputs, [f"{out}.units"], MICROSOFT)
        return node("Mul", [f"{out}.units", largest], [out])

    def _largest(self, file: OnnxFile, x: str, out: str, floor: float | None) -> str:
        """What each row is divided by, [..., 1]: the grid goes up to it, and down at least to the floor."""
        last = file.constant(f"{out}.axis", np.array([-1], np.int64))
        if floor is None:
            return file.node("ReduceMax", [file.node("Abs", [x], [f"{out}.abs"]), last], [f"{out}.largest"])
        largest = file.node("ReduceMax", [x, last], [f"{out}.largest"])
        least = np.array(-floor * (255 - FLOORED_ZERO) / FLOORED_ZERO, np.float32)
        return file.node("Max", [largest, file.constant(f"{out}.least", least)], [f"{out}.range"])

"""Weights as int8 with one scale a column, for processors without dot-product instructions.

The block kernels do not exist there, and onnxruntime dequantizes the weights at every call instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.onnx_file import MICROSOFT, OnnxFile
from export.precision import Floats
from export.quantization import ROWS_AT_ONCE, TINY


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """[n_in, n_out] -> unsigned [n_in, n_out] around 128, scales [n_out].

    Unsigned, since on AVX2 the product of u8 and s8 saturates and that of u8 and u8 does not.
    """
    scales = np.abs(matrix).max(0) / np.float32(127)
    scales[scales < TINY] = 1  # a column of zeros, or of what rounds to them
    quantized = np.empty(matrix.shape, np.uint8)
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        quantized[rows] = np.rint(matrix[rows] / scales) + 128
    return quantized, scales


class DenseInt8:
    """Products of u8 and u8 with one scale a row of activations and one a column of weights.

    Each row is divided by its own maximum, rounded to a fixed grid from -1 to 1, and multiplied by the maximum after.
    `DynamicQuantizeMatMul` would choose the grid from the whole tensor, and a row would depend on its neighbours.
    """

    kernel = "dense"

    def store(self, file: OnnxFile, name: str, matrix: Floats) -> None:
        quantized, scales = quantize_columns(matrix.T)
        file.constant(f"{name}.q", quantized)  # [n_embd, n_vocab]
        file.constant(f"{name}.scale", scales)
        file.constant(f"{name}.zero", np.full(scales.shape, 128, np.uint8))

    def embed(self, file: OnnxFile, name: str, out: str) -> str:
        node = file.node
        node("Gather", [f"{name}.q", "input_ids"], [f"{out}.columns"], axis=1)  # [n_embd, batch, sequence]
        node("Transpose", [f"{out}.columns"], [f"{out}.rows"], perm=[1, 2, 0])
        node("Cast", [f"{out}.rows"], [f"{out}.cast"], to=TensorProto.FLOAT)
        node("Sub", [f"{out}.cast", file.constant(f"{out}.middle", np.array(128, np.float32))], [f"{out}.centred"])
        node("Gather", [f"{name}.scale", "input_ids"], [f"{out}.scale"])
        last = file.constant(f"{out}.last", np.array([-1], np.int64))
        node("Unsqueeze", [f"{out}.scale", last], [f"{out}.scales"])
        return node("Mul", [f"{out}.centred", f"{out}.scales"], [out])

    def logits(self, file: OnnxFile, x: str, name: str, out: str) -> str:
        return self._product(file, x, [f"{name}.q", f"{name}.scale", f"{name}.zero"], out)

    def linear(self, file: OnnxFile, x: str, name: str, weight: Floats, bias: Floats, out: str) -> str:
        quantized, scales = quantize_columns(weight)
        stored = [file.constant(f"{name}.q", quantized), file.constant(f"{name}.scale", scales)]
        zero = file.constant(f"{name}.zero", np.full(scales.shape, 128, np.uint8))
        product = self._product(file, x, [*stored, zero], f"{out}.product")
        return file.node("Add", [product, file.constant(f"{name}.bias", bias)], [out])

    def _product(self, file: OnnxFile, x: str, stored: list[str], out: str) -> str:
        node, last = file.node, file.constant(f"{out}.axis", np.array([-1], np.int64))
        node("Abs", [x], [f"{out}.abs"])
        node("ReduceMax", [f"{out}.abs", last], [f"{out}.largest"])
        # a row of zeros stays one
        node("Max", [f"{out}.largest", file.constant(f"{out}.least", np.array(1e-30, np.float32))], [f"{out}.max"])
        node("Div", [x, f"{out}.max"], [f"{out}.unit"])
        step = file.constant(f"{out}.step", np.array(1 / 127, np.float32))
        middle = file.constant(f"{out}.middle", np.array(128, np.uint8))
        node("QuantizeLinear", [f"{out}.unit", step, middle], [f"{out}.rounded"])
        weight, scale, zero = stored
        inputs = [f"{out}.rounded", weight, step, scale, middle, zero]
        node("MatMulIntegerToFloat", inputs, [f"{out}.units"], MICROSOFT)
        return node("Mul", [f"{out}.units", f"{out}.max"], [out])

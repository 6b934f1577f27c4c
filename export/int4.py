"""An fp32 matrix as blocks of 4-bit integers, each with a scale and a zero point that are searched for."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from export.onnx_file import MICROSOFT, OnnxFile
from export.precision import Floats, Int8, Linear

LEVELS = 15  # of 4 bits, 0 to 15
SPANS = np.linspace(0.84, 1.0, 5, dtype=np.float32)  # of the blocks' own range: clipping the ends may pay
BLOCKS_AT_ONCE = 65536  # bounds the temporaries


def quantize_int4(matrix: Floats, block_size: int) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """Scale and zero point of each block that lose least, in squared error, among several spans and shifts.

    [n_out, n_in] -> packed [n_out, n_in / block_size, block_size / 2], scales [n_out, n_in / block_size], zero
    points [n_out, ceil(n_in / block_size / 2)]: two 4-bit numbers a byte, the first in the low half, as
    `MatMulNBits` reads them. Raises ValueError if `block_size` does not divide n_in.
    """
    n_out, n_in = matrix.shape
    if n_in % block_size:
        raise ValueError(f"rows of {n_in} do not divide into blocks of {block_size}")
    blocks = np.ascontiguousarray(matrix).reshape(-1, block_size)
    quantized = np.empty(blocks.shape, np.uint8)
    scales, zeros = np.empty(len(blocks), np.float32), np.empty(len(blocks), np.uint8)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        quantized[part], scales[part], zeros[part] = _search(blocks[part])
    n_blocks = n_in // block_size
    points = np.pad(zeros.reshape(n_out, n_blocks), ((0, 0), (0, n_blocks % 2)))
    return _pack(quantized.reshape(n_out, n_blocks, block_size)), scales.reshape(n_out, n_blocks), _pack(points)


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(values[..., 0::2] | values[..., 1::2] << 4)


def _search(blocks: Floats) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """The best of all candidates for each of [n, block_size]: 4-bit values, scales [n], zero points [n]."""
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    least = np.full(len(blocks), np.inf, np.float32)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    for span in SPANS:
        step = (high - low) * (span / LEVELS)
        step[step == 0] = 1  # a block of zeros
        for shift in (-1, 0, 1):
            zero = np.clip(np.rint(-low * span / step) + shift, 0, LEVELS)
            centred = _round(blocks, step, zero) - zero[:, None]
            scale = _fit(blocks, centred, step)
            error = np.square(centred * scale[:, None] - blocks).sum(-1)
            better = error < least
            least[better], scales[better], zeros[better] = error[better], scale[better], zero[better]
    return _round(blocks, scales, zeros).astype(np.uint8), scales, zeros.astype(np.uint8)


def _round(blocks: Floats, scales: Floats, zeros: Floats) -> Floats:
    rounded: Floats = np.clip(np.rint(blocks / scales[:, None]) + zeros[:, None], 0, LEVELS)
    return rounded


def _fit(blocks: Floats, centred: Floats, step: Floats) -> Floats:
    """The scale that fits the rounded values best: least squares."""
    norm = np.square(centred).sum(-1)
    fitted = (centred * blocks).sum(-1) / np.where(norm > 0, norm, 1)
    return np.where(fitted > 0, fitted, step)


@dataclasses.dataclass(frozen=True)
class Int4(Int8):
    """Products in blocks of 4-bit integers; `wte` stays int8, since the output layer loses most by rounding."""

    def linear(self, file: OnnxFile, x: str, name: str, linear: Linear) -> tuple[str, str]:
        """See `Precision.linear`."""
        packed, scales, zeros = quantize_int4(linear.weight.T, self.block_size)
        stored = [file.constant(f"{name}.q", packed), file.constant(f"{name}.scale", scales)]
        stored += [file.constant(f"{name}.zero", zeros)]
        inputs = [x, *stored, "", file.constant(f"{name}.bias", linear.bias)]
        sizes = {"N": linear.weight.shape[1], "K": linear.weight.shape[0], "bits": 4, "block_size": self.block_size}
        return file.node("MatMulNBits", inputs, [f"{name}.out"], MICROSOFT, accuracy_level=4, **sizes), ""

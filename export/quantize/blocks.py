"""An fp32 matrix as blocks of 8-bit integers, one scale a block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Bounds the memory of temporaries: an fp32 matrix of 50,257 x 1,600 is 320 MB, and each step would copy it.
ROWS_AT_ONCE = 2048
# Numbers below it are subnormal and lose digits, so that a scale could be off by half.
TINY = np.finfo(np.float32).tiny


def quantize(matrix: NDArray[np.float32], block_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric rounding to 255 levels, as `MatMulNBits` with 8 bits and no zero points reads them (128 is zero).

    [n_out, n_in] -> quantized [n_out, n_in / block_size, block_size], scales [n_out, n_in / block_size].
    A weight is off by at most half a scale. Raises ValueError if `block_size` does not divide n_in.
    """
    n_out, n_in = matrix.shape
    if n_in % block_size:
        raise ValueError(f"rows of {n_in} do not divide into blocks of {block_size}")
    quantized = np.empty((n_out, n_in // block_size, block_size), np.uint8)
    scales = np.empty(quantized.shape[:2], np.float32)
    for start in range(0, n_out, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        blocks = matrix[rows].reshape(-1, *quantized.shape[1:])
        scale = np.abs(blocks).max(-1) / np.float32(127)
        # Avoid a division by zero: the block is all zeros, or so small that it rounds to zeros.
        scale[scale < TINY] = 1
        scales[rows] = scale
        quantized[rows] = np.rint(blocks / scale[..., None]) + 128
    return quantized, scales


def dequantize(quantized: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix that the kernels compute with: [n_out, n_blocks, block_size] -> [n_out, n_in]."""
    blocks = (quantized.astype(np.float32) - 128) * scales[..., None]
    return blocks.reshape(len(blocks), -1)

"""Round blocks of weights to 4 bits, and search for the scale and zero point of each block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.blocks import TINY
from export.quantize.precision import Floats

# The largest 4-bit integer.
LEVELS = 15
# Ranges to try, relative to the range of a block: clipping its extremes may reduce the squared error.
SPANS = np.linspace(0.84, 1.0, 5, dtype=np.float32)
# Bounds the memory of temporaries.
BLOCKS_AT_ONCE = 65536

Rounded = tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]
"""Values [n_out, n_in], scales and zero points [n_out, n_in / block_size]."""


def round_alone(matrix: Floats, block_size: int) -> Rounded:
    """Round every block of a matrix [n_out, n_in] by itself, with the least squared error of its weights."""
    n_out, n_in = matrix.shape
    blocks = np.ascontiguousarray(matrix).reshape(-1, block_size)
    values = np.empty(blocks.shape, np.uint8)
    scales = np.empty(len(blocks), np.float32)
    zeros = np.empty(len(blocks), np.uint8)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        scales[part], zeros[part] = search(blocks[part])
        values[part] = to_levels(blocks[part], scales[part, None], zeros[part, None])
    n_blocks = n_in // block_size
    return values.reshape(n_out, n_in), scales.reshape(n_out, n_blocks), zeros.reshape(n_out, n_blocks)


def search(blocks: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """Scales [n] and zero points [n] for blocks [n, block_size]: the best of several ranges and zero points."""
    # Divide each block by its largest weight, so that squares neither overflow nor underflow.
    unit = np.abs(blocks).max(-1)
    # Avoid a division by zero in blocks of zeros.
    unit[unit < TINY] = 1
    blocks = blocks / unit[:, None]
    low = np.minimum(blocks.min(-1), 0)
    high = np.maximum(blocks.max(-1), 0)
    least = np.full(len(blocks), np.inf, np.float32)
    scales = np.ones_like(low)
    zeros = np.zeros_like(low)
    for span in SPANS:
        step = (high - low) * (span / LEVELS)
        step[step == 0] = 1
        for shift in (-1, 0, 1):
            zero = np.clip(np.rint(-low * span / step) + shift, 0, LEVELS)
            centred = to_levels(blocks, step[:, None], zero[:, None]) - zero[:, None]
            scale = _fit(blocks, centred, step)
            error = np.square(centred * scale[:, None] - blocks).sum(-1)
            better = error < least
            least[better] = error[better]
            scales[better] = scale[better]
            zeros[better] = zero[better]
    return scales * unit, zeros.astype(np.uint8)


def to_levels(weights: Floats, scales: Floats, zeros: NDArray[np.uint8] | Floats) -> Floats:
    """The nearest integers from 0 to 15, as floats. Scales and zero points broadcast against the weights."""
    levels: Floats = np.clip(np.rint(weights / scales) + zeros, 0, LEVELS)
    return levels


def _fit(blocks: Floats, centred: Floats, step: Floats) -> Floats:
    """The least-squares scale for weights that are rounded already, [n]; `step` where it would not be positive.

    centred: the rounded values minus the zero point, [n, block_size].
    """
    norm = np.square(centred).sum(-1)
    fitted = (centred * blocks).sum(-1) / np.where(norm > 0, norm, 1)
    return np.where(fitted > 0, fitted, step)

"""Blocks of weights as 4-bit integers, each block with a scale and a zero point that are searched for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.blocks import TINY
from export.quantize.precision import Floats

LEVELS = 15  # of 4 bits, 0 to 15
SPANS = np.linspace(0.84, 1.0, 5, dtype=np.float32)  # of the blocks' own range: clipping the ends may pay
BLOCKS_AT_ONCE = 65536  # bounds the temporaries

Rounded = tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]
"""Values [n_out, n_in], scales and zero points [n_out, n_in / block_size]."""


def round_alone(matrix: Floats, block_size: int) -> Rounded:
    """Every block of [n_out, n_in] by itself, to what loses least in squared error."""
    n_out, n_in = matrix.shape
    blocks = np.ascontiguousarray(matrix).reshape(-1, block_size)
    values = np.empty(blocks.shape, np.uint8)
    scales, zeros = np.empty(len(blocks), np.float32), np.empty(len(blocks), np.uint8)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        scales[part], zeros[part] = search(blocks[part])
        values[part] = to_levels(blocks[part], scales[part, None], zeros[part, None])
    n_blocks = n_in // block_size
    return values.reshape(n_out, n_in), scales.reshape(n_out, n_blocks), zeros.reshape(n_out, n_blocks)


def search(blocks: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """Scales [n] and zero points [n] of [n, block_size]: the best of several spans and shifts."""
    unit = np.abs(blocks).max(-1)  # in which squares neither overflow nor vanish
    unit[unit < TINY] = 1  # a block of zeros
    blocks = blocks / unit[:, None]
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    least = np.full(len(blocks), np.inf, np.float32)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    for span in SPANS:
        step = (high - low) * (span / LEVELS)
        step[step == 0] = 1
        for shift in (-1, 0, 1):
            zero = np.clip(np.rint(-low * span / step) + shift, 0, LEVELS)
            centred = to_levels(blocks, step[:, None], zero[:, None]) - zero[:, None]
            scale = _fit(blocks, centred, step)
            error = np.square(centred * scale[:, None] - blocks).sum(-1)
            better = error < least
            least[better], scales[better], zeros[better] = error[better], scale[better], zero[better]
    return scales * unit, zeros.astype(np.uint8)


def to_levels(weights: Floats, scales: Floats, zeros: NDArray[np.uint8] | Floats) -> Floats:
    """The nearest levels, whole numbers from 0 to 15; scales and zero points as broadcasting has it."""
    levels: Floats = np.clip(np.rint(weights / scales) + zeros, 0, LEVELS)
    return levels


def _fit(blocks: Floats, centred: Floats, step: Floats) -> Floats:
    """The scale that fits the rounded values best: least squares."""
    norm = np.square(centred).sum(-1)
    fitted = (centred * blocks).sum(-1) / np.where(norm > 0, norm, 1)
    return np.where(fitted > 0, fitted, step)

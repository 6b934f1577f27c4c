"""The int4 kernels: 4-bit weights in blocks, in the layout of onnxruntime's `MatMulNBits`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.quantize.blocks import quantize
from export.quantize.gptq import Doubles, round_together
from export.quantize.int4_blocks import round_alone
from export.quantize.precision import MAX_ANY_ROWS_BLOCK_SIZES, Arrays, Floats, Int8
from runtime.graph.kernels import Blocks, FrequentRows, Kernel

Packed = tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]
# Of the scales in fp16; half of what fp16 can hold, so that nothing overflows.
LARGEST_HALF = 2.0**15


def quantize_int4(matrix: Floats, block_size: int, moments: Doubles | None = None) -> Packed:
    """Round a matrix [n_out, n_in] to 4 bits, with a scale and a zero point for each block of `block_size` weights.

    Returns the packed weights [n_out, n_in / block_size, block_size / 2], scales [n_out, n_in / block_size], and packed
    zero points [n_out, ceil(n_in / block_size / 2)]; a byte holds two 4-bit numbers, the first in its low half.
    moments: [n_in, n_in], overwritten; with them weights compensate for one another's errors, see
    `export.quantize.gptq`. None rounds every block by itself. Raises ValueError if `block_size` does not divide n_in.
    """
    n_out, n_in = matrix.shape
    if n_in % block_size:
        raise ValueError(f"rows of {n_in} do not divide into blocks of {block_size}")
    if moments is None:
        values, scales, zeros = round_alone(matrix, block_size)
    else:
        values, scales, zeros = round_together(matrix, moments, block_size)
    n_blocks = n_in // block_size
    points = np.pad(zeros, ((0, 0), (0, n_blocks % 2)))
    return _pack(values.reshape(n_out, n_blocks, block_size)), scales, _pack(points)


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(values[..., 0::2] | values[..., 1::2] << 4)


def halve(scales: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Scales of any shape, in fp16 as multiples of a number [1], and this number."""
    unit = np.array([scales.max()], np.float32) / np.float32(LARGEST_HALF)
    return (scales / unit).astype(np.float16), unit


class Rounded(Protocol):
    """Products whose weights are rounded already."""

    def __contains__(self, name: str) -> bool:
        """Whether the weights of a product are rounded already."""

    def __getitem__(self, name: str) -> Packed:
        """The rounded weights of a product, as `quantize_int4` returns them.

        Of `wte` or `lm_head`, the rows that `FrequentRows` stores in int4.
        """


class RoundedFiles:
    """Rounded products in a folder, one file each."""

    def __init__(self, folder: Path) -> None:
        """`folder` must exist."""
        self._folder = folder

    def __setitem__(self, name: str, packed: Packed) -> None:
        """Write the rounded weights of a product."""
        np.savez(self._path(name), *packed)

    def __contains__(self, name: str) -> bool:
        """See `Rounded`."""
        return self._path(name).exists()

    def __getitem__(self, name: str) -> Packed:
        """See `Rounded`."""
        with np.load(self._path(name)) as arrays:
            return arrays["arr_0"], arrays["arr_1"], arrays["arr_2"]

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


@dataclasses.dataclass(frozen=True)
class Int4(Int8):
    """Products in blocks of 4-bit integers. Of `wte` and `lm_head` only the rows after the most frequent ones.

    rounded: products that GPTQ has rounded already; None rounds every block by itself.
    """

    rounded: Rounded | None = None

    @property
    def needs_even_rows(self) -> bool:
        """See `Precision.needs_even_rows`."""
        return self.block_size > MAX_ANY_ROWS_BLOCK_SIZES["int4"]

    def kernel_of(self, name: str) -> Kernel:
        """See `Precision.kernel_of`."""
        if name in ("wte", "lm_head"):
            return FrequentRows(self.block_size)
        return Blocks(4, self.block_size, has_half_scales=True)

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        """See `Precision.round_matrix`."""
        n_first = FrequentRows.n_first(len(matrix))
        quantized, scales = quantize(matrix[:n_first], self.block_size)
        first = {f"{name}.first.q": quantized, **_half_scales(f"{name}.first", scales)}
        return first | self._constants(f"{name}.rest", self._round(name, matrix[n_first:]))

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        """See `Precision.round_linear`."""
        return self._constants(name, self._round(name, weight.T))

    def _round(self, name: str, matrix: Floats) -> Packed:
        if self.rounded is not None and name in self.rounded:
            return self.rounded[name]
        return quantize_int4(matrix, self.block_size)

    def _constants(self, name: str, packed: Packed) -> Arrays:
        weights, scales, zeros = packed
        return {f"{name}.q": weights, f"{name}.zero": zeros, **_half_scales(name, scales)}


def _half_scales(name: str, scales: Floats) -> Arrays:
    """The constants of scales in fp16."""
    half, unit = halve(scales)
    return {f"{name}.half_scale": half, f"{name}.unit": unit}

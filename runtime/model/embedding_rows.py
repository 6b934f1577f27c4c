"""Rows of the token embedding, read from the file of the weights when a pass needs them.

The output layer has a rearranged copy of the same matrix in memory. The rows themselves stay in the file: a pass needs
one for each of its tokens, and the system keeps in memory what is read often. A write to the file after the load is
noticed before a row is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelFolderError
from runtime.graph.kernels import Blocks, Dense, Fp32, FrequentRows, Kernel
from runtime.graph.reader import OnnxModel, Place
from runtime.model.folder import ModelFolder

Floats = NDArray[np.float32]
# What stands for zero in blocks of 8 bits, which have no zero points.
_ZERO_OF_8_BITS = 128


class Embedding:
    """The token embedding of a model; threads may share it."""

    def __init__(self, model: OnnxModel, kernel: Kernel, files: ModelFolder) -> None:
        """Find the rows; none is read.

        model: the graph, whose constants say where the matrix is. kernel: of `wte`. files: the open files of the model,
        which stay open as long as the embedding is referenced.
        """
        self._rows = _rows(model, "wte", kernel, files)
        self._locations = sorted(model.locations)
        self._files = files

    def read(self, ids: NDArray[np.int64], out: Floats) -> None:
        """Write the rows of these ids to `out` [*ids.shape, n_embd].

        ids: of any shape, within the vocabulary. Raises ModelFolderError if the file was written to since the load.
        """
        for location in self._locations:
            self._files.check_unwritten(location)
        if ids.size == 1:
            out[...] = self._rows.read([ids.item()])
            return
        # Each row is read once: padding has the same id many times.
        different, places = np.unique(ids, return_inverse=True)
        np.take(self._rows.read(different.tolist()), places.reshape(ids.shape), axis=0, out=out)


class _Rows(Protocol):
    """The rows of a stored matrix [n_rows, n_embd], as the graph would look them up."""

    def read(self, ids: Sequence[int]) -> Floats:
        """The rows of these ids, [len(ids), n_embd]."""


def _rows(model: OnnxModel, name: str, kernel: Kernel, files: ModelFolder) -> _Rows:
    """What reads the rows of a matrix with this kernel."""
    if isinstance(kernel, Fp32):
        return _Table(model, name, files)
    if isinstance(kernel, Dense):
        return _DenseRows(_Table(model, f"{name}.q", files), _Table(model, f"{name}.scale", files))
    if isinstance(kernel, Blocks):
        return _BlockRows(model, name, kernel, files)
    if isinstance(kernel, FrequentRows):
        first = _BlockRows(model, f"{name}.first", kernel.first, files)
        return _FrequentRows(first, _BlockRows(model, f"{name}.rest", kernel.rest, files))
    raise AssertionError(f"{name} has the kernel of a product, {kernel}")


class _Table:
    """A constant of the graph, read by rows: along its first dimension."""

    def __init__(self, model: OnnxModel, name: str, files: ModelFolder) -> None:
        """Raises ModelFolderError for a constant that the graph's own file holds, unless it is small."""
        tensor = model.constants[name]
        row = tensor.shape[1:]
        self._row = row
        self._dtype = np.dtype(tensor.dtype).newbyteorder("<")
        self._n_bytes = math.prod(row) * self._dtype.itemsize
        self._files = files
        self._value = tensor.value
        if tensor.place is None and tensor.value is None:
            raise ModelFolderError(f"{model.path} holds {name!r} itself, and not in a file beside it; build it again")
        self._place = tensor.place or Place("", 0, 0)

    def read(self, ids: Sequence[int]) -> NDArray[Any]:
        """The rows of these ids, [len(ids), ...]."""
        content = b"".join(map(self._read_row, ids))
        return np.frombuffer(content, self._dtype).reshape(len(ids), *self._row)

    def _read_row(self, id_: int) -> bytes:
        begin = id_ * self._n_bytes
        if self._value is not None:
            return self._value[begin : begin + self._n_bytes]
        return self._files.read_at(self._place.location, self._place.offset + begin, self._n_bytes)


class _DenseRows:
    """Rows of int8, one scale each."""

    def __init__(self, weights: _Table, scales: _Table) -> None:
        self._weights = weights
        self._scales = scales

    def read(self, ids: Sequence[int]) -> Floats:
        """See `_Rows.read`."""
        rows: Floats = self._weights.read(ids).astype(np.float32)
        rows *= self._scales.read(ids)[:, None]
        return rows


class _BlockRows:
    """Rows of blocks of 8-bit or 4-bit integers, one scale a block, and at 4 bits one zero point a block."""

    def __init__(self, model: OnnxModel, name: str, kernel: Blocks, files: ModelFolder) -> None:
        self._weights = _Table(model, f"{name}.q", files)
        self.n_rows, n_blocks, _ = model.constants[f"{name}.q"].shape
        self.n_embd = n_blocks * kernel.size
        self._scales = _Table(model, f"{name}.{'half_scale' if kernel.has_half_scales else 'scale'}", files)
        self._unit = _Table(model, f"{name}.unit", files).read([0]) if kernel.has_half_scales else None
        self._zeros = _Table(model, f"{name}.zero", files) if kernel.bits == 4 else None

    def read(self, ids: Sequence[int]) -> Floats:
        """See `_Rows.read`."""
        # [len(ids), n_blocks, block_size]
        blocks = self._weights.read(ids)
        scales = self._scales.read(ids)
        if self._unit is not None:
            scales = scales.astype(np.float32) * self._unit
        if self._zeros is None:
            levels = blocks.astype(np.float32) - np.float32(_ZERO_OF_8_BITS)
        else:
            zeros = _halves(self._zeros.read(ids))[:, : blocks.shape[1], None]
            levels = _halves(blocks).astype(np.float32) - zeros.astype(np.float32)
        rows: Floats = (levels * scales[..., None]).reshape(len(ids), -1)
        return rows


class _FrequentRows:
    """The first rows of a matrix, and the others."""

    def __init__(self, first: _BlockRows, rest: _BlockRows) -> None:
        self._first = first
        self._rest = rest

    def read(self, ids: Sequence[int]) -> Floats:
        """See `_Rows.read`."""
        wanted = np.array(ids)
        n_first = self._first.n_rows
        is_first = wanted < n_first
        rows = np.empty((len(ids), self._first.n_embd), np.float32)
        if is_first.any():
            rows[is_first] = self._first.read(wanted[is_first].tolist())
        if not is_first.all():
            rows[~is_first] = self._rest.read((wanted[~is_first] - n_first).tolist())
        return rows


def _halves(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit integers of each byte, the lower first: [..., n] -> [..., 2 n]."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)

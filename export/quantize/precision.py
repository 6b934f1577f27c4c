"""Precisions: which kernel each weight matrix has, and its weights rounded for it. Here fp32 and blocks of int8.

The kernels, as nodes of the graph, are in `runtime.graph.kernels`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from export.quantize.blocks import quantize
from runtime.graph import kernels
from runtime.graph.kernels import Kernel

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
"""Constants of the graph by name."""
BLOCK_SIZES = kernels.BLOCK_SIZES[8]
INT4_BLOCK_SIZES = kernels.BLOCK_SIZES[4]
# Up to these block sizes the kernels compute a row in the same way for any number of rows. With larger blocks they add
# in another order where a row is alone.
MAX_ANY_ROWS_BLOCK_SIZES = {"int8": 64, "int4": 32}
# The largest of the sizes above; they divide the widths of all of OpenAI's models.
DEFAULT_BLOCK_SIZES = {"int8": 64, "int4": 32}


class Linear(NamedTuple):
    """A linear layer (transformers' Conv1D): x times weight plus bias.

    floor: a lower bound of x, where one is known.
    """

    weight: Floats  # [n_in, n_out]
    bias: Floats  # [n_out]
    floor: float | None = None


class Precision(Protocol):
    """Which kernel each weight matrix has, and its weights rounded for it."""

    @property
    def kernel(self) -> str | None:
        """The kind of kernel, dense, block or mixed: the runtime warns where the processor lacks it. None for fp32."""

    @property
    def needs_even_rows(self) -> bool:
        """Whether passes must have an even number of rows for a row's logits not to depend on the other rows."""

    def kernel_of(self, name: str) -> Kernel:
        """The kernel of a product by its name, such as `h.0.attn.c_attn`, or of `wte` or `lm_head`."""

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        """Round `wte` or `lm_head` [n_vocab, n_embd]: the constants of its kernel, without reshaped copies of them."""

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        """Round the weight [n_in, n_out] of a product: the constants of its kernel, without the bias."""


class Float32:
    """fp32 weights, as they are in the checkpoint."""

    kernel = None
    needs_even_rows = False

    def kernel_of(self, name: str) -> Kernel:  # noqa: ARG002
        return kernels.Fp32()

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        return {name: matrix}

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        return {f"{name}.weight": weight}


@dataclasses.dataclass(frozen=True)
class Int8:
    """Weights in blocks of 8-bit integers, one scale each; see `runtime.graph.kernels.Blocks`."""

    block_size: int
    kernel: ClassVar[str] = "block"

    @property
    def needs_even_rows(self) -> bool:
        return self.block_size > MAX_ANY_ROWS_BLOCK_SIZES["int8"]

    def kernel_of(self, name: str) -> Kernel:  # noqa: ARG002
        return kernels.Blocks(8, self.block_size)

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        quantized, scales = quantize(matrix, self.block_size)
        return {f"{name}.q": quantized, f"{name}.scale": scales}

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        # MatMulNBits reads weights as [n_out, n_in].
        return self.round_matrix(name, weight.T)

"""How weight matrices are rounded for the kernels that `runtime.graph.kernels` describes: fp32, or blocks of int8."""

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
# with larger blocks the kernels add a row's products in another order where it has no second row beside it
MAX_ANY_ROWS_BLOCK_SIZES = {"int8": 64, "int4": 32}
# at int8, 64 divides every OpenAI width, and a row needs no second one beside it; at int4 both hold of 32
DEFAULT_BLOCK_SIZES = {"int8": 64, "int4": 32}


class Linear(NamedTuple):
    """What a Conv1D is made of: x times weight plus bias."""

    weight: Floats  # [n_in, n_out]
    bias: Floats  # [n_out]
    floor: float | None = None  # x never goes below it, where that is known


class Precision(Protocol):
    """Which kernel each weight matrix has, and its weights rounded for it."""

    @property
    def kernel(self) -> str | None:
        """Which products the graph is made of, for the runtime to compare with the processor; None for fp32."""

    @property
    def needs_even_rows(self) -> bool:
        """Whether a row has the same logits beside others only where the rows of a pass are even in number."""

    def kernel_of(self, name: str) -> Kernel:
        """Of a product by its name, such as `h.0.attn.c_attn`, or of `wte` and `lm_head`."""

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        """A [n_vocab, n_embd] matrix as the constants that its kernel stores, all but copies of the same bytes."""

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        """A product's weight [n_in, n_out] as the constants of its kernel, all but the bias."""


class Float32:
    """Weights unchanged."""

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
        # MatMulNBits wants [n_out, n_in]
        return self.round_matrix(name, weight.T)

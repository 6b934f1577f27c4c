"""The kernels a product can be given, by name, and a graph that mixes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from export.quantize.dense import DenseInt8
from export.quantize.int4 import Int4, Rounded
from export.quantize.precision import Arrays, Float32, Floats, Int8, Precision
from runtime.graph.kernels import Kernel

FP32, DENSE = "fp32", "dense"
# what a product is given where its kernel loses too much, each more exact than those before it
BETTER = ("block 64", "block 32", FP32)


def make_kernel(name: str, rounded: Rounded | None = None) -> Precision:
    """`fp32`, `dense`, `block SIZE` or `int4 SIZE`; `rounded`: for int4, products that are rounded already."""
    if name == FP32:
        return Float32()
    if name == DENSE:
        return DenseInt8()
    kind, size = name.split()
    return Int8(int(size)) if kind == "block" else Int4(int(size), rounded)


def output_kernel(usual: str) -> str:
    """The output layer's kernel beside the usual one of the products: of int4 it has int8, in blocks as large."""
    return usual.replace("int4", "block")


def better_kernels(kernel: str, widths: Sequence[int], *, only_dense: bool = False) -> list[str]:
    """More exact kernels than this one that fit products of these widths, the nearest first.

    only_dense: the model must stay fast on processors that have no kernels for blocks.
    """
    fitting = [step for step in BETTER if step == FP32 or (not only_dense and _fits(step, widths))]
    return [step for step in fitting if _rank(step) > _rank(kernel)]


def _fits(blocks: str, widths: Sequence[int]) -> bool:
    return all(width % int(blocks.split()[1]) == 0 for width in widths)


def _rank(kernel: str) -> float:
    """How exact a kernel is, compared with others."""
    if kernel in (FP32, DENSE):
        return 3 if kernel == FP32 else 1
    kind, size = kernel.split()
    # smaller blocks are more exact: between 1 and 2 for int8
    return 0 if kind == "int4" else 1 + 1 / math.log2(int(size))


@dataclasses.dataclass(frozen=True)
class Mixed:
    """One precision for all products but some, which have another by name; see `Precision` for the methods.

    The output layer goes by the name of its matrix, `wte` or `lm_head`.
    """

    usual: Precision
    others: Mapping[str, Precision]

    @property
    def kernel(self) -> str | None:
        """The usual kernel; "mixed" where a dense model has blocks, too, which need other processors."""
        has_blocks = any(one.kernel == "block" for one in self.others.values())
        return "mixed" if self.usual.kernel == "dense" and has_blocks else self.usual.kernel

    @property
    def needs_even_rows(self) -> bool:
        """Whether any of them does."""
        return any(one.needs_even_rows for one in (self.usual, *self.others.values()))

    def kernel_of(self, name: str) -> Kernel:
        return self._of(name).kernel_of(name)

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        return self._of(name).round_matrix(name, matrix)

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        return self._of(name).round_linear(name, weight)

    def _of(self, name: str) -> Precision:
        return self.others.get(name, self.usual)

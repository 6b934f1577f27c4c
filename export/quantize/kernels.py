"""The kernels that a product can have, by name, and precisions that mix them."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence

from export.quantize.dense import DenseInt8, Range, StaticInt8
from export.quantize.int4 import Int4, Rounded
from export.quantize.precision import Arrays, Float32, Floats, Int8, Precision
from runtime.graph.kernels import Kernel

FP32 = "fp32"
DENSE = "dense"
STATIC = "static"
"""Dense, with one scale for all activations of a product that reads what LayerNorm or attention puts out."""
# The kernels for products that lose too much with their usual one, each more exact than those before it.
BETTER = ("block 64", "block 32", FP32)


def make_kernel(
    name: str, rounded: Rounded | None = None, ranges: Mapping[str, Range] = types.MappingProxyType({})
) -> Precision:
    """The precision by its name: `fp32`, `dense`, `static`, `block SIZE`, `int4 SIZE`, or `frequent SIZE`.

    The last is for an output layer. rounded: for int4, products that are rounded already. ranges: for `static`, of the
    inputs of products; those without one are dense.
    """
    if name == FP32:
        return Float32()
    if name == DENSE:
        return DenseInt8()
    if name == STATIC:
        return StaticInt8(ranges)
    kind, size = name.split()
    return Int8(int(size)) if kind == "block" else Int4(int(size), rounded)


def kernel_of_product(usual: str, name: str) -> str:
    """The kernel of a product of a layer: the usual one, but `mlp.c_proj` is never static.

    What the activation function puts out has a range that a few tokens make large.
    """
    return DENSE if usual == STATIC and name.endswith("mlp.c_proj") else usual


def output_kernel(usual: str) -> str:
    """The kernel of the output layer: the usual one, but never static; at int4 the rows of frequent tokens are int8."""
    return DENSE if usual == STATIC else usual.replace("int4", "frequent")


def better_kernels(kernel: str, widths: Sequence[int], *, only_dense: bool = False) -> list[str]:
    """The kernels that are more exact than this one and fit products of these widths, the least exact first.

    only_dense: leave out blocks, which are slow on processors without dot-product instructions.
    """
    fitting = [name for name in BETTER if name == FP32 or (not only_dense and _fits(name, widths))]
    better = [name for name in fitting if _rank(name) > _rank(kernel)]
    return [DENSE, *better] if kernel == STATIC else better


def _fits(kernel: str, widths: Sequence[int]) -> bool:
    """Whether the block size of a kernel divides all these widths."""
    return all(width % int(kernel.split()[1]) == 0 for width in widths)


def _rank(kernel: str) -> float:
    """How exact a kernel is: a number that only compares kernels."""
    if kernel in (FP32, DENSE, STATIC):
        return 3 if kernel == FP32 else 1
    kind, size = kernel.split()
    if kind in ("int4", "frequent"):
        return 0
    # Smaller blocks are more exact. int8 blocks rank between dense (1) and fp32 (3).
    return 1 + 1 / math.log2(int(size))


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The usual precision for most products, others by the name of the product; see `Precision` for the methods.

    The name of the output layer is that of its matrix, `wte` or `lm_head`.
    """

    usual: Precision
    others: Mapping[str, Precision]

    @property
    def kernel(self) -> str | None:
        """The usual kernel; "mixed" for a dense model with some products in blocks, which some processors lack."""
        has_blocks = any(one.kernel == "block" for one in self.others.values())
        return "mixed" if self.usual.kernel == "dense" and has_blocks else self.usual.kernel

    @property
    def needs_even_rows(self) -> bool:
        """Whether any of the precisions does."""
        return any(one.needs_even_rows for one in (self.usual, *self.others.values()))

    def kernel_of(self, name: str) -> Kernel:
        return self._of(name).kernel_of(name)

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        return self._of(name).round_matrix(name, matrix)

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        return self._of(name).round_linear(name, weight)

    def _of(self, name: str) -> Precision:
        return self.others.get(name, self.usual)

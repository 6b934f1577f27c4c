"""The kernels that a product can have, as nodes and constants of the graph.

A product is x [..., n_in] times a weight [n_in, n_out]. A stored matrix [n_vocab, n_embd] can serve both the embedding
and the output layer. Names of nodes and constants are part of the format of model folders and stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from runtime.graph.data import FLOAT, MICROSOFT, Graph

BLOCK_SIZES = {8: (32, 64, 128, 256), 4: (32, 64)}
"""Allowed block sizes by the number of bits."""
SYMMETRIC_ZERO = 128
"""The zero point of uint8 activations in the dense kernel."""
FLOORED_ZERO = 64
"""The zero point of activations with a lower bound near 0, such as gelu's output: most integers are positive."""
INT8_SHARE = 3
"""`FrequentRows` keeps one row in so many in int8: those of the lowest ids."""
Sizes = tuple[int, int]


class Kernel(Protocol):
    """How a weight matrix is stored and multiplied."""

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """Append the constants of a matrix [n_vocab, n_embd], for `embed` and `logits`."""

    def embed(self, graph: Graph, name: str, sizes: Sizes, out: str, ids: str = "input_ids") -> str:
        """Look up ids [batch, sequence] in the stored matrix [n_vocab, n_embd] -> [batch, sequence, n_embd]."""

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """x [batch, kept, n_embd] times the stored matrix [n_vocab, n_embd] transposed -> [batch, kept, n_vocab]."""

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:
        """x [..., n_in] times a weight of sizes [n_in, n_out] -> [..., n_out].

        Returns the product, and the name of the bias that the next node has to add, "" for none. floor: a lower bound
        of x, if one is known.
        """


@dataclasses.dataclass(frozen=True)
class Fp32:
    """fp32 weights."""

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`."""
        graph.weight(name, "float32", sizes)

    def embed(self, graph: Graph, name: str, sizes: Sizes, out: str, ids: str = "input_ids") -> str:  # noqa: ARG002
        """See `Kernel.embed`."""
        return graph.node("Gather", [name, ids], [out])

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:  # noqa: ARG002
        """See `Kernel.logits`."""
        return graph.node("FusedMatMul", [x, name], [out], MICROSOFT, transB=1)

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:  # noqa: ARG002
        """See `Kernel.linear`."""
        product = graph.node("MatMul", [x, graph.weight(f"{name}.weight", "float32", sizes)], [f"{name}.out"])
        return product, graph.weight(f"{name}.bias", "float32", sizes[1:])


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Weights in blocks of 8-bit or 4-bit integers, one scale for each block; the operator quantizes activations.

    The operators are onnxruntime's `MatMulNBits` and `GatherBlockQuantized`. `accuracy_level=4` asks for the int8
    kernels: the default level computes in fp32 and is about fifty times slower.

    has_half_scales: scales are stored in fp16, as multiples of an fp32 number `unit`, which keeps small scales out of
    the subnormal range of fp16. onnxruntime computes the fp32 scales once, when it opens the graph.
    """

    bits: int
    size: int
    has_half_scales: bool = False

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`."""
        n_vocab, n_embd = sizes
        self._weights(graph, name, n_vocab, n_embd)
        # The same bytes again as plain rows: a lookup maps only the rows it needs, while a product repacks all of them.
        graph.same_bytes(f"{name}.rows", f"{name}.q", (n_vocab, n_embd * self.bits // 8))

    def embed(self, graph: Graph, name: str, sizes: Sizes, out: str, ids: str = "input_ids") -> str:  # noqa: ARG002
        """See `Kernel.embed`."""
        inputs = [f"{name}.rows", ids, f"{name}.scale", *self._zeros(name)]
        where = {"block_size": self.size, "gather_axis": 0, "quantize_axis": 1}
        return graph.node("GatherBlockQuantized", inputs, [out], MICROSOFT, bits=self.bits, **where)

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """See `Kernel.logits`."""
        return self._product(graph, [x, f"{name}.q", f"{name}.scale", *self._zeros(name)], sizes, out)

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:  # noqa: ARG002
        """See `Kernel.linear`."""
        n_in, n_out = sizes
        # MatMulNBits reads weights as [n_out, n_in].
        self._weights(graph, name, n_out, n_in)
        # "" for zero points that 8 bits do not have, and for an input that only GPTQ's activation order needs.
        stored = [f"{name}.q", f"{name}.scale", *(self._zeros(name) or [""]), ""]
        inputs = [x, *stored, graph.weight(f"{name}.bias", "float32", (n_out,))]
        return self._product(graph, inputs, (n_out, n_in), f"{name}.out"), ""

    def _weights(self, graph: Graph, name: str, n_rows: int, n_columns: int) -> None:
        """Append the constants of a matrix [n_rows, n_columns]: packed weights, scales and zero points."""
        n_blocks = n_columns // self.size
        graph.weight(f"{name}.q", "uint8", (n_rows, n_blocks, self.size * self.bits // 8))
        self._scales(graph, name, (n_rows, n_blocks))
        for zeros in self._zeros(name):
            graph.weight(zeros, "uint8", (n_rows, (n_blocks + 1) // 2))

    def _scales(self, graph: Graph, name: str, shape: Sizes) -> None:
        """Append the constant `scale`, or the constants that it is computed from."""
        if not self.has_half_scales:
            graph.weight(f"{name}.scale", "float32", shape)
            return
        stored = [graph.weight(f"{name}.half_scale", "float16", shape), graph.weight(f"{name}.unit", "float32", (1,))]
        graph.node("Cast", stored[:1], [f"{name}.scale_in_units"], to=FLOAT)
        graph.node("Mul", [f"{name}.scale_in_units", stored[1]], [f"{name}.scale"])

    def _zeros(self, name: str) -> list[str]:
        """The name of the zero points; none for 8 bits."""
        return [] if self.bits == 8 else [f"{name}.zero"]

    def _product(self, graph: Graph, inputs: list[str], sizes: Sizes, out: str) -> str:
        """Append the product; sizes: [n_out, n_in] of the weight."""
        numbers = {"N": sizes[0], "K": sizes[1], "bits": self.bits, "block_size": self.size}
        return graph.node("MatMulNBits", inputs, [out], MICROSOFT, accuracy_level=4, **numbers)


@dataclasses.dataclass(frozen=True)
class FrequentRows:
    """A matrix [n_vocab, n_embd] whose first rows are blocks of int8 and the others blocks of int4.

    Vocabularies of byte-pair encoding are ordered by frequency, so the first rows are read and predicted most. Only for
    `wte` and `lm_head`. size: of the blocks.
    """

    size: int

    @property
    def first(self) -> Blocks:
        """The kernel of the first rows."""
        return Blocks(8, self.size, has_half_scales=True)

    @property
    def rest(self) -> Blocks:
        """The kernel of the other rows."""
        return Blocks(4, self.size, has_half_scales=True)

    @staticmethod
    def n_first(n_vocab: int) -> int:
        """How many rows are int8.

        >>> FrequentRows.n_first(50257)
        16753
        """
        return -(-n_vocab // INT8_SHARE)

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`."""
        n_vocab, n_embd = sizes
        n_first = self.n_first(n_vocab)
        self.first.store(graph, f"{name}.first", (n_first, n_embd))
        self.rest.store(graph, f"{name}.rest", (n_vocab - n_first, n_embd))

    def embed(self, graph: Graph, name: str, sizes: Sizes, out: str, ids: str = "input_ids") -> str:
        """See `Kernel.embed`. Every id is looked up in both parts, and the row of the part that has it is taken."""
        n_first = self.n_first(sizes[0])
        border = graph.fixed(f"{out}.border", np.array([n_first], np.int64))
        end = graph.fixed(f"{out}.end_of_first", np.array([n_first - 1], np.int64))
        begin = graph.fixed(f"{out}.begin_of_rest", np.array([0], np.int64))
        first_ids = graph.node("Min", [ids, end], [f"{out}.first_ids"])
        first = self.first.embed(graph, f"{name}.first", sizes, f"{out}.first", first_ids)
        graph.node("Sub", [ids, border], [f"{out}.after_border"])
        rest_ids = graph.node("Max", [f"{out}.after_border", begin], [f"{out}.rest_ids"])
        rest = self.rest.embed(graph, f"{name}.rest", sizes, f"{out}.rest", rest_ids)
        graph.node("Less", [ids, border], [f"{out}.are_first"])
        last = graph.fixed(f"{out}.last", np.array([-1], np.int64))
        chosen = graph.node("Unsqueeze", [f"{out}.are_first", last], [f"{out}.is_first"])
        return graph.node("Where", [chosen, first, rest], [out])

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """See `Kernel.logits`."""
        n_vocab, n_embd = sizes
        n_first = self.n_first(n_vocab)
        first = self.first.logits(graph, x, f"{name}.first", (n_first, n_embd), f"{out}.first")
        rest = self.rest.logits(graph, x, f"{name}.rest", (n_vocab - n_first, n_embd), f"{out}.rest")
        return graph.node("Concat", [first, rest], [out], axis=-1)

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:  # noqa: ARG002
        """Raises AssertionError: a product of a layer has no frequent rows."""
        raise AssertionError(f"{name} is no matrix of a vocabulary")


class _Quantized(NamedTuple):
    """The names of quantized activations [..., n_in] and of their parameters.

    x: uint8. scale, zero_point: scalars that are the same for every row. row_scale: [..., 1], the factor by which a row
    was divided before it was quantized.
    """

    x: str
    scale: str
    zero_point: str
    row_scale: str


@dataclasses.dataclass(frozen=True)
class Dense:
    """Products of uint8 activations and int8 weights: one scale for each row of activations and each output column.

    Each row is divided by its row scale, quantized with a fixed scale and zero point, and its product is multiplied by
    the row scale again. `DynamicQuantizeMatMul` would choose one scale for the whole tensor, so that a row would depend
    on its neighbours.

    by_gemm: the output layer is a `QGemm`, as formats before 3 have it. That operator keeps a transposed copy of the
    matrix in memory until activations need the room.
    """

    by_gemm: bool = False
    _last: ClassVar[np.ndarray] = np.array([-1], np.int64)

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`."""
        graph.weight(f"{name}.q", "int8", sizes)
        graph.weight(f"{name}.scale", "float32", sizes[:1])

    def embed(self, graph: Graph, name: str, sizes: Sizes, out: str, ids: str = "input_ids") -> str:  # noqa: ARG002
        """See `Kernel.embed`."""
        graph.node("Gather", [f"{name}.q", ids], [f"{out}.rows"])
        graph.node("Cast", [f"{out}.rows"], [f"{out}.cast"], to=FLOAT)
        graph.node("Gather", [f"{name}.scale", ids], [f"{out}.scale"])
        last = graph.fixed(f"{out}.last", self._last)
        graph.node("Unsqueeze", [f"{out}.scale", last], [f"{out}.scales"])
        return graph.node("Mul", [f"{out}.cast", f"{out}.scales"], [out])

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """See `Kernel.logits`. onnxruntime transposes the stored matrix once, when it opens the graph."""
        quantized = self._quantize(graph, x, out)
        if self.by_gemm:
            product = self._gemm(graph, x, quantized, name, sizes, out)
        else:
            graph.node("Transpose", [f"{name}.q"], [f"{name}.columns"], perm=[1, 0])
            weights = [f"{name}.columns", quantized.scale, f"{name}.scale"]
            inputs = [quantized.x, *weights, quantized.zero_point]
            product = graph.node("MatMulIntegerToFloat", inputs, [f"{out}.units"], MICROSOFT)
        return graph.node("Mul", [product, quantized.row_scale], [out])

    @staticmethod
    def _gemm(graph: Graph, x: str, quantized: _Quantized, name: str, sizes: Sizes, out: str) -> str:
        """The product of the output layer by `QGemm`, which reads the matrix as it is stored.

        Its x must have two dimensions.
        """
        n_vocab, n_embd = sizes
        flat = graph.fixed(f"{out}.flat", np.array([-1, n_embd], np.int64))
        graph.node("Reshape", [quantized.x, flat], [f"{out}.rounded_rows"])
        weights = [f"{name}.q", f"{name}.scale", graph.weight(f"{name}.zero", "int8", (n_vocab,))]
        inputs = [f"{out}.rounded_rows", quantized.scale, quantized.zero_point, *weights]
        graph.node("QGemm", inputs, [f"{out}.unit_rows"], MICROSOFT, transB=1)
        graph.node("Shape", [x], [f"{out}.places"], end=2)
        width = graph.fixed(f"{out}.width", np.array([n_vocab], np.int64))
        graph.node("Concat", [f"{out}.places", width], [f"{out}.shape"], axis=0)
        return graph.node("Reshape", [f"{out}.unit_rows", f"{out}.shape"], [f"{out}.units"])

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:
        """See `Kernel.linear`."""
        out = f"{name}.out"
        quantized = self._quantize(graph, x, out, floor)
        weight = graph.weight(f"{name}.q", "int8", sizes)
        scales = graph.weight(f"{name}.scale", "float32", sizes[1:])
        inputs = [quantized.x, weight, quantized.scale, scales, quantized.zero_point]
        graph.node("MatMulIntegerToFloat", inputs, [f"{out}.units"], MICROSOFT)
        product = graph.node("Mul", [f"{out}.units", quantized.row_scale], [out])
        return product, graph.weight(f"{name}.bias", "float32", sizes[1:])

    def _quantize(self, graph: Graph, x: str, out: str, floor: float | None = None) -> _Quantized:
        """Quantize x [..., n_in] to uint8, each row with its own row scale."""
        zero = SYMMETRIC_ZERO if floor is None else FLOORED_ZERO
        row_scale = self._row_scale(graph, x, out, floor)
        # A row of zeros is divided by 0. The integers that result do not matter: their product is multiplied by 0.
        graph.node("Div", [x, row_scale], [f"{out}.unit"])
        scale = graph.fixed(f"{out}.step", np.array([1 / (255 - zero)], np.float32))
        zero_point = graph.fixed(f"{out}.middle", np.array([zero], np.uint8))
        quantized = graph.node("QuantizeLinear", [f"{out}.unit", scale, zero_point], [f"{out}.rounded"])
        return _Quantized(quantized, scale, zero_point, row_scale)

    def _row_scale(self, graph: Graph, x: str, out: str, floor: float | None) -> str:
        """The scale of each row, [..., 1]: its largest absolute value.

        With a floor it is the largest value, but at least so large that the quantized range reaches down to the floor.
        """
        last = graph.fixed(f"{out}.axis", self._last)
        if floor is None:
            return graph.node("ReduceMax", [graph.node("Abs", [x], [f"{out}.abs"]), last], [f"{out}.largest"])
        largest = graph.node("ReduceMax", [x, last], [f"{out}.largest"])
        least = np.array([-floor * (255 - FLOORED_ZERO) / FLOORED_ZERO], np.float32)
        return graph.node("Max", [largest, graph.fixed(f"{out}.least", least)], [f"{out}.range"])


@dataclasses.dataclass(frozen=True)
class Static:
    """The dense kernel with one scale and zero point for all activations of a product, measured by the build.

    Two nodes do what takes seven with a scale for each row: `QuantizeLinear`, and the product with its bias. Inputs
    outside of the measured range are clipped. Only for products of layers.
    """

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:  # noqa: ARG002
        """Raises AssertionError: the matrix of a vocabulary has another kernel."""
        raise AssertionError(f"{name} is no product of a layer")

    def embed(self, graph: Graph, name: str, sizes: Sizes, out: str, ids: str = "input_ids") -> str:  # noqa: ARG002
        """Raises AssertionError, as `store` does."""
        raise AssertionError(f"{name} is no product of a layer")

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:  # noqa: ARG002
        """Raises AssertionError, as `store` does."""
        raise AssertionError(f"{name} is no product of a layer")

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:  # noqa: ARG002
        """See `Kernel.linear`."""
        scale = graph.weight(f"{name}.step", "float32", (1,))
        zero_point = graph.weight(f"{name}.middle", "uint8", (1,))
        rounded = graph.node("QuantizeLinear", [x, scale, zero_point], [f"{name}.out.rounded"])
        weight = graph.weight(f"{name}.q", "int8", sizes)
        scales = graph.weight(f"{name}.scale", "float32", sizes[1:])
        bias = graph.weight(f"{name}.bias", "float32", sizes[1:])
        # "" for the zero points of weights, which are 0.
        inputs = [rounded, weight, scale, scales, zero_point, "", bias]
        return graph.node("MatMulIntegerToFloat", inputs, [f"{name}.out"], MICROSOFT), ""

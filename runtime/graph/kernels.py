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
Sizes = tuple[int, int]


class Kernel(Protocol):
    """How a weight matrix is stored and multiplied."""

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """Append the constants of a matrix [n_vocab, n_embd], for `embed` and `logits`."""

    def embed(self, graph: Graph, name: str, out: str) -> str:
        """Look up input_ids [batch, sequence] in the stored matrix -> [batch, sequence, n_embd]."""

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

    def embed(self, graph: Graph, name: str, out: str) -> str:
        """See `Kernel.embed`."""
        return graph.node("Gather", [name, "input_ids"], [out])

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
    """

    bits: int
    size: int

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`. Only for 8 bits."""
        n_vocab, n_embd = sizes
        self._weights(graph, name, n_vocab, n_embd)
        # The same bytes again as plain rows: a lookup maps only the rows it needs, while a product repacks all of them.
        graph.same_bytes(f"{name}.rows", f"{name}.q", sizes)

    def embed(self, graph: Graph, name: str, out: str) -> str:
        """See `Kernel.embed`."""
        inputs = [f"{name}.rows", "input_ids", f"{name}.scale"]
        where = {"block_size": self.size, "gather_axis": 0, "quantize_axis": 1}
        return graph.node("GatherBlockQuantized", inputs, [out], MICROSOFT, bits=8, **where)

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """See `Kernel.logits`."""
        return self._product(graph, [x, f"{name}.q", f"{name}.scale"], sizes, out)

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:  # noqa: ARG002
        """See `Kernel.linear`."""
        n_in, n_out = sizes
        # MatMulNBits reads weights as [n_out, n_in].
        stored = self._weights(graph, name, n_out, n_in)
        inputs = [x, *stored, "", graph.weight(f"{name}.bias", "float32", (n_out,))]
        return self._product(graph, inputs, (n_out, n_in), f"{name}.out"), ""

    def _weights(self, graph: Graph, name: str, n_rows: int, n_columns: int) -> list[str]:
        """Append the constants of a matrix [n_rows, n_columns].

        Returns the names of packed weights, scales, and zero points: "" for 8 bits, which have none.
        """
        n_blocks = n_columns // self.size
        packed = graph.weight(f"{name}.q", "uint8", (n_rows, n_blocks, self.size * self.bits // 8))
        scales = graph.weight(f"{name}.scale", "float32", (n_rows, n_blocks))
        if self.bits == 8:
            return [packed, scales, ""]
        return [packed, scales, graph.weight(f"{name}.zero", "uint8", (n_rows, (n_blocks + 1) // 2))]

    def _product(self, graph: Graph, inputs: list[str], sizes: Sizes, out: str) -> str:
        """Append the product; sizes: [n_out, n_in] of the weight."""
        numbers = {"N": sizes[0], "K": sizes[1], "bits": self.bits, "block_size": self.size}
        return graph.node("MatMulNBits", inputs, [out], MICROSOFT, accuracy_level=4, **numbers)


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
    """

    _last: ClassVar[np.ndarray] = np.array([-1], np.int64)

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`."""
        graph.weight(f"{name}.q", "int8", sizes)
        graph.weight(f"{name}.scale", "float32", sizes[:1])

    def embed(self, graph: Graph, name: str, out: str) -> str:
        """See `Kernel.embed`."""
        graph.node("Gather", [f"{name}.q", "input_ids"], [f"{out}.rows"])
        graph.node("Cast", [f"{out}.rows"], [f"{out}.cast"], to=FLOAT)
        graph.node("Gather", [f"{name}.scale", "input_ids"], [f"{out}.scale"])
        last = graph.fixed(f"{out}.last", self._last)
        graph.node("Unsqueeze", [f"{out}.scale", last], [f"{out}.scales"])
        return graph.node("Mul", [f"{out}.cast", f"{out}.scales"], [out])

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """See `Kernel.logits`. `QGemm` reads the matrix as the embedding has it, but x must have two dimensions."""
        n_vocab, n_embd = sizes
        quantized = self._quantize(graph, x, out)
        flat = graph.fixed(f"{out}.flat", np.array([-1, n_embd], np.int64))
        graph.node("Reshape", [quantized.x, flat], [f"{out}.rounded_rows"])
        weights = [f"{name}.q", f"{name}.scale", graph.weight(f"{name}.zero", "int8", (n_vocab,))]
        inputs = [f"{out}.rounded_rows", quantized.scale, quantized.zero_point, *weights]
        graph.node("QGemm", inputs, [f"{out}.unit_rows"], MICROSOFT, transB=1)
        graph.node("Shape", [x], [f"{out}.places"], end=2)
        width = graph.fixed(f"{out}.width", np.array([n_vocab], np.int64))
        graph.node("Concat", [f"{out}.places", width], [f"{out}.shape"], axis=0)
        graph.node("Reshape", [f"{out}.unit_rows", f"{out}.shape"], [f"{out}.units"])
        return graph.node("Mul", [f"{out}.units", quantized.row_scale], [out])

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

"""The kernels that a product can have, as nodes and constants.

A product is x [..., n_in] times a weight [n_in, n_out]. A stored matrix [n_vocab, n_embd] can serve the embedding and
the output layer both.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from runtime.graph.data import FLOAT, MICROSOFT, Graph

BLOCK_SIZES = {8: (32, 64, 128, 256), 4: (32, 64)}
"""Allowed block sizes by bits."""
SYMMETRIC_ZERO = 128  # of the dense grid from 0 to 255: as far down as up
FLOORED_ZERO = 64  # for what hardly goes below 0, such as the output of gelu: half as many steps again above it
Sizes = tuple[int, int]


class Kernel(Protocol):
    """How a weight matrix is stored and multiplied."""

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """Constants of a [n_vocab, n_embd] matrix, for `embed` and `logits`."""

    def embed(self, graph: Graph, name: str, out: str) -> str:
        """input_ids [batch, sequence] -> rows of the stored matrix [batch, sequence, n_embd]."""

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """[batch, kept, n_embd] times the stored matrix [n_vocab, n_embd] transposed -> [batch, kept, n_vocab]."""

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:
        """[..., n_in] -> [..., n_out] by a weight of sizes [n_in, n_out].

        Returns the product, and the name of the bias that is left for the next node to add, "" for none. floor: x
        never goes below it, where that is known.
        """


@dataclasses.dataclass(frozen=True)
class Fp32:
    """Weights unchanged."""

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
    """Weights in blocks of 8-bit or 4-bit integers, one scale each; activations are rounded as a product runs.

    The operators are onnxruntime's `MatMulNBits` and `GatherBlockQuantized`. `accuracy_level=4` asks for the
    int8 kernels: the default level computes in fp32 and is some fifty times slower.
    """

    bits: int
    size: int

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`. Only at 8 bits."""
        n_vocab, n_embd = sizes
        self._weights(graph, name, n_vocab, n_embd)
        # the same bytes once more as plain rows: a lookup maps the few it needs, a product repacks all of them
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
        # MatMulNBits wants [n_out, n_in]
        stored = self._weights(graph, name, n_out, n_in)
        inputs = [x, *stored, "", graph.weight(f"{name}.bias", "float32", (n_out,))]
        return self._product(graph, inputs, (n_out, n_in), f"{name}.out"), ""

    def _weights(self, graph: Graph, name: str, n_rows: int, n_columns: int) -> list[str]:
        """Constants of [n_rows, n_columns]: packed weights, scales, and zero points at 4 bits, "" at 8."""
        n_blocks = n_columns // self.size
        packed = graph.weight(f"{name}.q", "uint8", (n_rows, n_blocks, self.size * self.bits // 8))
        scales = graph.weight(f"{name}.scale", "float32", (n_rows, n_blocks))
        if self.bits == 8:
            return [packed, scales, ""]
        return [packed, scales, graph.weight(f"{name}.zero", "uint8", (n_rows, (n_blocks + 1) // 2))]

    def _product(self, graph: Graph, inputs: list[str], sizes: Sizes, out: str) -> str:
        """By a weight of sizes [n_out, n_in]."""
        numbers = {"N": sizes[0], "K": sizes[1], "bits": self.bits, "block_size": self.size}
        return graph.node("MatMulNBits", inputs, [out], MICROSOFT, accuracy_level=4, **numbers)


class _Rounded(NamedTuple):
    """Names of what activations became."""

    x: str  # u8, of the shape they had
    step: str  # of the grid
    middle: str  # its zero
    largest: str  # what each row is to be multiplied by again


@dataclasses.dataclass(frozen=True)
class Dense:
    """Products of u8 and s8 with one scale a row of activations and one a column of weights.

    Each row is divided by its own largest number, rounded to a fixed grid, and multiplied by that number after.
    `DynamicQuantizeMatMul` would choose the grid from the whole tensor, and a row would depend on its neighbours.
    """

    _last: ClassVar[np.ndarray] = np.array([-1], np.int64)

    def store(self, graph: Graph, name: str, sizes: Sizes) -> None:
        """See `Kernel.store`. A lookup touches whole rows."""
        graph.weight(f"{name}.q", "int8", sizes)
        graph.weight(f"{name}.scale", "float32", sizes[:1])

    def embed(self, graph: Graph, name: str, out: str) -> str:
        """See `Kernel.embed`."""
        graph.node("Gather", [f"{name}.q", "input_ids"], [f"{out}.rows"])  # [batch, sequence, n_embd]
        graph.node("Cast", [f"{out}.rows"], [f"{out}.cast"], to=FLOAT)
        graph.node("Gather", [f"{name}.scale", "input_ids"], [f"{out}.scale"])
        last = graph.fixed(f"{out}.last", self._last)
        graph.node("Unsqueeze", [f"{out}.scale", last], [f"{out}.scales"])
        return graph.node("Mul", [f"{out}.cast", f"{out}.scales"], [out])

    def logits(self, graph: Graph, x: str, name: str, sizes: Sizes, out: str) -> str:
        """See `Kernel.logits`. `QGemm` takes the matrix as the embedding reads it, and x with two dimensions."""
        n_vocab, n_embd = sizes
        rounded = self._round(graph, x, out)
        flat = graph.fixed(f"{out}.flat", np.array([-1, n_embd], np.int64))
        graph.node("Reshape", [rounded.x, flat], [f"{out}.rounded_rows"])
        weights = [f"{name}.q", f"{name}.scale", graph.weight(f"{name}.zero", "int8", (n_vocab,))]
        inputs = [f"{out}.rounded_rows", rounded.step, rounded.middle, *weights]
        graph.node("QGemm", inputs, [f"{out}.unit_rows"], MICROSOFT, transB=1)
        graph.node("Shape", [x], [f"{out}.places"], end=2)
        width = graph.fixed(f"{out}.width", np.array([n_vocab], np.int64))
        graph.node("Concat", [f"{out}.places", width], [f"{out}.shape"], axis=0)
        graph.node("Reshape", [f"{out}.unit_rows", f"{out}.shape"], [f"{out}.units"])
        return graph.node("Mul", [f"{out}.units", rounded.largest], [out])

    def linear(self, graph: Graph, x: str, name: str, sizes: Sizes, floor: float | None = None) -> tuple[str, str]:
        """See `Kernel.linear`."""
        out = f"{name}.out"
        rounded = self._round(graph, x, out, floor)
        quantized = graph.weight(f"{name}.q", "int8", sizes)
        scales = graph.weight(f"{name}.scale", "float32", sizes[1:])
        inputs = [rounded.x, quantized, rounded.step, scales, rounded.middle]
        graph.node("MatMulIntegerToFloat", inputs, [f"{out}.units"], MICROSOFT)
        product = graph.node("Mul", [f"{out}.units", rounded.largest], [out])
        return product, graph.weight(f"{name}.bias", "float32", sizes[1:])

    def _round(self, graph: Graph, x: str, out: str, floor: float | None = None) -> _Rounded:
        """Each row in units of its largest number, on the grid."""
        zero = SYMMETRIC_ZERO if floor is None else FLOORED_ZERO
        largest = self._largest(graph, x, out, floor)
        # a row of zeros is divided by 0: whatever integers that makes are multiplied by 0 again
        graph.node("Div", [x, largest], [f"{out}.unit"])
        step = graph.fixed(f"{out}.step", np.array([1 / (255 - zero)], np.float32))
        middle = graph.fixed(f"{out}.middle", np.array([zero], np.uint8))
        rounded = graph.node("QuantizeLinear", [f"{out}.unit", step, middle], [f"{out}.rounded"])
        return _Rounded(rounded, step, middle, largest)

    def _largest(self, graph: Graph, x: str, out: str, floor: float | None) -> str:
        """What each row is divided by, [..., 1]: the grid goes up to it, and down at least to the floor."""
        last = graph.fixed(f"{out}.axis", self._last)
        if floor is None:
            return graph.node("ReduceMax", [graph.node("Abs", [x], [f"{out}.abs"]), last], [f"{out}.largest"])
        largest = graph.node("ReduceMax", [x, last], [f"{out}.largest"])
        least = np.array([-floor * (255 - FLOORED_ZERO) / FLOORED_ZERO], np.float32)
        return graph.node("Max", [largest, graph.fixed(f"{out}.least", least)], [f"{out}.range"])

"""How weight matrices become nodes: as they are (fp32), or in blocks of int8."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from export.graph.onnx_file import MICROSOFT, OnnxGraph
from export.quantize.blocks import quantize

Floats = NDArray[np.float32]
BLOCK_SIZES = (32, 64, 128, 256)
# with larger blocks the kernels add a row's products in another order where it has no second row beside it
MAX_ANY_ROWS_BLOCK_SIZES = {"int8": 64, "int4": 32}
INT4_BLOCK_SIZES = (32, 64)
# at int8, 64 divides every OpenAI width, and a row needs no second one beside it; at int4 both hold of 32
DEFAULT_BLOCK_SIZES = {"int8": 64, "int4": 32}


class Linear(NamedTuple):
    """What a Conv1D is made of: x times weight plus bias."""

    weight: Floats  # [n_in, n_out]
    bias: Floats  # [n_out]
    floor: float | None = None  # x never goes below it, where that is known


class Precision(Protocol):
    """What the graph asks of a precision. A stored matrix can serve the embedding and the output layer both."""

    @property
    def kernel(self) -> str | None:
        """Which products the graph is made of, for the runtime to compare with the processor; None for fp32."""

    @property
    def needs_even_rows(self) -> bool:
        """Whether a row has the same logits beside others only where the rows of a pass are even in number."""

    def store(self, file: OnnxGraph, name: str, matrix: Floats) -> None:
        """Store a [n_vocab, n_embd] matrix for `embed` and `logits`."""

    def embed(self, file: OnnxGraph, name: str, out: str) -> str:
        """input_ids [batch, sequence] -> rows of the stored matrix [batch, sequence, n_embd]."""

    def logits(self, file: OnnxGraph, x: str, name: str, out: str) -> str:
        """[batch, kept, n_embd] times the stored matrix transposed -> [batch, kept, n_vocab]."""

    def linear(self, file: OnnxGraph, x: str, name: str, linear: Linear) -> tuple[str, str]:
        """Conv1D: [..., n_in] -> [..., n_out], and the bias where it is left to the next node; "" otherwise."""


class Float32:
    """Weights unchanged."""

    kernel = None
    needs_even_rows = False

    def store(self, file: OnnxGraph, name: str, matrix: Floats) -> None:
        file.constant(name, matrix)

    def embed(self, file: OnnxGraph, name: str, out: str) -> str:
        return file.node("Gather", [name, "input_ids"], [out])

    def logits(self, file: OnnxGraph, x: str, name: str, out: str) -> str:
        return file.node("FusedMatMul", [x, name], [out], MICROSOFT, transB=1)

    def linear(self, file: OnnxGraph, x: str, name: str, linear: Linear) -> tuple[str, str]:
        product = file.node("MatMul", [x, file.constant(f"{name}.weight", linear.weight)], [f"{name}.out"])
        return product, file.constant(f"{name}.bias", linear.bias)


@dataclasses.dataclass(frozen=True)
class Int8:
    """Weights in blocks of 8-bit integers, one scale each; activations are rounded the same way as a product runs.

    The operators are onnxruntime's `MatMulNBits` and `GatherBlockQuantized`. `accuracy_level=4` asks for the
    int8 kernels: the default level computes in fp32 and is some fifty times slower.
    """

    block_size: int
    kernel: ClassVar[str] = "block"

    @property
    def needs_even_rows(self) -> bool:
        return self.block_size > MAX_ANY_ROWS_BLOCK_SIZES["int8"]

    def store(self, file: OnnxGraph, name: str, matrix: Floats) -> None:
        quantized, scales = quantize(matrix, self.block_size)
        file.constant(f"{name}.q", quantized)
        file.constant(f"{name}.scale", scales)
        # the same bytes once more as plain rows: a lookup maps the few it needs, a product repacks all of them
        file.same_bytes(f"{name}.rows", f"{name}.q", list(matrix.shape))

    def embed(self, file: OnnxGraph, name: str, out: str) -> str:
        inputs = [f"{name}.rows", "input_ids", f"{name}.scale"]
        where = {"block_size": self.block_size, "gather_axis": 0, "quantize_axis": 1}
        return file.node("GatherBlockQuantized", inputs, [out], MICROSOFT, bits=8, **where)

    def logits(self, file: OnnxGraph, x: str, name: str, out: str) -> str:
        return self._product(file, [x, f"{name}.q", f"{name}.scale"], file.shape(f"{name}.rows"), out)

    def linear(self, file: OnnxGraph, x: str, name: str, linear: Linear) -> tuple[str, str]:
        quantized, scales = quantize(linear.weight.T, self.block_size)  # MatMulNBits wants [n_out, n_in]
        stored = [file.constant(f"{name}.q", quantized), file.constant(f"{name}.scale", scales)]
        inputs = [x, *stored, "", "", file.constant(f"{name}.bias", linear.bias)]
        return self._product(file, inputs, list(linear.weight.T.shape), f"{name}.out"), ""

    def _product(self, file: OnnxGraph, inputs: list[str], shape: list[int], out: str) -> str:
        sizes = {"N": shape[0], "K": shape[1], "bits": 8, "block_size": self.block_size}
        return file.node("MatMulNBits", inputs, [out], MICROSOFT, accuracy_level=4, **sizes)

"""How much one product loses, tried with the very nodes that the model will have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto

from export.onnx_file import OnnxFile, ValueInfo
from export.quantize.inputs import Doubles, open_graph
from export.quantize.precision import Floats, Linear, Precision

COLUMNS = 256
"""How many columns of a product are tried: each is rounded by itself, so some from all over tell enough."""


def some_columns(n_out: int) -> slice:
    """At most `COLUMNS` columns from all over."""
    return slice(None, None, -(-n_out // COLUMNS))


def relative_error(found: Floats, expected: Doubles, weights: Doubles) -> float:
    """Squared error over all columns, relative to what they vary; [n, n_out] both, `weights` [n] of the rows."""
    errors = np.square(found - expected).sum(1)
    variance = expected.var(0).sum()
    return float(errors @ weights / (variance or 1.0))


def run_product(precision: Precision, x: Floats, linear: Linear, work: Path) -> Floats:
    """x [n, n_in] -> [n, n_out], without the bias."""
    no_bias = linear._replace(bias=np.zeros_like(linear.bias))

    def write(file: OnnxFile) -> str:
        return precision.linear(file, "x", "product", no_bias)[0]

    return _run(write, x, linear.weight.shape[1], work)


def run_output(precision: Precision, x: Floats, matrix: Floats, work: Path) -> Floats:
    """x [n, n_embd] -> [n, n_vocab]."""

    def write(file: OnnxFile) -> str:
        precision.store(file, "matrix", matrix)
        return precision.logits(file, "x", "matrix", "out")

    return _run(write, x, len(matrix), work)


def _run(write: Callable[[OnnxFile], str], x: Floats, n_out: int, work: Path) -> Floats:
    """Write a graph of x [1, n, n_in] alone, and run it."""
    folder = work / "trial"
    folder.mkdir()
    try:
        with OnnxFile(folder) as file:
            out = write(file)
            read: ValueInfo = ("x", TensorProto.FLOAT, [1, "n", x.shape[-1]])
            written: ValueInfo = (out, TensorProto.FLOAT, [1, "n", n_out])
            file.save([read], [written], {})
        result: Floats = open_graph(folder / "model.onnx").run([out], {"x": x[None]})[0][0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result

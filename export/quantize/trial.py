"""The error of one quantized product, measured with the same ONNX nodes that the model will have."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.graph.onnx_file import OnnxGraph, ValueInfo
from export.quantize.inputs import Doubles, open_graph
from export.quantize.precision import Floats, Linear, Precision

COLUMNS = 256
"""How many columns of a product are tried. Columns are rounded independently, so a sample is enough."""


def some_columns(n_out: int) -> slice:
    """At most `COLUMNS` columns, evenly spaced."""
    return slice(None, None, -(-n_out // COLUMNS))


def relative_error(found: Floats, expected: Doubles, weights: Doubles) -> float:
    """Squared error over all columns, divided by their variance: [n, n_out] both, `weights` [n] of the rows."""
    errors = np.square(found - expected).sum(1)
    variance = expected.var(0).sum()
    return float(errors @ weights / (variance or 1.0))


def run_product(precision: Precision, x: Floats, linear: Linear) -> Floats:
    """The quantized product without its bias: x [n, n_in] -> [n, n_out]."""
    graph = OnnxGraph()
    no_bias = linear._replace(bias=np.zeros_like(linear.bias))
    out, _ = precision.linear(graph, "x", "product", no_bias)
    return _run(graph, out, x, linear.weight.shape[1])


def run_output(precision: Precision, x: Floats, matrix: Floats) -> Floats:
    """The quantized output layer: x [n, n_embd], matrix [n_vocab, n_embd] -> [n, n_vocab]."""
    graph = OnnxGraph()
    precision.store(graph, "matrix", matrix)
    out = precision.logits(graph, "x", "matrix", "out")
    return _run(graph, out, x, len(matrix))


def _run(graph: OnnxGraph, out: str, x: Floats, n_out: int) -> Floats:
    """Run a graph whose only input is x; returns [n, n_out]."""
    read: ValueInfo = ("x", TensorProto.FLOAT, [1, "n", x.shape[-1]])
    written: ValueInfo = (out, TensorProto.FLOAT, [1, "n", n_out])
    session = open_graph(graph.serialize([read], [written], {}))
    result: Floats = session.run([out], {"x": x[None]})[0][0]
    return result

"""The error of one quantized product, measured with the same ONNX nodes that the model will have."""

from __future__ import annotations

import numpy as np

from export.graph.onnx_file import fixed_array, inline_tensor, serialize
from export.quantize.inputs import Doubles, open_graph
from export.quantize.precision import Arrays, Floats, Linear, Precision
from runtime.graph.data import Graph, Value

COLUMNS = 256
"""How many columns of a product are tried at most. Columns are rounded independently, so a sample is enough."""

PRODUCT = "product"
"""The name of the product that is tried."""


def some_columns(n_out: int) -> slice:
    """At most `COLUMNS` columns, evenly spaced."""
    return slice(None, None, -(-n_out // COLUMNS))


def relative_error(found: Floats, expected: Doubles, weights: Doubles) -> float:
    """The squared error of the outputs, summed over columns and divided by their variance.

    found, expected: [n, n_out]. weights: how much each row counts, [n]; they sum to 1.
    """
    errors = np.square(found - expected).sum(1)
    variance = expected.var(0).sum()
    return float(errors @ weights / (variance or 1.0))


def run_product(precision: Precision, x: Floats, linear: Linear) -> Floats:
    """Compute the quantized product without its bias: x [n, n_in] -> [n, n_out]."""
    graph = Graph()
    sizes = (linear.weight.shape[0], linear.weight.shape[1])
    out, _ = precision.kernel_of(PRODUCT).linear(graph, "x", PRODUCT, sizes, linear.floor)
    arrays = precision.round_linear(PRODUCT, linear.weight)
    return _run(graph, arrays | {f"{PRODUCT}.bias": np.zeros_like(linear.bias)}, out, x, sizes[1])


def run_output(precision: Precision, x: Floats, matrix: Floats) -> Floats:
    """Compute the quantized output layer: x [n, n_embd], matrix [n_vocab, n_embd] -> [n, n_vocab]."""
    graph = Graph()
    sizes = (matrix.shape[0], matrix.shape[1])
    kernel = precision.kernel_of("wte")
    kernel.store(graph, "wte", sizes)
    out = kernel.logits(graph, "x", "wte", sizes, "out")
    return _run(graph, precision.round_matrix("wte", matrix), out, x, len(matrix))


def _run(graph: Graph, arrays: Arrays, out: str, x: Floats, n_out: int) -> Floats:
    """Run a graph whose only input is x; returns [n, n_out]."""
    graph.inputs.append(Value("x", "float32", (1, "n", x.shape[-1])))
    graph.outputs.append(Value(out, "float32", (1, "n", n_out)))
    # Constants that are reshaped copies of others serve the embedding lookup, which is not part of this graph.
    constants = [constant for constant in graph.constants.values() if constant.same_bytes is None]
    tensors = [
        inline_tensor(one.name, arrays[one.name] if one.value is None else fixed_array(one)) for one in constants
    ]
    session = open_graph(serialize(graph, tensors))
    result: Floats = session.run([out], {"x": x[None]})[0][0]
    return result

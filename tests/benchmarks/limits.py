"""What the machine could do at most: bytes over its read bandwidth, int8 products over its peak.

Decoding a row reads every weight, and the keys and values of its context, once a token. Prefill is bound by products:
each token takes one multiplication and addition for each weight of the layers. The products of attention, which are
fp32, are left out of the limit of prefill.
"""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from export.checkpoint.config import Config

# Rows and inputs of the product that the peak is measured with: large enough that a core is never idle.
N_ROWS, N_INPUTS, N_OUTPUTS = 512, 1024, 4096
N_RUNS = 10
POSITION_BYTES = {"fp32": 4, "int8": 1}  # of an element of the key-value cache


def int8_peak(threads: int) -> float:
    """Multiplications (each with its addition) per second of onnxruntime's int8 product, the best of a few runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_product().SerializeToString(), options, ["CPUExecutionProvider"])
    inputs = {"a": np.random.default_rng(0).integers(0, 256, (N_ROWS, N_INPUTS), np.uint8)}
    seconds = []
    for _ in range(N_RUNS):
        start = time.perf_counter()
        session.run(None, inputs)
        seconds.append(time.perf_counter() - start)
    return N_ROWS * N_INPUTS * N_OUTPUTS / min(seconds)


def _product() -> onnx.ModelProto:
    """uint8 [N_ROWS, N_INPUTS] times constant int8 [N_INPUTS, N_OUTPUTS]: onnxruntime rearranges the constant once."""
    weights = np.random.default_rng(1).integers(-127, 128, (N_INPUTS, N_OUTPUTS), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [N_ROWS, N_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [N_ROWS, N_OUTPUTS])],
        [numpy_helper.from_array(weights, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def layer_weights(config: Config) -> int:
    """Weights of all products in the layers."""
    return 12 * config.n_layer * config.n_embd**2


def output_weights(config: Config) -> int:
    """Weights of the output layer."""
    return config.vocab_size * config.n_embd


def position_bytes(config: Config, cache: str) -> int:
    """Keys and values of one position of one row. cache: "fp32" or "int8"."""
    return 2 * config.n_layer * config.n_embd * POSITION_BYTES[cache]


def decode_limit(config: Config, context: int, rows: int, cache: str, bandwidth: float, peak: float) -> float:
    """Tokens per second of all rows at most, with a byte a weight.

    context: positions that a step reads, in each row. bandwidth: bytes per second. peak: multiplications per second.
    """
    weights = layer_weights(config) + output_weights(config)
    reading = (weights + rows * context * position_bytes(config, cache)) / bandwidth
    multiplying = rows * weights / peak
    return rows / max(reading, multiplying)


def prefill_limit(config: Config, n: int, bandwidth: float, peak: float) -> float:
    """Seconds at least of a prompt of n tokens with the logits of the last."""
    products = n * layer_weights(config) + output_weights(config)
    return max(products / peak, (layer_weights(config) + output_weights(config)) / bandwidth)

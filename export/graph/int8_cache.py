"""The second graph of a folder: the same weights with an int8 key-value cache, see `runtime.graph.attention`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.graph.onnx_file import fixed_array, inline_tensor, serialize
from runtime.graph.architecture import read_architecture
from runtime.graph.attention import scale_names
from runtime.graph.check import layout_of
from runtime.graph.data import Constant
from runtime.graph.gpt2 import GRAPH_FILES, describe
from runtime.graph.reader import read_model
from runtime.model.model import Model
from runtime.model.prefill import prefill

Scales = NDArray[np.float32]
LARGEST = 127
"""The largest value of int8."""
MARGIN = 1.1
"""Room for larger keys and values than were measured: those that do not fit cost far more than a coarser scale."""


def measure_scales(folder: Path, texts: Sequence[Sequence[int]]) -> Scales:
    """The scales of keys and values, [n_layer, 2, n_head, head_dim], from their largest absolute values over the texts.

    folder: a folder whose `model.onnx` is complete. texts: ids of each text. A channel of zeros has scale 1.
    """
    with Model(folder, cache="fp32", prepack=False) as model:
        cache = model.new_cache(max(map(len, texts)))
        largest: Any = 0.0
        for text in texts:
            prefill(cache, text)
            largest = np.maximum(largest, np.abs(cache.read_row(0, len(text))).max(axis=3))
    scales: Scales = np.where(largest > 0, MARGIN * largest / LARGEST, 1).astype(np.float32)
    return scales


def write_int8_cache_graph(folder: Path, scales: Scales) -> None:
    """Write `model_int8_cache.onnx` beside `model.onnx`, over the same file of weights.

    scales: [n_layer, 2, n_head, head_dim].
    """
    path = folder / GRAPH_FILES["fp32"]
    architecture = read_architecture(folder)
    layout = layout_of(read_model(path), architecture)
    stored = onnx.load(str(path), load_external_data=False)
    graph = describe(architecture, dataclasses.replace(layout, cache="int8"))
    graph.metadata |= {entry.key: entry.value for entry in stored.metadata_props}
    weights = {tensor.name: tensor for tensor in stored.graph.initializer}
    for layer, of_layer in enumerate(scales):
        for name, scale in zip(scale_names(layer), of_layer, strict=True):
            weights[name] = inline_tensor(name, scale[None, :, None])
    tensors = [_tensor(constant, weights) for constant in graph.constants.values()]
    (folder / GRAPH_FILES["int8"]).write_bytes(serialize(graph, tensors))


def _tensor(constant: Constant, weights: dict[str, TensorProto]) -> TensorProto:
    if constant.name in weights:
        return weights[constant.name]
    if constant.same_bytes is None:
        return inline_tensor(constant.name, fixed_array(constant))
    tensor = TensorProto()
    tensor.CopyFrom(weights[constant.same_bytes])
    tensor.name = constant.name
    tensor.dims[:] = constant.shape
    return tensor

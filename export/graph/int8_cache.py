"""The second graph of a folder: the same weights with an int8 key-value cache, see `runtime.graph.attention`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.graph.onnx_file import fixed_array, inline_tensor, same_bytes_tensor, serialize
from runtime.graph.architecture import read_architecture
from runtime.graph.attention import scale_names
from runtime.graph.check import layout_of
from runtime.graph.data import Constant
from runtime.graph.gpt2 import GRAPH_FILES, describe
from runtime.graph.reader import read_model
from runtime.model.model import Model
from runtime.model.prefill import prefill

Floats = NDArray[np.float32]
LARGEST = 127
"""The largest value of int8."""
MARGIN = 1.05
"""Room for larger keys and values than were measured: those that do not fit cost far more than a coarser scale."""
MARGIN_WITHOUT_TEXT = 1.4
"""The same where only random ids were measured, whose ranges are not those of a text."""


class Rounding(NamedTuple):
    """How keys and values are rounded: keys are centered first, then both are divided by their scales."""

    scales: Floats  # [n_layer, 2, n_head, head_dim]
    centers: Floats  # [n_layer, n_head, head_dim]


def measure_rounding(folder: Path, texts: Sequence[Sequence[int]], margin: float = MARGIN) -> Rounding:
    """Centers of keys, and scales of keys and values, from their ranges over the texts.

    A constant added to all keys changes no attention: it adds the same to every score of a query. The center of a
    channel is the middle of its range, so that the scale is as small as it can be. folder: a folder whose `model.onnx`
    is complete. texts: ids of each text. A channel that is constant has scale 1.
    """
    lowest: Any = np.inf
    highest: Any = -np.inf
    with Model(folder, cache="fp32", prepack=False) as model:
        cache = model.new_cache(max(map(len, texts)))
        for text in texts:
            prefill(cache, text)
            found = cache.read_row(0, len(text))
            lowest = np.minimum(lowest, found.min(axis=3))
            highest = np.maximum(highest, found.max(axis=3))
    centers = ((lowest + highest) / 2)[:, 0]
    largest = np.maximum(-lowest, highest)
    largest[:, 0] -= np.abs(centers)
    scales = np.where(largest > 0, margin * largest / LARGEST, 1)
    return Rounding(scales.astype(np.float32), centers.astype(np.float32))


def write_int8_cache_graph(folder: Path, rounding: Rounding) -> None:
    """Write `model_int8_cache.onnx` beside `model.onnx`, over the same file of weights.

    Its scales, and the biases that center keys, are in the graph's own file.
    """
    path = folder / GRAPH_FILES["fp32"]
    architecture = read_architecture(folder)
    layout = layout_of(read_model(path), architecture)
    stored = onnx.load(str(path), load_external_data=False)
    graph = describe(architecture, dataclasses.replace(layout, cache="int8"))
    graph.metadata |= {entry.key: entry.value for entry in stored.metadata_props}
    weights = {tensor.name: tensor for tensor in stored.graph.initializer}
    keys = slice(architecture.n_embd, 2 * architecture.n_embd)
    for layer, (scales, center) in enumerate(zip(*rounding, strict=True)):
        for name, scale in zip(scale_names(layer), scales, strict=True):
            weights[name] = inline_tensor(name, scale[None, :, None])
        name = f"h.{layer}.attn.c_attn.bias"
        bias = _array(weights[name], folder)
        bias[keys] -= center.ravel()
        weights[name] = inline_tensor(name, bias)
    tensors = [_tensor(constant, weights) for constant in graph.constants.values()]
    (folder / GRAPH_FILES["int8"]).write_bytes(serialize(graph, tensors))


def _array(tensor: TensorProto, folder: Path) -> Floats:
    """A copy of the value of an fp32 tensor, which may be in the file of weights."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.array(numpy_helper.to_array(tensor), np.float32)
    place = {entry.key: entry.value for entry in tensor.external_data}
    n_items = int(place["length"]) // 4
    return np.fromfile(folder / place["location"], "<f4", n_items, offset=int(place["offset"])).astype(np.float32)


def _tensor(constant: Constant, weights: dict[str, TensorProto]) -> TensorProto:
    if constant.name in weights:
        return weights[constant.name]
    if constant.same_bytes is None:
        return inline_tensor(constant.name, fixed_array(constant))
    return same_bytes_tensor(constant, weights[constant.same_bytes])

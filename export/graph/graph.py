"""Writes the graph that `runtime.graph.gpt2` describes, with a checkpoint's weights."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.checkpoint.config import Config
from export.graph.onnx_file import OnnxFile, fixed_array
from export.quantize.precision import Float32, Floats, Precision
from runtime.graph.classifier import describe_any
from runtime.graph.data import Constant, Graph, Value
from runtime.graph.gpt2 import (
    ACTIVATIONS,
    EVEN_ROWS_KEY,
    FACTOR,
    FORMAT,
    HIDDEN_FACTOR,
    KERNEL_KEY,
    PRODUCTS,
    Description,
    Layout,
    product_sizes,
)
from runtime.graph.kernels import Dense

HEADS = ("score", "classifier")
"""The layers of classifiers, in fp32 at every precision."""
Progress = Callable[[Iterable[int]], Iterable[int]]


class Weights(Protocol):
    """A checkpoint's tensors by name."""

    @property
    def embedding_factor(self) -> Floats | None:
        """What a looked-up row of `wte.weight` is multiplied by, [n_embd]; None for nothing."""

    @property
    def hidden_factor(self) -> Floats | None:
        """What the input of the output layer is multiplied by to be the last hidden states, [n_embd]; or None."""

    def __getitem__(self, name: str) -> Floats:
        """The tensor, fp32."""


def activation_floor(config: Config) -> float | None:
    """What the activation of this checkpoint never goes below; None if it has no such floor."""
    return ACTIVATIONS[config.activation_function].floor


def build(
    config: Config,
    tensors: Weights,
    precision: Precision,
    folder: Path,
    progress: Progress = iter,
    format_: str = FORMAT,
) -> None:
    """Write `model.onnx` and `model.onnx_data` into `folder`; `progress` wraps the walk over the layers.

    format_: an earlier one writes what earlier versions wrote.
    """
    kernels = {name: precision.kernel_of(name) for name in product_sizes(config)}
    if format_ != FORMAT:
        kernels = {name: Dense(by_gemm=True) if kernel == Dense() else kernel for name, kernel in kernels.items()}
    has_factor = tensors.embedding_factor is not None
    has_hidden_factor = tensors.hidden_factor is not None
    graph = describe_any(config, Layout(kernels, has_factor, has_hidden_factor, format=format_))
    if precision.kernel:
        graph.metadata[KERNEL_KEY] = precision.kernel
    graph.metadata[EVEN_ROWS_KEY] = str(int(precision.needs_even_rows))
    _write(graph, _Arrays(tensors, precision), folder, progress(range(config.n_layer)))


def build_layer(config: Config, tensors: Weights, layer: int, folder: Path) -> list[str]:
    """Write one layer alone, in fp32; returns the names of its products.

    `hidden` [batch_size, sequence_length, n_embd], a mask and an empty past -> `next_hidden`, and for each product,
    under its name, what it reads.
    """
    precision = Float32()
    kernels = {name: precision.kernel_of(name) for name in product_sizes(config)}
    description = Description(config, Layout(kernels))
    graph = description.graph
    description.lengths()
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    hidden = Value("hidden", "float32", ("batch_size", "sequence_length", config.n_embd))
    graph.inputs[:] = [hidden, mask]
    x = "hidden" if config.is_post_norm else description.layer_norm("hidden", f"h.{layer}.ln_1")
    _, residual = description.layer(layer, x, "hidden")
    told = {"next_hidden": residual, **description.read}
    graph.outputs[:] = [Value(name, "float32", ("batch_size", "sequence_length", f"width of {name}")) for name in told]
    for name, source in told.items():
        graph.node("Identity", [source], [name])
    _write(graph, _Arrays(tensors, precision), folder, [layer])
    return [*description.read]


def _write(graph: Graph, arrays: _Arrays, folder: Path, layers: Iterable[int]) -> None:
    """Both files. Constants are stored in their order, layer by layer."""
    left = collections.deque(graph.constants.values())
    with OnnxFile(folder) as file:
        for layer in layers:
            while left and _layer_of(left[0]) <= layer:
                _store(file, left.popleft(), arrays)
        for constant in left:
            _store(file, constant, arrays)
        file.save(graph)


def _layer_of(constant: Constant) -> int:
    """The layer that a constant belongs to; -1 for what is stored with the layer before it."""
    return int(constant.name.split(".")[1]) if constant.name.startswith("h.") else -1


def _store(file: OnnxFile, constant: Constant, arrays: _Arrays) -> None:
    if constant.same_bytes is not None:
        file.add_same_bytes(constant)
    elif constant.value is not None:
        file.add(constant, fixed_array(constant))
    else:
        file.add(constant, arrays.take(constant.name))


class _Arrays:
    """Weights by the name of their constant, rounded product by product as they are asked for."""

    def __init__(self, tensors: Weights, precision: Precision) -> None:
        self._tensors = tensors
        self._precision = precision
        self._made: dict[str, NDArray[Any]] = {}

    def take(self, name: str) -> NDArray[Any]:
        """Each can be taken once."""
        if name not in self._made:
            self._made |= self._make(name)
        return self._made.pop(name)

    def _make(self, name: str) -> dict[str, NDArray[Any]]:
        """The constant, and what is rounded together with it."""
        owner, _, part = name.rpartition(".")
        if name == FACTOR and self._tensors.embedding_factor is not None:
            return {name: self._tensors.embedding_factor}
        if name == HIDDEN_FACTOR and self._tensors.hidden_factor is not None:
            return {name: self._tensors.hidden_factor}
        if name == "wpe":
            return {name: self._tensors["wpe.weight"]}
        matrix = name.split(".")[0]
        if matrix in ("wte", "lm_head"):
            return self._precision.round_matrix(matrix, self._tensors[f"{matrix}.weight"])
        if owner.endswith(PRODUCTS) and part != "bias":
            return self._precision.round_linear(owner, self._tensors[f"{owner}.weight"])
        if owner in HEADS and part == "weight":
            # nn.Linear stores weights as [n_out, n_in].
            return {name: np.ascontiguousarray(self._tensors[name].T)}
        return {name: self._tensors[name]}

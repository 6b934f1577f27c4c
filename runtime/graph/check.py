"""Check that the graph of a model folder is the one that its config.json describes, before onnxruntime opens it.

Our own graphs must equal the description, except for the values of weights. The kernel of each product follows from the
constants that the file holds for it. Plain exports are checked by `runtime.graph.plain`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from runtime.errors import ModelFolderError
from runtime.graph import plain
from runtime.graph.architecture import Architecture, read_architecture
from runtime.graph.classifier import describe_any
from runtime.graph.data import DATA_FILE, Constant, Graph, Node, Subgraph
from runtime.graph.gpt2 import (
    ACTIVATIONS,
    EVEN_ROWS_KEY,
    FACTOR,
    FORMAT,
    FORMAT_KEY,
    FORMATS,
    HIDDEN_FACTOR,
    KERNEL_KEY,
    Layout,
    product_sizes,
)
from runtime.graph.kernels import BLOCK_SIZES, Blocks, Dense, Fp32, FrequentRows, Kernel, Static
from runtime.graph.places import check_places
from runtime.graph.reader import OnnxModel, Tensor

CURE = "build the model again, or copy the folder again; verify='off' trusts it as it is"
# Metadata that the export stage adds to the description, and its possible values.
_METADATA = {KERNEL_KEY: {"block", "dense", "mixed"}, EVEN_ROWS_KEY: {"0", "1"}}


def check_graph(model: OnnxModel) -> Callable[[int], None]:
    """Raise ValueError, naming the file and the difference, for a graph that is not the one of its config.json.

    Returns a function to call before each pass, with the number of ids in it: it raises ValueError for a pass of a
    plain export that could take too much memory. For our own graphs it does nothing.

    >>> from pathlib import Path
    >>> from runtime.graph.reader import read_model
    >>> check_graph(read_model(Path("models/demo-int8/model.onnx")))(1)
    """
    format_ = model.metadata.get(FORMAT_KEY)
    check_format(model.path, format_)
    architecture = read_architecture(model.path.parent)
    _check_layers(model, architecture)
    if format_ is not None:
        _check_described(model, architecture)
        return lambda _: None
    # Imported here, since most loads do not need it.
    from runtime.graph import sizes

    plain.check_plain(model, architecture)
    check_pass = functools.cache(functools.partial(sizes.check_sizes, model, architecture))
    check_pass(1)
    return check_pass


def _check_layers(model: OnnxModel, architecture: Architecture) -> None:
    if architecture.head is None:
        check_layers(model.path, [value.name for value in model.inputs], architecture.n_layer)
        return
    if FORMAT_KEY not in model.metadata:
        raise ModelFolderError(
            f"{model.path} is a plain ONNX export of a classifier, which is not loaded: build a model folder from its "
            "checkpoint"
        )
    n_layer = sum(node.operator == "GroupQueryAttention" for node in model.nodes)
    if n_layer != architecture.n_layer:
        _refuse(model, f"it has {n_layer} layers of attention for n_layer {architecture.n_layer}")


def check_format(path: object, format_: str | None) -> None:
    """Raise ValueError for one of our graphs that a later version wrote. format_: None for a plain export."""
    if format_ is not None and format_ not in FORMATS:
        raise ModelFolderError(f"{path} has format {format_}, this runtime reads up to {FORMAT}: upgrade gpt2-edge")


def check_layers(path: object, inputs: Sequence[str], n_layer: int) -> None:
    """Raise ValueError unless the graph has the past of `n_layer` layers among its inputs.

    The first check, since others loop over n_layer, and config.json may contain any number.
    """
    n_past = sum(name.startswith("past_key_values.") for name in inputs)
    if not n_past:
        raise ModelFolderError(
            f"{path} has no input 'past_key_values.0.key': it is not a GPT-2 with past-key-values "
            "(optimum exports one with --task text-generation-with-past)"
        )
    if n_past != 2 * n_layer:
        raise ModelFolderError(f"{path} has n_layer {n_past / 2:g}, but config.json says {n_layer}")


def _check_described(model: OnnxModel, architecture: Architecture) -> None:
    if architecture.activation_function not in ACTIVATIONS:
        _refuse(model, f"config.json has activation_function {architecture.activation_function!r}")
    graph = describe_any(architecture, layout_of(model, architecture))
    _check_header(model, graph)
    _check_equal(model, "input", model.inputs, graph.inputs)
    _check_equal(model, "output", model.outputs, graph.outputs)
    _check_constants(model, graph.constants)
    _check_equal(model, "node", model.nodes, graph.nodes)


def _refuse(model: OnnxModel, what: str) -> NoReturn:
    raise ModelFolderError(f"{model.path} is not the graph that config.json describes: {what}; {CURE}")


def layout_of(model: OnnxModel, architecture: Architecture) -> Layout:
    """The kernel of each product in this file, and what else the graph depends on."""
    kernels = {name: kernel_of(model, name, sizes) for name, sizes in product_sizes(architecture).items()}
    has_int8_cache = any(value.dtype == "int8" for value in model.inputs)
    return Layout(
        kernels,
        has_factor=FACTOR in model.constants,
        has_hidden_factor=HIDDEN_FACTOR in model.constants,
        cache="int8" if has_int8_cache else "fp32",
        format=model.metadata[FORMAT_KEY],
    )


def kernel_of(model: OnnxModel, name: str, sizes: tuple[int, int]) -> Kernel:
    """The kernel of a product or a matrix in this file; sizes: of `product_sizes`."""
    is_matrix = "." not in name
    # A matrix [n_vocab, n_embd] is stored as it is, a weight [n_in, n_out] is stored transposed.
    n_in = sizes[1] if is_matrix else sizes[0]
    if is_matrix and f"{name}.rest.q" in model.constants:
        return FrequentRows(_blocks(model, f"{name}.rest", n_in).size)
    packed = model.constants.get(f"{name}.q")
    if packed is None:
        return Fp32()
    if packed.dtype != "int8":
        return _blocks(model, name, n_in)
    if not is_matrix and f"{name}.step" in model.constants:
        return Static()
    return Dense(by_gemm=f"{name}.zero" in model.constants)


def _blocks(model: OnnxModel, name: str, n_in: int) -> Blocks:
    """The kernel of a weight in blocks; n_in: the length of its rows."""
    packed = model.constants[f"{name}.q"]
    bits = 4 if f"{name}.zero" in model.constants else 8
    size = packed.shape[-1] * 8 // bits if packed.shape else 0
    if size not in BLOCK_SIZES[bits] or n_in % size:
        _refuse(model, f"constant {packed.name!r} of shape {list(packed.shape)} is not in blocks of an allowed size")
    return Blocks(bits, size, has_half_scales=f"{name}.half_scale" in model.constants)


def _check_header(model: OnnxModel, graph: Graph) -> None:
    if model.ir_version != graph.ir_version or model.opsets != graph.opsets:
        _refuse(model, f"it has IR version {model.ir_version} and operator sets {model.opsets}")
    if model.others:
        _refuse(model, f"it declares the shape of {model.others[0].name!r}")
    for key, value in model.metadata.items():
        if graph.metadata.get(key) != value and value not in _METADATA.get(key, ()):
            _refuse(model, f"its metadata says {value!r} of {key!r}")


def _check_equal(model: OnnxModel, kind: str, found: Sequence[object], expected: Sequence[object]) -> None:
    """Raise ModelFolderError, naming the first difference, unless two lists of nodes, inputs or outputs are equal."""
    for one, wanted in itertools.zip_longest(found, expected):
        if one != wanted:
            _refuse(model, f"{kind} {_shown(one)} is there, {_shown(wanted)} is expected")


def _shown(one: object) -> str:
    """A node, an input or an output in words."""
    if one is None:
        return "none"
    if isinstance(one, Subgraph):
        nodes = ", ".join(_shown(node) for node in one.nodes)
        return f"[{nodes}] -> {', '.join(value.name for value in one.outputs)}"
    if not isinstance(one, Node):
        return str(tuple(one)) if isinstance(one, tuple) else repr(one)
    attributes = ", ".join(f"{each.name}={_shown(each.value)}" for each in one.attributes)
    operator = f"{one.domain}.{one.operator}" if one.domain else one.operator
    return f"{one.name!r} = {operator}({', '.join(one.inputs)}; {attributes}) -> {', '.join(one.outputs)}"


def _check_constants(model: OnnxModel, expected: Mapping[str, Constant]) -> None:
    found = model.constants
    if missing := expected.keys() - found.keys():
        _refuse(model, f"constant {min(missing)!r} is missing")
    if unknown := found.keys() - expected.keys():
        _refuse(model, f"constant {min(unknown)!r} is not expected")
    for name, constant in expected.items():
        tensor = found[name]
        if (tensor.dtype, tensor.shape) != (constant.dtype, constant.shape):
            _refuse(
                model,
                f"constant {name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"{constant.dtype} {list(constant.shape)} is expected",
            )
        if constant.value is not None and tensor.value != constant.value:
            _refuse(model, f"constant {name!r} has another value")
        if constant.same_bytes is not None:
            _check_same_bytes(model, tensor, found[constant.same_bytes])
    check_places(model, {DATA_FILE})


def _check_same_bytes(model: OnnxModel, tensor: Tensor, source: Tensor) -> None:
    if (tensor.place, tensor.value) != (source.place, source.value):
        _refuse(model, f"constant {tensor.name!r} has not the bytes of {source.name!r}")

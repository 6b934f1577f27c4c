"""A graph of ours must be the description in all but the weights, and is refused before onnxruntime opens it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.checkpoint.config import Config
from export.graph.graph import build
from export.graph.int8_cache import Rounding, write_int8_cache_graph
from export.quantize.int4 import Int4, quantize_int4
from export.quantize.kernels import Mixed, make_kernel
from export.quantize.precision import Arrays, Floats, Int8, Precision
from runtime import load
from runtime.graph.attention import CacheType
from runtime.graph.check import check_graph
from runtime.graph.data import Attribute, Node
from runtime.graph.gpt2 import ACTIVATIONS, FORMAT, GRAPH_FILES
from runtime.graph.head import read_head
from runtime.graph.kernels import Blocks, Kernel
from runtime.graph.reader import OnnxModel, Place, Tensor, read_model
from tests.support.damaging import build_small, copy_aged, list_again

SIZES: dict[str, Any] = {"vocab_size": 300, "n_positions": 96, "n_embd": 128, "n_layer": 2, "n_head": 4}


class Steps:
    """Weights of any checkpoint, the same everywhere."""

    def __init__(self, config: Config, *, has_factor: bool = False) -> None:
        self._shapes = config.tensor_shapes()
        self.embedding_factor = np.linspace(1, 2, config.n_embd, dtype=np.float32) if has_factor else None
        self.hidden_factor = self.embedding_factor

    def __getitem__(self, name: str) -> Floats:
        size = int(np.prod(self._shapes[name]))
        return ((np.arange(size) % 251 - 125) / np.float32(64)).reshape(self._shapes[name]).astype(np.float32)


def mixed(usual: str, **others: str) -> Mixed:
    made = {name.replace("_0_", ".0.").replace("_1_", ".1.").replace("__", "."): one for name, one in others.items()}
    return Mixed(make_kernel(usual), {name: make_kernel(one) for name, one in made.items()})


class EarlierInt4(Int4):
    """As earlier versions wrote it: scales in fp32, and the matrix of the vocabulary in int8."""

    def kernel_of(self, name: str) -> Kernel:
        return Blocks(8 if name in ("wte", "lm_head") else 4, self.block_size)

    def round_matrix(self, name: str, matrix: Floats) -> Arrays:
        return Int8(self.block_size).round_matrix(name, matrix)

    def round_linear(self, name: str, weight: Floats) -> Arrays:
        packed, scales, zeros = quantize_int4(weight.T, self.block_size)
        return {f"{name}.q": packed, f"{name}.scale": scales, f"{name}.zero": zeros}


MIXED = mixed("dense", h_0_attn__c_attn="block 64", h_1_mlp__c_proj="fp32", h_1_mlp__c_fc="block 32", wte="block 128")
RANGES = {f"h.{layer}.{name}": (-1.0, 2.0) for layer in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")}
CASES: dict[str, tuple[Precision, dict[str, Any]]] = {
    **{name: (make_kernel(name), {}) for name in ("fp32", "dense", "block 32", "block 64", "int4 32", "int4 64")},
    "large blocks": (make_kernel("block 256"), {"n_embd": 256}),
    "mixed": (MIXED, {}),
    "mixed int4": (mixed("int4 32", h_0_attn__c_attn="block 64", h_1_mlp__c_proj="fp32"), {"n_inner": 256}),
    "untied": (mixed("dense", lm_head="block 64"), {"tie_word_embeddings": False}),
    "untied int4": (make_kernel("int4 32"), {"tie_word_embeddings": False}),
    "int4, its output layer int8": (mixed("int4 32", wte="block 64"), {}),
    "earlier int4 32": (EarlierInt4(32), {}),
    "two tokens": (make_kernel("int4 32"), {"vocab_size": 2}),
    "static": (make_kernel("static", ranges=RANGES), {}),
    "one static product": (make_kernel("static", ranges={"h.1.attn.c_proj": (-1.0, 2.0)}), {}),
    "one layer": (make_kernel("dense"), {"n_layer": 1}),
    "scaled by layer": (make_kernel("block 32"), {"scale_attn_by_inverse_layer_idx": True, "n_inner": 96}),
    "unscaled": (make_kernel("dense"), {"scale_attn_weights": False, "layer_norm_epsilon": 1e-3}),
    **{f"dense {name}": (make_kernel("dense"), {"activation_function": name}) for name in ACTIVATIONS},
    **{f"fp32 {name}": (make_kernel("fp32"), {"activation_function": name}) for name in ("relu", "quick_gelu")},
}


def write(
    folder: Path, precision: Precision, changes: dict[str, Any], *, has_factor: bool = False, format_: str = FORMAT
) -> Path:
    """The two files of a graph, and the config.json that it follows."""
    sizes = SIZES | changes
    config = Config(**sizes)
    build(config, Steps(config, has_factor=has_factor), precision, folder, format_=format_)
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    return folder / "model.onnx"


@pytest.mark.parametrize("has_factor", [False, True], ids=["", "factor"])
@pytest.mark.parametrize("case", CASES)
def test_what_a_build_writes_is_the_description(tmp_path: Path, case: str, has_factor: bool) -> None:
    check_graph(read_model(write(tmp_path, *CASES[case], has_factor=has_factor)))


def halves(n_layer: int, n_parts: int, n_head: int, head_dim: int) -> Rounding:
    """A rounding by steps of a half around a half."""
    shape = (n_layer, n_parts, n_head, head_dim)
    return Rounding(np.full(shape, 0.5, np.float32), np.full((n_layer, *shape[2:]), 0.5, np.float32))


@pytest.mark.parametrize("case", CASES)
def test_the_graph_of_an_int8_cache_is_its_description(tmp_path: Path, case: str) -> None:
    write(tmp_path, *CASES[case])
    sizes = SIZES | CASES[case][1]
    shape = (sizes["n_layer"], 2, sizes["n_head"], sizes["n_embd"] // sizes["n_head"])
    write_int8_cache_graph(tmp_path, halves(*shape))
    model = read_model(tmp_path / GRAPH_FILES["int8"])
    check_graph(model)
    assert model.locations == {"model.onnx_data"}


def test_every_node_inside_a_branch_is_compared(tmp_path: Path) -> None:
    write(tmp_path, *CASES["dense"])
    write_int8_cache_graph(tmp_path, halves(2, 2, 4, 32))
    model = read_model(tmp_path / GRAPH_FILES["int8"])
    at = next(index for index, node in enumerate(model.nodes) if node.operator == "If")
    node = model.nodes[at]
    for index, attribute in enumerate(node.attributes):
        for inner, one in enumerate(attribute.value.nodes):
            for other in changed(one):
                nodes = (*attribute.value.nodes[:inner], other, *attribute.value.nodes[inner + 1 :])
                wrong = attribute._replace(value=attribute.value._replace(nodes=nodes))
                attributes = (*node.attributes[:index], wrong, *node.attributes[index + 1 :])
                changed_nodes = [*model.nodes[:at], node._replace(attributes=attributes), *model.nodes[at + 1 :]]
                assert "node" in refused(model, nodes=changed_nodes)


# SHA-256 of model.onnx, and of the graph of an int8 cache, as earlier formats had them. The first had no such graph.
EARLIER = {
    ("1", "dense"): ("0c8bc2eb2c3ca491", ""),
    ("1", "mixed"): ("f6bdfcb538193124", ""),
    ("1", "earlier int4 32"): ("ed164447a9f04e49", ""),
    ("1", "untied"): ("749ed938aa105216", ""),
    ("1", "fp32 relu"): ("70b626ff694b2016", ""),
    ("2", "dense"): ("b42a546a5cf22dae", "5bd73abe7f449de3"),
    ("2", "mixed"): ("9f958922673468d0", "151423c5a3cf0970"),
    ("2", "int4 32"): ("6c96cb7d239630f0", "ae551bc5cf20aebb"),
    ("2", "untied"): ("130e90bf48937935", "2db08b63325b6c79"),
    ("2", "static"): ("296b3fc06a409689", "aa526a5bf93edb2f"),
}


@pytest.mark.parametrize(("format_", "case"), EARLIER)
def test_graphs_have_the_bytes_that_earlier_versions_wrote(tmp_path: Path, format_: str, case: str) -> None:
    """So that models which they built still load."""

    def digest(graph: Path) -> str:
        check_graph(read_model(graph))
        return hashlib.sha256(graph.read_bytes()).hexdigest()[:16]

    graph = write(tmp_path, *CASES[case], has_factor=case == "mixed", format_=format_)
    expected, with_int8_cache = EARLIER[format_, case]
    assert digest(graph) == expected
    if with_int8_cache:
        write_int8_cache_graph(tmp_path, halves(2, 2, 4, 32))
        assert digest(tmp_path / GRAPH_FILES["int8"]) == with_int8_cache


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("graph"), MIXED, {}, has_factor=True)


@pytest.fixture
def model(path: Path) -> OnnxModel:
    return read_model(path)


def refused(model: OnnxModel, **changes: Any) -> str:
    with pytest.raises(ValueError, match=r"\.onnx") as error:
        check_graph(dataclasses.replace(model, **changes))
    return str(error.value)


def test_the_graph_may_hold_its_weights_itself(path: Path, tmp_path: Path) -> None:
    """As onnx saves it again."""
    onnx.save(onnx.load(path), tmp_path / "model.onnx")
    (tmp_path / "config.json").write_bytes((path.parent / "config.json").read_bytes())
    again = read_model(tmp_path / "model.onnx")
    assert again.locations == set()
    check_graph(again)


def other_attribute(one: Attribute) -> Attribute:
    more: Any = {"ints": (7,), "string": b"x"}.get(one.type, 1)
    return one._replace(value=one.value + more)


def other_type(one: Attribute) -> Attribute:
    return one._replace(type="float" if one.type == "int" else "int")


def changed(node: Node) -> Iterator[Node]:
    """Every way to change one part of it."""
    for index, one in enumerate(node.inputs):
        for name in ("", f"{one}x", "one", "positions"):
            if name != one:
                yield node._replace(inputs=(*node.inputs[:index], name, *node.inputs[index + 1 :]))
    yield node._replace(inputs=(*node.inputs, ""))
    yield node._replace(inputs=node.inputs[:-1])
    yield node._replace(outputs=(*node.outputs, "more"))
    yield node._replace(operator="Identity")
    yield node._replace(domain="other")
    yield node._replace(attributes=(*node.attributes, Attribute("zzz", "int", 0)))
    for index, attribute in enumerate(node.attributes):
        before, after = node.attributes[:index], node.attributes[index + 1 :]
        yield node._replace(attributes=before + after)
        for change in (other_attribute, other_type):
            yield node._replace(attributes=(*before, change(attribute), *after))


def test_no_node_can_be_changed(model: OnnxModel) -> None:
    for index, node in enumerate(model.nodes):
        for other in changed(node):
            told = refused(model, nodes=[*model.nodes[:index], other, *model.nodes[index + 1 :]])
            assert "is not the graph that config.json describes: node " in told


def test_nodes_cannot_be_added_left_out_or_moved(model: OnnxModel) -> None:
    nodes = model.nodes
    for others in (nodes[1:], nodes[:-1], [*nodes, nodes[0]], [nodes[1], nodes[0], *nodes[2:]], []):
        assert "node " in refused(model, nodes=others)


def test_no_constant_can_be_changed_or_added_or_left_out(model: OnnxModel) -> None:
    for name, tensor in model.constants.items():
        others = {key: one for key, one in model.constants.items() if key != name}
        if name not in ("wte.factor", "last_hidden_state.factor"):
            refused(model, constants=others)
        for change in ({"dtype": "float64"}, {"shape": (*tensor.shape, 1)}, {"shape": (*tensor.shape[:-1], 7)}):
            refused(model, constants=others | {name: tensor._replace(**change)})
    for name in ("more", "h.0.attn.c_attn.zero", "lm_head.q", "h.2.ln_1.weight"):
        more = Tensor(name, "uint8", (1,), None, b"\x00")
        refused(model, constants=model.constants | {name: more})


@pytest.mark.parametrize("name", ["one", "end", "num_logits_to_keep", "tokens.last", "h.0.mlp.c_proj.out.least"])
def test_values_that_every_model_has_are_compared(tmp_path: Path, name: str) -> None:
    model = read_model(write(tmp_path, make_kernel("dense"), {}))
    tensor = model.constants[name]
    assert tensor.value is not None
    other = tensor._replace(value=bytes([tensor.value[0] ^ 3]) + tensor.value[1:])
    assert f"constant '{name}' has another value" in refused(model, constants=model.constants | {name: other})


def test_rows_of_the_embedding_are_the_bytes_of_the_output_layer(model: OnnxModel) -> None:
    rows = model.constants["wte.rows"]
    assert rows.place is not None
    other = rows._replace(place=rows.place._replace(offset=4096))
    assert "has not the bytes of 'wte.q'" in refused(model, constants=model.constants | {"wte.rows": other})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wte.rest.rows", {"shape": (1, 32)}, "constant 'wte.rest.rows' is uint8 [1, 32]"),
        ("wte.rest.q", {"shape": (200, 4, 8)}, "constant 'wte.rest.q' of shape [200, 4, 8] is not in blocks"),
        ("wte.first.half_scale", {"dtype": "float32"}, "constant 'wte.first.half_scale' is float32"),
        ("tokens.border", {"value": b"\x09" + bytes(7)}, "constant 'tokens.border' has another value"),
    ],
)
def test_both_parts_of_an_int4_vocabulary_are_compared(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    model = read_model(write(tmp_path, make_kernel("int4 32"), {}))
    other = model.constants[name]._replace(**change)
    assert message in refused(model, constants=model.constants | {name: other})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ir_version": 9}, "IR version 9"),
        ({"opsets": {"": 21, "com.microsoft": 1}}, "operator sets"),
        ({"opsets": {"": 18, "com.microsoft": 1, "other": 1}}, "other"),
        ({"inputs": []}, "no input 'past_key_values"),
        ({"outputs": []}, "output none is there"),
        ({"metadata": {"gpt2_edge_format": "4"}}, "has format 4, this runtime reads up to 3: upgrade gpt2-edge"),
        ({"metadata": {"gpt2_edge_format": "1"}}, "input ('num_hidden_to_keep', "),
        ({"metadata": {"gpt2_edge_format": "2", "more": "1"}}, "metadata says '1' of 'more'"),
        ({"metadata": {"gpt2_edge_format": "2", "gpt2_edge_kernel": "odd"}}, "metadata says 'odd'"),
        ({"metadata": {}}, "no plain export of GPT-2"),
    ],
)
def test_what_is_said_of_the_whole_graph(model: OnnxModel, changes: dict[str, Any], message: str) -> None:
    assert message in refused(model, **changes)


def test_shapes_of_other_values_are_refused(model: OnnxModel) -> None:
    assert "shape of 'input_ids'" in refused(model, others=model.inputs[:1])


def test_a_free_dimension_cannot_be_fixed(model: OnnxModel) -> None:
    first = model.inputs[0]._replace(shape=("batch_size", 8))
    assert "input ('input_ids', 'int64', ('batch_size', 8)) is there" in refused(
        model, inputs=[first, *model.inputs[1:]]
    )


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("elsewhere", 0, 0), "has its weights in 'elsewhere'; model.onnx_data beside it is expected"),
        (Place("*/_ORT_MEM_ADDR_/*", 65536, 0), "has its weights in"),
        (Place("model.onnx_data", 10**9, 0), "'wpe' up to byte 1000"),
    ],
)
def test_weights_lie_within_the_one_file_of_its_name(model: OnnxModel, place: Place, message: str) -> None:
    wpe = model.constants["wpe"]
    assert wpe.place is not None
    moved = wpe._replace(place=place._replace(length=wpe.place.length))
    assert message in refused(model, constants=model.constants | {"wpe": moved})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_head", 8),
        ("n_embd", 64),
        ("n_layer", 3),
        ("n_inner", 64),
        ("n_positions", 97),
        ("vocab_size", 301),
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("tie_word_embeddings", False),
    ],
)
def test_the_graph_follows_every_key_of_config_json(path: Path, tmp_path: Path, key: str, value: object) -> None:
    for one in path.parent.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    check_graph(read_model(tmp_path / "model.onnx"))
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        check_graph(read_model(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_head", 0, "n_head is 0; a whole number from 1"),
        ("n_embd", 10**40, "n_embd is 1000"),
        ("n_embd", 130, "no multiple of n_head"),
        ("n_head", True, "n_head is True; int is expected"),
        ("n_inner", "64", "n_inner is '64'; int or null is expected"),
        ("layer_norm_epsilon", float("inf"), "layer_norm_epsilon is inf"),
        ("layer_norm_epsilon", 1, "layer_norm_epsilon is 1; float is expected"),
        ("tie_word_embeddings", 0, "tie_word_embeddings is 0; bool is expected"),
        ("activation_function", "sin", "activation_function 'sin'"),
    ],
)
def test_impossible_values_are_refused_by_name(
    path: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_graph(read_model(tmp_path / "model.onnx"))


# classifiers --------------------------------------------------------------------------------------------------------


def write_head(folder: Path, kernel: str, architecture: str) -> OnnxModel:
    """The graph of a classifier, and the config.json that it follows."""
    raw = SIZES | {"architectures": [architecture], "id2label": {"0": "no", "1": "yes"}, "pad_token_id": 7}
    config = Config(**SIZES, head=read_head(raw))
    build(config, Steps(config), make_kernel(kernel), folder)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return read_model(folder / "model.onnx")


@pytest.mark.parametrize("kernel", ["fp32", "dense", "block 64", "int4 32"])
@pytest.mark.parametrize("architecture", ["GPT2ForSequenceClassification", "GPT2ForTokenClassification"])
def test_the_graph_of_a_classifier_is_its_description(tmp_path: Path, kernel: str, architecture: str) -> None:
    model = write_head(tmp_path, kernel, architecture)
    check_graph(model)(1)
    assert "it has 2 layers of attention for n_layer 3" in refused_after(model, n_layer=3)
    assert "no input 'past_key_values.0.key'" in refused_after(model, architectures=["GPT2LMHeadModel"])
    assert "is there" in refused_after(model, id2label={"0": "no", "1": "yes", "2": "maybe"})
    if architecture == "GPT2ForSequenceClassification":
        assert "'pad_token_id' has another value" in refused_after(model, pad_token_id=8)


def refused_after(model: OnnxModel, **changes: Any) -> str:
    """What is said of a graph whose config.json was changed, which is put back."""
    path = model.path.parent / "config.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(before) | changes), encoding="utf-8")
    try:
        return refused(model)
    finally:
        path.write_text(before, encoding="utf-8")


def test_no_node_of_a_classifier_can_be_changed(tmp_path: Path) -> None:
    model = write_head(tmp_path, "dense", "GPT2ForSequenceClassification")
    for index, node in enumerate(model.nodes):
        for other in changed(node):
            refused(model, nodes=[*model.nodes[:index], other, *model.nodes[index + 1 :]])


def test_a_plain_export_of_a_classifier_is_named(tmp_path: Path) -> None:
    model = write_head(tmp_path, "fp32", "GPT2ForTokenClassification")
    assert "is a plain ONNX export of a classifier, which is not loaded: build" in refused(model, metadata={})


# whole folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("whole"))


# The graph that a load opens, by the type of its cache.
GRAPHS = pytest.mark.parametrize("cache", GRAPH_FILES)


def edit_graph(folder: Path, edit: Callable[[onnx.GraphProto], object], cache: CacheType) -> None:
    """Change the graph as someone would who writes new checksums too."""
    path = folder / GRAPH_FILES[cache]
    model = onnx.load(path, load_external_data=False)
    edit(model.graph)
    onnx.save(model, path)
    list_again(folder)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those inside branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g)


def set_heads(graph: onnx.GraphProto) -> None:
    node = next(node for node in all_nodes(graph) if node.op_type == "GroupQueryAttention")
    next(one for one in node.attribute if one.name == "kv_num_heads").i = 1


def drop_input(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Max").input[1] = ""


def add_bomb(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([3 << 28]), "size"))
    graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["bomb"]))


@pytest.mark.parametrize("edit", [set_heads, drop_input, add_bomb])
@pytest.mark.parametrize("how", [None, "full", "size"])
@GRAPHS
def test_a_hostile_graph_is_refused_before_onnxruntime_opens_it(
    whole: Path,
    tmp_path: Path,
    edit: Callable[[onnx.GraphProto], object],
    how: Any,
    cache: CacheType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_aged(whole, tmp_path)
    load(folder, cache=cache).close()
    edit_graph(folder, edit, cache)
    monkeypatch.setattr("runtime.model.model.Session", None)
    with pytest.raises(ValueError, match="is not the graph that config"):
        load(folder, verify=how, cache=cache)


def test_the_graph_is_compared_even_where_a_stamp_says_that_it_was(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_aged(whole, tmp_path)
    checked: list[OnnxModel] = []
    monkeypatch.setattr("runtime.model.model.check_graph", checked.append)
    for _ in range(2):
        load(folder).close()
    assert len(checked) == 2
    load(folder, verify="off").close()
    assert len(checked) == 2


@pytest.mark.parametrize("location", ["../outside", "/etc/passwd", "sub/../../outside", "C:/outside", "..\\outside"])
@GRAPHS
def test_weights_outside_the_folder_are_refused(whole: Path, tmp_path: Path, location: str, cache: CacheType) -> None:
    folder = copy_aged(whole, tmp_path)

    def move(graph: onnx.GraphProto) -> None:
        first = next(tensor for tensor in graph.initializer if tensor.external_data)
        next(entry for entry in first.external_data if entry.key == "location").value = location

    edit_graph(folder, move, cache)
    with pytest.raises(ValueError, match=r"\.onnx has its weights in .*outside the model folder"):
        load(folder, cache=cache)
    # this onnxruntime refuses them, too
    if location in ("../outside", "/etc/passwd"):
        (tmp_path / "outside").write_bytes((folder / "model.onnx_data").read_bytes())
        with pytest.raises(ValueError, match=r"(escapes|Absolute)"):
            load(folder, verify="off", cache=cache)

"""Attention with its key-value cache, as nodes of the graph: one form for each type of cache.

A pass appends the keys and values of its tokens to those of earlier ones. Both forms write them in place when past and
present are the same memory. Keys and values of a layer are each [batch, n_head, positions, head_dim].
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from runtime.graph.architecture import Architecture
from runtime.graph.data import INT32, MICROSOFT, Graph, Value

CacheType = Literal["fp32", "int8"]
DTYPES: dict[CacheType, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "int8": np.dtype(np.int8)}
"""Of keys and values, by the type of the cache."""
PARTS = ("key", "value")
N_GROUPS = 2
"""In how many groups of heads a prompt attends over an int8 cache."""
# The order of dimensions that exchanges positions and heads.
_SWAPPED = [0, 2, 1, 3]


class Attention(Protocol):
    """How the graph attends, and what its cache holds."""

    def prepare(self, graph: Graph) -> None:
        """Append the inputs of the graph beside ids and positions, and the nodes that all layers share."""

    def attend(self, graph: Graph, architecture: Architecture, layer: int, qkv: str) -> str:
        """Query, key and value side by side [batch, sequence, 3 n_embd] -> [batch, sequence, n_embd]."""


class Fp32Cache:
    """The standard interface: an fp32 cache, and a mask that says how many tokens each row holds."""

    def prepare(self, graph: Graph) -> None:
        """See `Attention.prepare`."""
        graph.inputs.insert(1, Value("attention_mask", "int64", ("batch_size", "total_sequence_length")))
        _read_mask(graph)

    def attend(self, graph: Graph, architecture: Architecture, layer: int, qkv: str) -> str:
        """See `Attention.attend`."""
        _declare(graph, architecture, layer, "float32", "total_sequence_length")
        past = _tensors("past_key_values", layer)
        outputs = [f"h.{layer}.attn", *_tensors("present", layer)]
        inputs = [qkv, "", "", *past, "seqlens_k", "total_sequence_length"]
        return graph.node("GroupQueryAttention", inputs, outputs, MICROSOFT, **_heads(architecture, layer))


class NoCache:
    """Whole texts in one pass, with neither past nor present. The mask is declared by whoever uses it."""

    def prepare(self, graph: Graph) -> None:
        """See `Attention.prepare`."""
        _read_mask(graph)

    def attend(self, graph: Graph, architecture: Architecture, layer: int, qkv: str) -> str:
        """See `Attention.attend`."""
        inputs = [qkv, "", "", "", "", "seqlens_k", "total_sequence_length"]
        outputs = [f"h.{layer}.attn", f"h.{layer}.key", f"h.{layer}.value"]
        return graph.node("GroupQueryAttention", inputs, outputs, MICROSOFT, **_heads(architecture, layer))


class Int8Cache:
    """An int8 cache with a scale for each channel of keys and values, for this runtime alone.

    There is no mask: the position of a token is its place in the cache; rows are padded on the right, with position 0.
    The buffers of past and present are as long as the cache's capacity. Several rows take several tokens only at the
    beginning.

    A single token attends by `GroupQueryAttention`, which reads the int8 cache as it is. Several tokens attend by
    `Attention` in fp32, since the former takes twice as long for them. Both read keys and values that are rounded, so
    the logits of a token are the same in either pass, up to the order of additions. Several tokens attend in groups of
    heads, one group after the other, since the scores of all heads would take most of the memory of a pass.

    is_earlier: as in formats before 3, without groups of heads.
    """

    def __init__(self, n_head: int, *, is_earlier: bool = False) -> None:
        self.is_earlier = is_earlier
        self.n_groups = 1 if is_earlier else min(N_GROUPS, n_head)
        # Of each group: the first head, and the head past its end. `Split` divides heads in the same way.
        size = -(-n_head // self.n_groups)
        self.groups = [(i * size, min((i + 1) * size, n_head)) for i in range(self.n_groups)]

    def prepare(self, graph: Graph) -> None:
        """See `Attention.prepare`."""
        # The first with TensorScatter, and the IR version that belongs to it.
        graph.opsets[""] = 24
        graph.ir_version = 11
        node = graph.node
        one = graph.fixed("one", np.array([1], np.int64))
        node("ReduceMax", ["position_ids", one], ["last_position"], keepdims=0)
        node("Cast", ["last_position"], ["seqlens_k"], to=INT32)
        node("Shape", ["past_key_values.0.key"], ["capacity"], start=2, end=3)
        node("Squeeze", ["capacity"], ["total"])
        node("Cast", ["total"], ["total_sequence_length"], to=INT32)
        ids = "input_ids" if self.is_earlier else "position_ids"
        node("Shape", [ids], ["n_ids"], start=1, end=2)
        node("Equal", ["n_ids", one], ["is_step"])
        # [batch]: the position of the first token of the pass, and that after its last.
        node("Gather", ["position_ids", graph.fixed("first", np.array(0, np.int64))], ["begin"], axis=1)
        node("Add", ["begin", "n_ids"], ["end_of_pass"])
        # [1], since several rows with several tokens all begin at 0.
        node("Gather", ["end_of_pass", graph.fixed("zero", np.array([0], np.int64))], ["n_held"])
        graph.fixed("unit", np.array(1, np.float32))
        graph.fixed("int8_zero", np.array(0, np.int8))
        if self.n_groups == 1:
            graph.fixed("position_axis", np.array([2], np.int64))
            return
        graph.fixed("head_and_position_axes", np.array([1, 2], np.int64))
        for i, (begin, end) in enumerate(self.groups):
            graph.fixed(f"group.{i}.begin", np.array([begin, 0], np.int64))
            graph.fixed(f"group.{i}.last_head", np.array([end], np.int64))
            node("Concat", [f"group.{i}.last_head", "n_held"], [f"group.{i}.end"], axis=0)

    def attend(self, graph: Graph, architecture: Architecture, layer: int, qkv: str) -> str:
        """See `Attention.attend`."""
        _declare(graph, architecture, layer, "int8", "past_sequence_length")
        shape = (1, architecture.n_head, 1, architecture.head_dim)
        for scale in scale_names(layer):
            graph.weight(scale, "float32", shape)
            # The same numbers for a tensor whose heads are side by side.
            graph.same_bytes(f"{scale}.flat", scale, (architecture.n_embd,))
        outputs = [f"h.{layer}.attn", *_tensors("present", layer)]
        step = self._step(graph, architecture, layer, qkv, [f"{name}.step" for name in outputs])
        prefill = self._prefill(graph, architecture, layer, qkv, [f"{name}.prefill" for name in outputs])
        return graph.node("If", ["is_step"], outputs, then_branch=step, else_branch=prefill)

    def _step(self, graph: Graph, architecture: Architecture, layer: int, qkv: str, outputs: list[str]) -> Graph:
        """One token in each row."""
        branch = _branch(graph, outputs)
        past = _tensors("past_key_values", layer)
        omitted = [""] * 5
        inputs = [qkv, "", "", *past, "seqlens_k", "total_sequence_length", *omitted, *scale_names(layer)]
        kinds: dict[str, int | str] = {"kv_cache_bit_width": 8}
        kinds |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        branch.node("GroupQueryAttention", inputs, outputs, MICROSOFT, **_heads(architecture, layer), **kinds)
        return branch

    def _prefill(self, graph: Graph, architecture: Architecture, layer: int, qkv: str, outputs: list[str]) -> Graph:
        """Several tokens: append their keys and values, then attend to all that the cache holds."""
        attended, *present = outputs
        branch = _branch(graph, outputs)
        node = branch.node
        here = f"h.{layer}.attn"
        heads = graph.fixed("heads", np.array([0, 0, architecture.n_head, architecture.head_dim], np.int64))
        key_scale, value_scale = (f"{scale}.flat" for scale in scale_names(layer))
        node("Split", [qkv], [f"{here}.query", f"{here}.key", f"{here}.value"], axis=-1, num_outputs=3)
        # The scales of keys go to the query, and those of values to the result.
        node("Mul", [f"{here}.query", key_scale], [f"{here}.query.scaled"])
        query = _heads_apart(branch, f"{here}.query.scaled", heads)
        read = []
        for part, scale, new, old in zip(
            PARTS, (key_scale, value_scale), present, _tensors("past_key_values", layer), strict=True
        ):
            name = f"{here}.{part}"
            node("Div", [name, scale], [f"{name}.units"])
            node("QuantizeLinear", [f"{name}.units", "unit", "int8_zero"], [f"{name}.rounded"])
            rounded = _heads_apart(branch, f"{name}.rounded", heads)
            node("TensorScatter", [old, rounded, "begin"], [new], axis=2)
            if self.n_groups == 1:
                read.append(_read_held(branch, name, new, ["zero", "n_held", "position_axis"]))
        scores_scale = architecture.attention_scale(layer)
        if self.n_groups == 1:
            _attend_to(branch, [query, *read], f"{here}.heads", scores_scale)
        else:
            self._attend_in_groups(branch, here, query, present, scores_scale)
        node("Transpose", [f"{here}.heads"], [f"{here}.heads.beside"], perm=_SWAPPED)
        width = graph.fixed("width", np.array([0, 0, architecture.n_embd], np.int64))
        node("Reshape", [f"{here}.heads.beside", width], [f"{here}.joined"])
        node("Mul", [f"{here}.joined", value_scale], [attended])
        return branch

    def _attend_in_groups(self, branch: Graph, here: str, query: str, present: list[str], scale: float) -> None:
        """Attend with one group of heads after the other, and put their results side by side."""
        queries = [f"{here}.query.group.{i}" for i in range(self.n_groups)]
        branch.node("Split", [query], queries, axis=1, num_outputs=self.n_groups)
        results = []
        for i, one in enumerate(queries):
            suffix = f".group.{i}"
            held = [f"group.{i}.begin", f"group.{i}.end", "head_and_position_axes"]
            read = [
                _read_held(branch, f"{here}.{part}", buffer, held, suffix)
                for part, buffer in zip(PARTS, present, strict=True)
            ]
            results.append(_attend_to(branch, [one, *read], f"{here}.heads{suffix}", scale))
        branch.node("Concat", results, [f"{here}.heads"], axis=1)


def _read_mask(graph: Graph) -> None:
    """Append what `GroupQueryAttention` reads of the mask: seqlens_k [batch], and total_sequence_length, a scalar."""
    node = graph.node
    one = graph.fixed("one", np.array([1], np.int64))
    node("ReduceSum", ["attention_mask", one], ["n_tokens"], keepdims=0)
    node("Sub", ["n_tokens", one], ["last_index"])
    # Padding on the left or between tokens would give wrong results without an error. Such a row makes the index below
    # run past the end of `one`, so that the graph fails instead.
    node("ArgMax", ["attention_mask"], ["last_token"], axis=1, keepdims=0, select_last_index=1)
    node("Sub", ["last_token", "last_index"], ["n_padded_before_last"])
    node("Gather", [one, "n_padded_before_last"], ["attention_mask_must_be_padded_on_the_right"])
    node("Mul", ["last_index", "attention_mask_must_be_padded_on_the_right"], ["last_index_or_failure"])
    node("Cast", ["last_index_or_failure"], ["seqlens_k"], to=INT32)
    node("Shape", ["attention_mask"], ["mask_length"], start=1, end=2)
    node("Squeeze", ["mask_length"], ["total"])
    node("Cast", ["total"], ["total_sequence_length"], to=INT32)


def _read_held(branch: Graph, name: str, buffer: str, held: list[str], suffix: str = "") -> str:
    """Keys or values in fp32, without their scales: the part of a buffer that holds tokens.

    held: begin, end and axes of that part. suffix: of the names of its values.
    """
    branch.node("Slice", [buffer, *held], [f"{name}.held{suffix}"])
    return branch.node("DequantizeLinear", [f"{name}.held{suffix}", "unit", "int8_zero"], [f"{name}.all{suffix}"])


def _attend_to(branch: Graph, query_key_value: list[str], out: str, scale: float) -> str:
    """Causal attention, each [batch, heads, positions, head_dim]."""
    # With the number of tokens held, the last query attends to the last of them.
    inputs = [*query_key_value, "", "", "", "end_of_pass"]
    return branch.node("Attention", inputs, [out], is_causal=1, scale=scale)


def _branch(graph: Graph, outputs: list[str]) -> Graph:
    """A branch of the `If` of a layer, with its outputs: what was attended, and the present keys and values."""
    branch = graph.branch()
    branch.outputs += [
        Value(name, dtype, None) for name, dtype in zip(outputs, ("float32", "int8", "int8"), strict=True)
    ]
    return branch


def _heads_apart(graph: Graph, x: str, heads: str) -> str:
    """x [batch, sequence, n_embd] -> [batch, n_head, sequence, head_dim]."""
    graph.node("Reshape", [x, heads], [f"{x}.heads"])
    return graph.node("Transpose", [f"{x}.heads"], [f"{x}.apart"], perm=_SWAPPED)


def _tensors(prefix: str, layer: int) -> list[str]:
    """The names of the keys and values of a layer, for the prefix "past_key_values" or "present"."""
    return [f"{prefix}.{layer}.{part}" for part in PARTS]


def scale_names(layer: int) -> list[str]:
    """The names of the scales of keys and values of a layer."""
    return [f"h.{layer}.attn.{part}_scale" for part in PARTS]


def _heads(architecture: Architecture, layer: int) -> dict[str, int | float]:
    """The attributes of `GroupQueryAttention`, with as many key heads as heads."""
    n_head = architecture.n_head
    return {"num_heads": n_head, "kv_num_heads": n_head, "scale": architecture.attention_scale(layer)}


def _declare(graph: Graph, architecture: Architecture, layer: int, dtype: str, present_length: str) -> None:
    """Append the past of a layer to the inputs of the graph, and the present to its outputs."""
    for prefix, declared, length in (
        ("past_key_values", graph.inputs, "past_sequence_length"),
        ("present", graph.outputs, present_length),
    ):
        shape = ("batch_size", architecture.n_head, length, architecture.head_dim)
        declared += [Value(name, dtype, shape) for name in _tensors(prefix, layer)]

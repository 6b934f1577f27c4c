"""The description: GPT-2 or GPT as one fused ONNX graph for onnxruntime's CPU kernels, with the ecosystem's own names.

    input_ids       [batch_size, sequence_length]
    attention_mask  [batch_size, total_sequence_length]   1 for tokens, then 0 for padding: never 0 before 1
    position_ids    [batch_size, sequence_length]
    num_logits_to_keep [1]   default 0: logits of every position; 1: of the last only
    past_key_values.{i}.{key,value}  [batch_size, n_head, past_sequence_length, head_dim]
 -> logits          [batch_size, kept_length, n_vocab]
    present.{i}.{key,value}          [batch_size, n_head, total_sequence_length, head_dim]

`GroupQueryAttention` writes new keys and values in place when past and present are the same memory.

GPT has post-norm blocks: LayerNorm follows each residual sum, what it puts out is the next residual too, and no `ln_f`
follows the last layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from runtime.graph.architecture import Architecture
from runtime.graph.data import INT32, MICROSOFT, Graph, Value
from runtime.graph.kernels import Kernel

FORMAT_KEY, KERNEL_KEY, EVEN_ROWS_KEY = "gpt2_edge_format", "gpt2_edge_kernel", "gpt2_edge_needs_even_rows"
FORMAT = "1"  # how the runtime knows that past and present may share memory
PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
FACTOR = "wte.factor"
_GELU_FLOOR = -0.1701  # none of the family goes lower
_SILU_FLOOR = -0.2785


class Activation(NamedTuple):
    """The operator of an activation function."""

    operator: str
    domain: str
    floor: float | None  # what its output never goes below
    attributes: Mapping[str, float] = {}
    adds_bias: bool = False  # the operator takes a bias, too


_FAST_GELU = Activation("FastGelu", MICROSOFT, _GELU_FLOOR, adds_bias=True)
_SILU = Activation("QuickGelu", MICROSOFT, _SILU_FLOOR, {"alpha": 1.0})
ACTIVATIONS = {
    "gelu_new": _FAST_GELU,
    "gelu_fast": _FAST_GELU,
    "gelu_pytorch_tanh": _FAST_GELU,
    "gelu": Activation("Gelu", MICROSOFT, _GELU_FLOOR),
    "quick_gelu": Activation("QuickGelu", MICROSOFT, _GELU_FLOOR, {"alpha": 1.702}),
    "relu": Activation("Relu", "", 0.0),
    "silu": _SILU,
    "swish": _SILU,
    "tanh": Activation("Tanh", "", None),
}
"""By `activation_function` of config.json."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which kernel each product has, and what equalization added."""

    kernels: Mapping[str, Kernel]  # by name, such as h.0.attn.c_attn, and of wte and lm_head
    has_factor: bool = False  # rows of the embedding are multiplied by `wte.factor` after the lookup


def product_sizes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Of every weight matrix that has a kernel, by name.

    Products in layers have [n_in, n_out], `wte` and, where it is not tied, `lm_head` [n_vocab, n_embd].
    """
    n_embd, inner = architecture.n_embd, architecture.inner_size
    sizes = dict(zip(PRODUCTS, ((n_embd, 3 * n_embd), (n_embd, n_embd), (n_embd, inner), (inner, n_embd)), strict=True))
    matrices = ("wte",) if architecture.tie_word_embeddings else ("wte", "lm_head")
    found = dict.fromkeys(matrices, (architecture.vocab_size, n_embd))
    for layer in range(architecture.n_layer):
        found |= {f"h.{layer}.{name}": size for name, size in sizes.items()}
    return found


def describe(architecture: Architecture, layout: Layout) -> Graph:
    """The whole graph, from ids to logits; its metadata says only the format."""
    return Description(architecture, layout).whole()


class Description:
    """One walk through the network. x is the normed input, residual the sum that flows by.

    In post-norm blocks the residual is x itself.
    """

    def __init__(self, architecture: Architecture, layout: Layout) -> None:
        self.architecture = architecture
        self.layout = layout
        self.sizes = product_sizes(architecture)
        self.graph = Graph(metadata={FORMAT_KEY: FORMAT})
        self.graph.inputs += [
            Value("input_ids", "int64", ("batch_size", "sequence_length")),
            Value("attention_mask", "int64", ("batch_size", "total_sequence_length")),
            Value("position_ids", "int64", ("batch_size", "sequence_length")),
            Value("num_logits_to_keep", "int64", (1,)),
        ]
        self.graph.outputs.append(Value("logits", "float32", ("batch_size", "kept_length", architecture.vocab_size)))
        self.read: dict[str, str] = {}  # product -> its input

    def whole(self) -> Graph:
        """From ids to logits."""
        self.lengths()
        x, residual = self.embeddings()
        for layer in range(self.architecture.n_layer):
            x, residual = self.layer(layer, x, residual)
        self.logits(x)
        return self.graph

    def lengths(self) -> None:
        """What several nodes need: which positions get logits, and from the mask, what GroupQueryAttention wants.

        That is seqlens_k [batch] and total_sequence_length, a scalar.
        """
        node = self.graph.node
        one = self.graph.fixed("one", np.array([1], np.int64))
        node("ReduceSum", ["attention_mask", one], ["n_tokens"], keepdims=0)
        node("Sub", ["n_tokens", one], ["last_index"])
        # padding on the left or between would be silently wrong: such a row reads past the end of `one` and fails
        node("ArgMax", ["attention_mask"], ["last_token"], axis=1, keepdims=0, select_last_index=1)
        node("Sub", ["last_token", "last_index"], ["n_padded_before_last"])
        node("Gather", [one, "n_padded_before_last"], ["attention_mask_must_be_padded_on_the_right"])
        node("Mul", ["last_index", "attention_mask_must_be_padded_on_the_right"], ["last_index_or_failure"])
        node("Cast", ["last_index_or_failure"], ["seqlens_k"], to=INT32)
        node("Shape", ["attention_mask"], ["mask_length"], start=1, end=2)
        node("Squeeze", ["mask_length"], ["total"])
        node("Cast", ["total"], ["total_sequence_length"], to=INT32)
        # an input with a default, so that others need not know it
        self.graph.fixed("num_logits_to_keep", np.zeros(1, np.int64))
        node("Neg", ["num_logits_to_keep"], ["first_kept"])
        self.graph.fixed("end", np.array([2**62], np.int64))

    def embeddings(self) -> tuple[str, str]:
        """Tokens and positions -> x and residual of the first layer."""
        graph, architecture = self.graph, self.architecture
        kernel = self.layout.kernels["wte"]
        kernel.store(graph, "wte", self.sizes["wte"])
        tokens = kernel.embed(graph, "wte", "tokens")
        if self.layout.has_factor:
            factor = graph.weight(FACTOR, "float32", (architecture.n_embd,))
            tokens = graph.node("Mul", [tokens, factor], ["tokens.restored"])
        wpe = graph.weight("wpe", "float32", (architecture.n_positions, architecture.n_embd))
        positions = graph.node("Gather", [wpe, "position_ids"], ["positions"])
        if architecture.is_post_norm:
            total = graph.node("Add", [tokens, positions], ["embeddings"])
            return total, total
        return self.norm(tokens, positions, "h.0.ln_1")

    def layer(self, i: int, x: str, residual: str) -> tuple[str, str]:
        """x and residual of one layer -> of the next."""
        is_last = i + 1 == self.architecture.n_layer
        attended = self.attention(i, self.add(*self.linear(x, f"h.{i}.attn.c_attn")))
        if is_last:  # what follows the last attention is wanted only where logits are
            attended = self.kept(attended)
            residual = self.kept(residual)
        projected, bias = self.linear(attended, f"h.{i}.attn.c_proj")
        x, residual = self.norm(residual, projected, self.architecture.norm_after_attention(i), bias)
        hidden = self.activation(*self.linear(x, f"h.{i}.mlp.c_fc"), f"h.{i}.mlp.act")
        floor = ACTIVATIONS[self.architecture.activation_function].floor
        projected, bias = self.linear(hidden, f"h.{i}.mlp.c_proj", floor)
        return self.norm(residual, projected, self.architecture.norm_after_mlp(i), bias)

    def attention(self, i: int, qkv: str) -> str:
        """Query, key and value packed side by side [batch, sequence, 3 n_embd] -> [batch, sequence, n_embd]."""
        n_head, head_dim = self.architecture.n_head, self.architecture.head_dim
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        for names, declared, length in (
            (past, self.graph.inputs, "past_sequence_length"),
            (present, self.graph.outputs, "total_sequence_length"),
        ):
            declared += [Value(name, "float32", ("batch_size", n_head, length, head_dim)) for name in names]
        inputs = [qkv, "", "", *past, "seqlens_k", "total_sequence_length"]
        heads = {"num_heads": n_head, "kv_num_heads": n_head, "scale": self.architecture.attention_scale(i)}
        return self.graph.node("GroupQueryAttention", inputs, [f"h.{i}.attn", *present], MICROSOFT, **heads)

    def linear(self, x: str, name: str, floor: float | None = None) -> tuple[str, str]:
        """The product, and the name of the bias that is left to add: "" for none."""
        self.read[name] = x
        return self.layout.kernels[name].linear(self.graph, x, name, self.sizes[name], floor)

    def add(self, x: str, bias: str) -> str:
        """The sum x + bias; x itself where no bias is left to add."""
        return self.graph.node("Add", [x, bias], [f"{x}.biased"]) if bias else x

    def activation(self, x: str, bias: str, out: str) -> str:
        """The activation function of x + bias."""
        found = ACTIVATIONS[self.architecture.activation_function]
        inputs = [x, bias] if found.adds_bias and bias else [self.add(x, bias)]
        return self.graph.node(found.operator, inputs, [out], found.domain, **found.attributes)

    def kept(self, x: str) -> str:
        """The last num_logits_to_keep positions; 0 keeps all."""
        return self.graph.node("Slice", [x, "first_kept", "end", "one"], [f"{x}.kept"])

    def norm(self, x: str, skip: str, name: str, bias: str = "") -> tuple[str, str]:
        """LayerNorm(x + skip + bias), and the next residual: the sum itself, or what LayerNorm puts out in a GPT.

        Not `SkipLayerNormalization`: its kernel takes several times as long as these two nodes.
        """
        total = self.graph.node("Add", [x, self.add(skip, bias)], [f"{name}.sum"])
        normed = self.layer_norm(total, name)
        return normed, normed if self.architecture.is_post_norm else total

    def layer_norm(self, x: str, name: str) -> str:
        """[..., n_embd] -> the same shape."""
        width = (self.architecture.n_embd,)
        gamma, beta = (self.graph.weight(f"{name}.{part}", "float32", width) for part in ("weight", "bias"))
        epsilon = self.architecture.layer_norm_epsilon
        return self.graph.node("LayerNormalization", [x, gamma, beta], [f"{name}.out"], axis=-1, epsilon=epsilon)

    def logits(self, x: str) -> None:
        """The output layer."""
        name = "wte" if self.architecture.tie_word_embeddings else "lm_head"
        kernel = self.layout.kernels[name]
        if name == "lm_head":
            kernel.store(self.graph, name, self.sizes[name])
        kernel.logits(self.graph, x, name, self.sizes[name], "logits")

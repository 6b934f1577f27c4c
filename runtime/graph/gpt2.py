"""GPT-2 or GPT as one fused ONNX graph for onnxruntime's CPU kernels, with the names of optimum's exports.

    input_ids       [batch_size, sequence_length]
    attention_mask  [batch_size, total_sequence_length]   1 for tokens, then 0 for padding: never 0 before 1
    position_ids    [batch_size, sequence_length]
    num_logits_to_keep [1]   default 0: logits of every position; 1: of the last only
    num_hidden_to_keep [1]   default 0: hidden states of the positions with logits; more than those: of the last so many
    past_key_values.{i}.{key,value}  [batch_size, n_head, past_sequence_length, head_dim]
 -> logits          [batch_size, kept_length, n_vocab]
    present.{i}.{key,value}          [batch_size, n_head, total_sequence_length, head_dim]
    last_hidden_state                [batch_size, hidden_length, n_embd]   what the output layer reads

This is the interface of `model.onnx`. A folder may have a second graph over the same weights, `model_int8_cache.onnx`,
for this runtime alone. Its keys and values are int8 and it has no mask: see `runtime.graph.attention`. In place of
input_ids it takes

    token_embeddings [batch_size, sequence_length, n_embd]   rows of the embedding, see `runtime.model.embedding_rows`

GPT has post-norm blocks: LayerNorm follows each residual sum, what it puts out is the next residual too, and no `ln_f`
follows the last layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from runtime.graph.architecture import Architecture
from runtime.graph.attention import Attention, CacheType, Fp32Cache, Int8Cache
from runtime.graph.data import MICROSOFT, Graph, Value
from runtime.graph.kernels import Kernel

# Keys of the graph's metadata.
FORMAT_KEY = "gpt2_edge_format"
KERNEL_KEY = "gpt2_edge_kernel"
EVEN_ROWS_KEY = "gpt2_edge_needs_even_rows"
FORMAT = "3"
"""The value of FORMAT_KEY; it tells the runtime that past and present may share memory."""
FORMATS = ("1", "2", FORMAT)
"""The formats that are read."""
GRAPH_FILES: dict[CacheType, str] = {"fp32": "model.onnx", "int8": "model_int8_cache.onnx"}
"""The file of the graph by the type of its cache."""
FIRST_FORMAT = "1"
"""The format of graphs without `last_hidden_state` and `num_hidden_to_keep`."""
HIDDEN = "last_hidden_state"
KEEP_HIDDEN = "num_hidden_to_keep"
TOKEN_EMBEDDINGS = "token_embeddings"
PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
FACTOR = "wte.factor"
HIDDEN_FACTOR = f"{HIDDEN}.factor"
# Lower bounds of the activation functions.
_GELU_FLOOR = -0.1701
_SILU_FLOOR = -0.2785


class Activation(NamedTuple):
    """The operator of an activation function.

    floor: a lower bound of its output. adds_bias: the operator can take a bias to add to its input.
    """

    operator: str
    domain: str
    floor: float | None
    attributes: Mapping[str, float] = {}
    adds_bias: bool = False


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
    """The choices of a build that the graph depends on.

    kernels: by the name of the product, such as h.0.attn.c_attn, and for wte and lm_head. has_factor: rows of the
    embedding are multiplied by `wte.factor` after the lookup, see `export.quantize.equalization`. has_hidden_factor:
    `last_hidden_state` is what the output layer reads, multiplied by a factor, since that is equalized. cache: the type
    of keys and values. format: with FIRST_FORMAT there is no `last_hidden_state`; before FORMAT the graph of an int8
    cache takes ids.
    """

    kernels: Mapping[str, Kernel]
    has_factor: bool = False
    has_hidden_factor: bool = False
    cache: CacheType = "fp32"
    format: str = FORMAT

    @property
    def takes_embeddings(self) -> bool:
        """Whether the graph takes rows of the embedding in place of ids."""
        return self.cache == "int8" and self.format == FORMAT


def product_sizes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The sizes of every weight matrix that has a kernel, by name.

    [n_in, n_out] for products in layers; [n_vocab, n_embd] for `wte`, and for `lm_head` if it is not tied.
    """
    n_embd = architecture.n_embd
    inner = architecture.inner_size
    in_layer = {
        "attn.c_attn": (n_embd, 3 * n_embd),
        "attn.c_proj": (n_embd, n_embd),
        "mlp.c_fc": (n_embd, inner),
        "mlp.c_proj": (inner, n_embd),
    }
    matrices = ("wte", "lm_head") if architecture.output_matrix == "lm_head" else ("wte",)
    sizes = dict.fromkeys(matrices, (architecture.vocab_size, n_embd))
    for layer in range(architecture.n_layer):
        sizes |= {f"h.{layer}.{name}": size for name, size in in_layer.items()}
    return sizes


def describe(architecture: Architecture, layout: Layout) -> Graph:
    """The whole graph of a language model, from ids to logits, without weights; its metadata has only the format."""
    return Description(architecture, layout).whole()


class Description:
    """Builds the graph, layer by layer. x is the output of a LayerNorm, residual the sum before it.

    In post-norm blocks the residual is x itself.
    """

    def __init__(self, architecture: Architecture, layout: Layout) -> None:
        self.architecture = architecture
        self.layout = layout
        self.sizes = product_sizes(architecture)
        self.graph = Graph(metadata={FORMAT_KEY: layout.format})
        row = ("batch_size", "sequence_length")
        tokens = Value("input_ids", "int64", row)
        if layout.takes_embeddings:
            tokens = Value(TOKEN_EMBEDDINGS, "float32", (*row, architecture.n_embd))
        self.graph.inputs += [
            tokens,
            Value("position_ids", "int64", row),
            Value("num_logits_to_keep", "int64", (1,)),
        ]
        self.has_hidden = layout.format != FIRST_FORMAT
        if self.has_hidden:
            self.graph.inputs.append(Value(KEEP_HIDDEN, "int64", (1,)))
        self.graph.outputs.append(Value("logits", "float32", ("batch_size", "kept_length", architecture.vocab_size)))
        self.attention: Attention = Fp32Cache()
        if layout.cache == "int8":
            self.attention = Int8Cache(architecture.n_head, is_earlier=layout.format != FORMAT)
        # The input of each product.
        self.read: dict[str, str] = {}

    def whole(self) -> Graph:
        """The graph from ids to logits."""
        self.lengths()
        x, residual = self.embeddings()
        for layer in range(self.architecture.n_layer):
            x, residual = self.layer(layer, x, residual)
        self.logits(self.hidden_states(x) if self.has_hidden else x)
        return self.graph

    def lengths(self) -> None:
        """Nodes that are shared by all layers: for attention, and the positions that get logits or hidden states."""
        node = self.graph.node
        self.attention.prepare(self.graph)
        # An input with a default value: other tools need not know it.
        self.graph.fixed("num_logits_to_keep", np.zeros(1, np.int64))
        kept = "num_logits_to_keep"
        if self.has_hidden:
            self.graph.fixed(KEEP_HIDDEN, np.zeros(1, np.int64))
            kept = node("Max", ["num_logits_to_keep", KEEP_HIDDEN], ["num_kept"])
        node("Neg", [kept], ["first_kept"])
        self.graph.fixed("end", np.array([2**62], np.int64))

    def embeddings(self) -> tuple[str, str]:
        """x and residual of the first layer, from tokens and positions."""
        graph = self.graph
        architecture = self.architecture
        kernel = self.layout.kernels["wte"]
        kernel.store(graph, "wte", self.sizes["wte"])
        tokens = TOKEN_EMBEDDINGS
        if not self.layout.takes_embeddings:
            tokens = kernel.embed(graph, "wte", self.sizes["wte"], "tokens")
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
        """x and residual of the next layer, from those of layer i."""
        is_last = i + 1 == self.architecture.n_layer
        qkv = self.add(*self.linear(x, f"h.{i}.attn.c_attn"))
        attended = self.attention.attend(self.graph, self.architecture, i, qkv)
        # After the last attention, only positions with logits or hidden states are needed.
        if is_last:
            attended = self.kept(attended)
            residual = self.kept(residual)
        projected, bias = self.linear(attended, f"h.{i}.attn.c_proj")
        x, residual = self.norm(residual, projected, self.architecture.norm_after_attention(i), bias)
        hidden = self.activation(*self.linear(x, f"h.{i}.mlp.c_fc"), f"h.{i}.mlp.act")
        floor = ACTIVATIONS[self.architecture.activation_function].floor
        projected, bias = self.linear(hidden, f"h.{i}.mlp.c_proj", floor)
        return self.norm(residual, projected, self.architecture.norm_after_mlp(i), bias)

    def linear(self, x: str, name: str, floor: float | None = None) -> tuple[str, str]:
        """The product of x and a weight, and the name of the bias that is left to add: "" for none."""
        self.read[name] = x
        return self.layout.kernels[name].linear(self.graph, x, name, self.sizes[name], floor)

    def add(self, x: str, bias: str) -> str:
        """The sum x + bias; x itself if there is no bias to add."""
        return self.graph.node("Add", [x, bias], [f"{x}.biased"]) if bias else x

    def activation(self, x: str, bias: str, out: str) -> str:
        """The activation function of x + bias."""
        found = ACTIVATIONS[self.architecture.activation_function]
        inputs = [x, bias] if found.adds_bias and bias else [self.add(x, bias)]
        return self.graph.node(found.operator, inputs, [out], found.domain, **found.attributes)

    def kept(self, x: str) -> str:
        """x at the last positions that anything is put out of: num_logits_to_keep or more; 0 keeps all."""
        return self.graph.node("Slice", [x, "first_kept", "end", "one"], [f"{x}.kept"])

    def norm(self, x: str, skip: str, name: str, bias: str = "") -> tuple[str, str]:
        """LayerNorm(x + skip + bias), and the next residual: the sum itself, or in a GPT the output of LayerNorm.

        `SkipLayerNormalization` is not used, since its kernel takes several times as long as these two nodes.
        """
        total = self.graph.node("Add", [x, self.add(skip, bias)], [f"{name}.sum"])
        normed = self.layer_norm(total, name)
        return normed, normed if self.architecture.is_post_norm else total

    def layer_norm(self, x: str, name: str) -> str:
        """LayerNorm of x [..., n_embd]."""
        width = (self.architecture.n_embd,)
        gamma = self.graph.weight(f"{name}.weight", "float32", width)
        beta = self.graph.weight(f"{name}.bias", "float32", width)
        epsilon = self.architecture.layer_norm_epsilon
        return self.graph.node("LayerNormalization", [x, gamma, beta], [f"{name}.out"], axis=-1, epsilon=epsilon)

    def hidden_states(self, x: str) -> str:
        """Put out the hidden states of the last layer; returns x at the positions with logits."""
        width = self.architecture.n_embd
        self.graph.outputs.append(Value(HIDDEN, "float32", ("batch_size", "hidden_length", width)))
        if self.layout.has_hidden_factor:
            factor = self.graph.weight(HIDDEN_FACTOR, "float32", (width,))
            self.graph.node("Mul", [x, factor], [HIDDEN])
        else:
            self.graph.node("Identity", [x], [HIDDEN])
        self.graph.node("Neg", ["num_logits_to_keep"], ["first_with_logits"])
        return self.graph.node("Slice", [x, "first_with_logits", "end", "one"], [f"{x}.with_logits"])

    def logits(self, x: str) -> None:
        """The output layer."""
        name = self.architecture.output_matrix
        kernel = self.layout.kernels[name]
        if name == "lm_head":
            kernel.store(self.graph, name, self.sizes[name])
        kernel.logits(self.graph, x, name, self.sizes[name], "logits")

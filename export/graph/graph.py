"""GPT-2 as one fused ONNX graph for onnxruntime's CPU kernels, with the ecosystem's own input and output names.

    input_ids       [batch_size, sequence_length]
    attention_mask  [batch_size, total_sequence_length]   1 for tokens, then 0 for padding: never 0 before 1
    position_ids    [batch_size, sequence_length]
    num_logits_to_keep [1]   default 0: logits of every position; 1: of the last only
    past_key_values.{i}.{key,value}  [batch_size, n_head, past_sequence_length, head_dim]
 -> logits          [batch_size, kept_length, n_vocab]
    present.{i}.{key,value}          [batch_size, n_head, total_sequence_length, head_dim]

`GroupQueryAttention` writes new keys and values in place when past and present are the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto

from export.checkpoint.config import Config
from export.graph.onnx_file import MICROSOFT, OnnxFile, ValueInfo
from export.quantize.precision import Float32, Floats, Linear, Precision
from runtime.model.model import FORMAT as FORMAT_NUMBER
from runtime.model.model import FORMAT_KEY

# The runtime sees by it that past and present may share memory.
FORMAT = {FORMAT_KEY: FORMAT_NUMBER}
Progress = Callable[[Iterable[int]], Iterable[int]]


class Weights(Protocol):
    """A checkpoint's tensors by name."""

    @property
    def embedding_factor(self) -> Floats | None:
        """What a looked-up row of `wte.weight` is multiplied by, [n_embd]; None for nothing."""

    def __getitem__(self, name: str) -> Floats:
        """The tensor, fp32."""


_GELU_FLOOR, _SILU_FLOOR = -0.1701, -0.2785  # none of the family goes lower
# operator, domain, attributes, and what its output never goes below
_ACTIVATIONS: dict[str, tuple[str, str, dict[str, Any], float | None]] = {
    "gelu_new": ("FastGelu", MICROSOFT, {}, _GELU_FLOOR),
    "gelu_fast": ("FastGelu", MICROSOFT, {}, _GELU_FLOOR),
    "gelu_pytorch_tanh": ("FastGelu", MICROSOFT, {}, _GELU_FLOOR),
    "gelu": ("Gelu", MICROSOFT, {}, _GELU_FLOOR),
    "quick_gelu": ("QuickGelu", MICROSOFT, {"alpha": 1.702}, _GELU_FLOOR),
    "relu": ("Relu", "", {}, 0.0),
    "silu": ("QuickGelu", MICROSOFT, {"alpha": 1.0}, _SILU_FLOOR),
    "swish": ("QuickGelu", MICROSOFT, {"alpha": 1.0}, _SILU_FLOOR),
    "tanh": ("Tanh", "", {}, None),
}


def activation_floor(config: Config) -> float | None:
    """What the activation of this checkpoint never goes below; None if it has no such floor."""
    return _ACTIVATIONS[config.activation_function][3]


def build(
    config: Config,
    tensors: Weights,
    precision: Precision,
    folder: Path,
    progress: Progress = iter,
) -> None:
    """Write `model.onnx` and `model.onnx_data` into `folder`; `progress` wraps the walk over the layers."""
    with OnnxFile(folder) as file:
        _GraphBuilder(config, tensors, precision, file).write(progress)


def build_layer(config: Config, tensors: Weights, layer: int, folder: Path) -> list[str]:
    """Write one layer alone, in fp32; returns the names of its products.

    `hidden` [batch_size, sequence_length, n_embd], a mask and an empty past -> `next_hidden`, and for each product,
    under its name, what it reads.
    """
    with OnnxFile(folder) as file:
        return _GraphBuilder(config, tensors, Float32(), file).write_layer(layer)


class _GraphBuilder:
    """One walk through the network, from ids to logits. x is the normed input, residual the sum that flows by."""

    def __init__(self, config: Config, tensors: Weights, precision: Precision, file: OnnxFile) -> None:
        self.config, self.tensors, self.precision, self.file = config, tensors, precision, file
        self.inputs: list[ValueInfo] = [
            ("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            ("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
            ("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            ("num_logits_to_keep", TensorProto.INT64, [1]),
        ]
        self.outputs: list[ValueInfo] = [
            ("logits", TensorProto.FLOAT, ["batch_size", "kept_length", config.vocab_size])
        ]
        self.read: dict[str, str] = {}  # product -> its input

    def write(self, progress: Progress) -> None:
        self.lengths()
        x, residual = self.embeddings()
        for layer in progress(range(self.config.n_layer)):
            x, residual = self.layer(layer, x, residual)
        self.logits(x)
        kernel = {"gpt2_edge_kernel": self.precision.kernel} if self.precision.kernel else {}
        rows = {"gpt2_edge_needs_even_rows": str(int(self.precision.needs_even_rows))}
        self.file.save(self.inputs, self.outputs, FORMAT | kernel | rows)

    def write_layer(self, layer: int) -> list[str]:
        shape: list[str | int] = ["batch_size", "sequence_length", self.config.n_embd]
        mask = next(value for value in self.inputs if value[0] == "attention_mask")
        self.inputs = [("hidden", TensorProto.FLOAT, shape), mask]
        self.lengths()
        _, total = self.layer(layer, self.layer_norm("hidden", f"h.{layer}.ln_1"), "hidden")
        told = {"next_hidden": total, **self.read}
        self.outputs = [(name, TensorProto.FLOAT, [*shape[:2], f"width of {name}"]) for name in told]
        for name, source in told.items():
            self.file.node("Identity", [source], [name])
        self.file.save(self.inputs, self.outputs, FORMAT)
        return [*self.read]

    def lengths(self) -> None:
        """What several nodes need: which positions get logits, and from the mask, what GroupQueryAttention wants.

        That is seqlens_k [batch] and total_sequence_length, a scalar.
        """
        node, one = self.file.node, self.file.constant("one", np.array([1], np.int64))
        node("ReduceSum", ["attention_mask", one], ["n_tokens"], keepdims=0)
        node("Sub", ["n_tokens", one], ["last_index"])
        # padding on the left or between would be silently wrong: such a row reads past the end of `one` and fails
        node("ArgMax", ["attention_mask"], ["last_token"], axis=1, keepdims=0, select_last_index=1)
        node("Sub", ["last_token", "last_index"], ["n_padded_before_last"])
        node("Gather", [one, "n_padded_before_last"], ["attention_mask_must_be_padded_on_the_right"])
        node("Mul", ["last_index", "attention_mask_must_be_padded_on_the_right"], ["last_index_or_failure"])
        node("Cast", ["last_index_or_failure"], ["seqlens_k"], to=TensorProto.INT32)
        node("Shape", ["attention_mask"], ["mask_length"], start=1, end=2)
        node("Squeeze", ["mask_length"], ["total"])
        node("Cast", ["total"], ["total_sequence_length"], to=TensorProto.INT32)
        # an input with a default, so that others need not know it
        self.file.constant("num_logits_to_keep", np.zeros(1, np.int64))
        node("Neg", ["num_logits_to_keep"], ["first_kept"])
        self.file.constant("end", np.array([2**62], np.int64))

    def embeddings(self) -> tuple[str, str]:
        self.precision.store(self.file, "wte", self.tensors["wte.weight"])
        tokens = self.precision.embed(self.file, "wte", "tokens")
        if self.tensors.embedding_factor is not None:
            factor = self.file.constant("wte.factor", self.tensors.embedding_factor)
            tokens = self.file.node("Mul", [tokens, factor], ["tokens.restored"])
        wpe = self.file.constant("wpe", self.tensors["wpe.weight"])
        positions = self.file.node("Gather", [wpe, "position_ids"], ["positions"])
        return self.norm(tokens, positions, "h.0.ln_1")

    def layer(self, i: int, x: str, residual: str) -> tuple[str, str]:
        is_last = i + 1 == self.config.n_layer
        attended = self.attention(i, self.add(*self.linear(x, f"h.{i}.attn.c_attn")))
        if is_last:  # what follows the last attention is wanted only where logits are
            attended, residual = self.kept(attended), self.kept(residual)
        projected, bias = self.linear(attended, f"h.{i}.attn.c_proj")
        x, residual = self.norm(residual, projected, f"h.{i}.ln_2", bias)
        hidden, floor = self.activation(*self.linear(x, f"h.{i}.mlp.c_fc"), f"h.{i}.mlp.act")
        projected, bias = self.linear(hidden, f"h.{i}.mlp.c_proj", floor)
        return self.norm(residual, projected, "ln_f" if is_last else f"h.{i + 1}.ln_1", bias)

    def attention(self, i: int, qkv: str) -> str:
        """Query, key and value packed side by side [batch, sequence, 3 n_embd] -> [batch, sequence, n_embd]."""
        n_head, head_dim = self.config.n_head, self.config.head_dim
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        for names, declared, length in (
            (past, self.inputs, "past_sequence_length"),
            (present, self.outputs, "total_sequence_length"),
        ):
            declared += [(name, TensorProto.FLOAT, ["batch_size", n_head, length, head_dim]) for name in names]
        inputs = [qkv, "", "", *past, "seqlens_k", "total_sequence_length"]
        heads = {"num_heads": n_head, "kv_num_heads": n_head, "scale": self.config.attention_scale(i)}
        return self.file.node("GroupQueryAttention", inputs, [f"h.{i}.attn", *present], MICROSOFT, **heads)

    def linear(self, x: str, name: str, floor: float | None = None) -> tuple[str, str]:
        """The product, and the name of the bias that is left to add: "" for none."""
        self.read[name] = x
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return self.precision.linear(self.file, x, name, Linear(weight, bias, floor))

    def add(self, x: str, bias: str) -> str:
        return self.file.node("Add", [x, bias], [f"{x}.biased"]) if bias else x

    def activation(self, x: str, bias: str, out: str) -> tuple[str, float | None]:
        """Of x + bias; and what the result never goes below."""
        operator, domain, attributes, floor = _ACTIVATIONS[self.config.activation_function]
        inputs = [x, bias] if operator == "FastGelu" and bias else [self.add(x, bias)]
        return self.file.node(operator, inputs, [out], domain, **attributes), floor

    def kept(self, x: str) -> str:
        """The last num_logits_to_keep positions; 0 keeps all."""
        return self.file.node("Slice", [x, "first_kept", "end", "one"], [f"{x}.kept"])

    def norm(self, x: str, skip: str, name: str, bias: str = "") -> tuple[str, str]:
        """LayerNorm(x + skip + bias), and the sum itself for the next residual.

        Not `SkipLayerNormalization`: its kernel takes several times as long as these two nodes.
        """
        total = self.file.node("Add", [x, self.add(skip, bias)], [f"{name}.sum"])
        return self.layer_norm(total, name), total

    def layer_norm(self, x: str, name: str) -> str:
        gamma, beta = (
            self.file.constant(f"{name}.{part}", self.tensors[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        epsilon = self.config.layer_norm_epsilon
        return self.file.node("LayerNormalization", [x, gamma, beta], [f"{name}.out"], axis=-1, epsilon=epsilon)

    def logits(self, x: str) -> None:
        if not self.config.tie_word_embeddings:
            self.precision.store(self.file, "lm_head", self.tensors["lm_head.weight"])
        output_layer = "wte" if self.config.tie_word_embeddings else "lm_head"
        self.precision.logits(self.file, x, output_layer, "logits")

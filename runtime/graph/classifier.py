"""A classifier on GPT-2 or GPT as one fused ONNX graph, with the names of optimum's exports.

    input_ids       [batch_size, sequence_length]
    attention_mask  [batch_size, sequence_length]   1 for tokens, then 0 for padding: never 0 before 1
 -> logits          [batch_size, n_labels], or of a classifier of tokens [batch_size, sequence_length, n_labels]

There is no past. A text is labelled by its last token, as in transformers: the last that is not padding and, where
config.json has a pad_token_id, is not that token. The embeddings and layers are those of `runtime.graph.gpt2`.
"""

from __future__ import annotations

import numpy as np

from runtime.graph.architecture import Architecture
from runtime.graph.attention import NoCache
from runtime.graph.data import Graph, Value
from runtime.graph.gpt2 import Description, Layout, describe
from runtime.graph.head import TOKEN, Head


def describe_any(architecture: Architecture, layout: Layout) -> Graph:
    """The whole graph of a language model or of a classifier, without weights."""
    if architecture.head is None:
        return describe(architecture, layout)
    return ClassifierDescription(architecture, layout, architecture.head).whole()


class ClassifierDescription(Description):
    """Builds the graph of a classifier, layer by layer; see `Description`."""

    def __init__(self, architecture: Architecture, layout: Layout, head: Head) -> None:
        super().__init__(architecture, layout)
        self.head = head
        self.attention = NoCache()
        row = ("batch_size", "sequence_length")
        self.graph.inputs[:] = [Value("input_ids", "int64", row), Value("attention_mask", "int64", row)]
        shape = row if head.kind == TOKEN else row[:1]
        self.graph.outputs[:] = [Value("logits", "float32", (*shape, len(head.labels)))]

    def whole(self) -> Graph:
        """The graph from ids to the logits of labels."""
        self.lengths()
        x, residual = self.embeddings()
        for layer in range(self.architecture.n_layer):
            x, residual = self.layer(layer, x, residual)
        self.label_logits(x)
        return self.graph

    def lengths(self) -> None:
        """Positions from 0, and the nodes of attention that all layers share."""
        self.attention.prepare(self.graph)
        # Padding has the position of the last token; nothing reads it.
        self.graph.node("CumSum", ["attention_mask", "one"], ["n_tokens_so_far"])
        self.graph.node("Sub", ["n_tokens_so_far", "one"], ["position_ids"])

    def kept(self, x: str) -> str:
        """x itself: the head reads all positions."""
        return x

    def label_logits(self, x: str) -> None:
        """The head, in fp32."""
        n_labels = len(self.head.labels)
        name = self.head.name
        weight = self.graph.weight(f"{name}.weight", "float32", (self.architecture.n_embd, n_labels))
        product = f"{name}.out" if self.head.kind == TOKEN else "logits_of_tokens"
        self.graph.node("MatMul", [x, weight], [product])
        if self.head.has_bias:
            bias = self.graph.weight(f"{name}.bias", "float32", (n_labels,))
            self.graph.node("Add", [product, bias], ["logits"])
        if self.head.kind != TOKEN:
            # In transformers' order, so that every product has as many rows as there are tokens.
            self.graph.node("GatherND", [product, self.last_tokens()], ["logits"], batch_dims=1)

    def last_tokens(self) -> str:
        """The index of the last token of each row, [batch, 1]."""
        counted = "attention_mask"
        if self.head.pad_token_id is not None:
            pad = self.graph.fixed("pad_token_id", np.array([self.head.pad_token_id], np.int64))
            zero = self.graph.fixed("not_counted", np.array([0], np.int64))
            is_pad = self.graph.node("Equal", ["input_ids", pad], ["is_pad_token"])
            counted = self.graph.node("Where", [is_pad, zero, "attention_mask"], ["counted_tokens"])
        # Where no token counts, all products are 0 and the first is taken, as in transformers.
        at = self.graph.node("Mul", [counted, "position_ids"], ["counted_positions"])
        return self.graph.node("ArgMax", [at], ["last_counted"], axis=1, keepdims=1)

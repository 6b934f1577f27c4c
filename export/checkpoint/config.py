"""Read and check the `config.json` of a GPT-2 or a GPT: the part of it that shapes the graph."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from export.checkpoint.heads import with_head
from runtime._json import shown
from runtime.graph.architecture import GPT, GPT2, MODEL_TYPES, Architecture, as_gpt2
from runtime.graph.gpt2 import ACTIVATIONS
from runtime.graph.head import read_head
from runtime.model.config import SIZES, check_end_ids, check_size, check_token_id

# GPT2Config reads these names too; they take precedence where both are given.
_OTHER_NAMES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}
# where transformers' `OpenAIGPTConfig` has other defaults than `GPT2Config`
_GPT_DEFAULTS = {"vocab_size": 40478, "n_positions": 512, "bos_token_id": None, "eos_token_id": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture of a checkpoint, checked, and its special ids; defaults are those of transformers' `GPT2Config`.

    A GPT has `model_type` "openai-gpt".

    `bos_token_id` and `eos_token_id` may lie outside the vocabulary, as in fine-tunes that kept GPT-2's defaults with a
    smaller vocabulary: such a model has no beginning or end of text. Each of several `eos_token_id` ends a text.

    Raises ValueError, naming the key, for a value that is invalid or that the graph does not support.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    def __post_init__(self) -> None:
        for key in SIZES:
            check_size(key, getattr(self, key))
        if self.n_inner is not None:
            check_size("n_inner", self.n_inner)
        if self.n_positions == 1:
            raise ValueError("n_positions is 1, which leaves no room for a token that follows another; at least 2 is")
        for key in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} is {shown(getattr(self, key))}; true or false is expected")
        check_token_id("bos_token_id", self.bos_token_id)
        check_end_ids("eos_token_id", self.eos_token_id)
        if isinstance(self.eos_token_id, list) and None in self.eos_token_id:
            raise ValueError(f"eos_token_id is {self.eos_token_id}; a token id, a list of them or null is expected")
        if not isinstance(self.layer_norm_epsilon, float) or not 0 < self.layer_norm_epsilon < 1:
            raise ValueError(
                f"layer_norm_epsilon is {shown(self.layer_norm_epsilon)}; a number between 0 and 1 is expected"
            )
        # In a tuple: config.json may give a list, which no dictionary takes as a key.
        if self.activation_function not in tuple(ACTIVATIONS):
            raise ValueError(
                f"activation_function is {shown(self.activation_function)}; the graph has {', '.join(ACTIVATIONS)}"
            )
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.head_dim % 8:
            raise ValueError(
                f"the head size n_embd / n_head is {self.head_dim}; "
                "onnxruntime's GroupQueryAttention takes multiples of 8 only, so this checkpoint cannot be exported"
            )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of a checkpoint, by transformers' name without the prefix `transformer.`."""
        width = self.n_embd
        inner = self.inner_size
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, width),
            "wpe.weight": (self.n_positions, width),
        }
        if self.model_type == GPT2:
            shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
        # Conv1D stores weights as [n_in, n_out].
        products = {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for layer in range(self.n_layer):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"h.{layer}.{norm}.weight": (width,), f"h.{layer}.{norm}.bias": (width,)}
            for name, shape in products.items():
                shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        if self.output_matrix == "lm_head":
            shapes["lm_head.weight"] = (self.vocab_size, width)
        if self.head is not None:
            n_labels = len(self.head.labels)
            shapes[f"{self.head.name}.weight"] = (n_labels, width)
            shapes |= {f"{self.head.name}.bias": (n_labels,)} if self.head.has_bias else {}
        return shapes


def read(path: Path) -> tuple[Config, dict[str, Any]]:
    """The checked configuration in a `config.json`, and its whole JSON object.

    Raises FileNotFoundError, or ValueError for a file that is not JSON, not of GPT-2, or has an invalid value.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; a checkpoint folder has one") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("model_type") not in MODEL_TYPES:
        kind = raw.get("model_type", "missing") if isinstance(raw, dict) else "missing"
        needed = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"{path} is not a GPT-2 checkpoint's: model_type is {shown(kind)}, {needed} is needed")
    raw = with_head(path.parent, raw)
    if raw.get("add_cross_attention"):
        raise ValueError(f"{path}: add_cross_attention is set; only GPT-2 as a plain language model is exported")
    defaults = _GPT_DEFAULTS if raw["model_type"] == GPT else {}
    renamed = defaults | raw | {name: raw[other] for other, name in _OTHER_NAMES.items() if other in raw}
    known = {field.name for field in dataclasses.fields(Config)} - {"head"}
    try:
        values = {key: value for key, value in as_gpt2(renamed).items() if key in known}
        return Config(**values, head=read_head(raw)), raw
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

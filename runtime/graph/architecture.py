"""The architecture of a GPT-2 or a GPT: the part of its `config.json` that determines the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime._json import read_json, shown
from runtime.graph.head import Head, read_head

GPT2 = "gpt2"
# the first GPT, which GPT-2 scales up
GPT = "openai-gpt"
MODEL_TYPES = (GPT2, GPT)
"""`model_type` of config.json."""
# `afn` of transformers' `OpenAIGPTConfig`: its "gelu" is the approximation that GPT-2 calls "gelu_new"
_AFN = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"}


def as_gpt2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says, under the names of transformers' `GPT2Config`.

    `OpenAIGPTConfig` has `afn` in place of `activation_function`, and no setting of attention's scale or of the
    feed-forward layer's width. Raises ValueError, naming the key, for an `afn` that transformers does not know, and
    for a setting of GPT-2's that a GPT does not have.

    >>> as_gpt2({"model_type": "openai-gpt", "afn": "gelu"})["activation_function"]
    'gelu_new'
    """
    if raw.get("model_type") != GPT:
        return dict(raw)
    afn = raw.get("afn", "gelu")
    if not isinstance(afn, str) or afn not in _AFN:
        raise ValueError(f"afn is {shown(afn)}; {', '.join(_AFN)} are allowed")
    fixed = {
        "activation_function": _AFN[afn],
        "n_inner": None,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }
    for key, value in fixed.items():
        if raw.get(key, value) != value:
            raise ValueError(f"{key} is {shown(raw[key])}; an {GPT} model has no such setting, leave it out")
    return {**raw, **fixed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes and settings of a model; names and defaults of the fields are those of transformers' `GPT2Config`.

    n_inner: None is 4 n_embd. See `as_gpt2` for the names of a GPT. head: of a classifier, which has no output layer;
    None for a language model.

    >>> Architecture(n_layer=12, n_head=12, n_embd=768, n_positions=1024, vocab_size=50257).head_dim
    64
    """

    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int
    vocab_size: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    model_type: str = GPT2
    head: Head | None = None

    @property
    def output_matrix(self) -> str:
        """The matrix of the output layer: `wte` or `lm_head`; "" in a classifier."""
        if self.head is not None:
            return ""
        return "wte" if self.tie_word_embeddings else "lm_head"

    @property
    def is_post_norm(self) -> bool:
        """Whether LayerNorm follows each residual sum, as in GPT. In GPT-2 it precedes attention and feed-forward."""
        return self.model_type == GPT

    @property
    def final_norm(self) -> str:
        """The LayerNorm that the output layer reads."""
        return self.norm_after_mlp(self.n_layer - 1)

    def norm_after_attention(self, layer: int) -> str:
        """The LayerNorm of the sum of attention and residual in this layer."""
        return f"h.{layer}.ln_1" if self.is_post_norm else f"h.{layer}.ln_2"

    def norm_after_mlp(self, layer: int) -> str:
        """The LayerNorm of the sum of feed-forward and residual in this layer."""
        if self.is_post_norm:
            return f"h.{layer}.ln_2"
        return f"h.{layer + 1}.ln_1" if layer + 1 < self.n_layer else "ln_f"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_inner or 4 * self.n_embd

    def attention_scale(self, layer: int) -> float:
        """The factor on query times key in this layer, as in transformers' `GPT2Attention`."""
        scale: float = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


# `head` is no key of config.json, but read from several.
_FIELDS = [field for field in dataclasses.fields(Architecture) if field.name != "head"]
_TYPES: dict[str, tuple[type, ...]] = {
    **{field.name: (int,) for field in _FIELDS if field.name.startswith("n_")},
    "vocab_size": (int,),
    "n_inner": (int, type(None)),
    "activation_function": (str,),
    "layer_norm_epsilon": (float,),
    "scale_attn_weights": (bool,),
    "scale_attn_by_inverse_layer_idx": (bool,),
    "tie_word_embeddings": (bool,),
    "model_type": (str,),
}


def read_architecture(folder: Path) -> Architecture:
    """Read the architecture of a model folder.

    Raises FileNotFoundError, or ValueError naming `config.json` and the key.

    >>> read_architecture(Path("models/demo-int8")).n_layer
    6
    """
    path = folder / "config.json"
    found = read_json(path)
    try:
        raw = as_gpt2(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    known = {field.name: raw[field.name] for field in _FIELDS if field.name in raw}
    for field in _FIELDS:
        if field.name not in raw and field.default is dataclasses.MISSING:
            raise ValueError(f"{path}: {field.name} is missing")
    for key, value in known.items():
        _check(path, key, value)
    if known["n_embd"] % known["n_head"]:
        raise ValueError(f"{path}: n_embd {known['n_embd']} is no multiple of n_head {known['n_head']}")
    try:
        return Architecture(**known, head=read_head(raw))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check(path: Path, key: str, value: Any) -> None:
    """Raise ValueError for a value of another type, or out of range."""
    if type(value) not in _TYPES[key]:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in _TYPES[key])
        raise ValueError(f"{path}: {key} is {value!r}; {names} is expected")
    if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value < 2**31:
        raise ValueError(f"{path}: {key} is {value!r}; a whole number from 1 to 2**31 - 1 is expected")
    if key == "model_type" and value not in MODEL_TYPES:
        raise ValueError(f"{path}: {key} is {value!r}; {' or '.join(map(repr, MODEL_TYPES))} is expected")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError(f"{path}: {key} is {value!r}; a number between 0 and 1 is expected")

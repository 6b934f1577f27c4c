"""Check that a graph has the inputs and outputs of a GPT-2 with past-key-values and the sizes of config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import ModelFolderError
from runtime.graph.attention import CacheType
from runtime.graph.check import check_layers
from runtime.graph.gpt2 import HIDDEN, KEEP_HIDDEN, TOKEN_EMBEDDINGS
from runtime.graph.head import SEQUENCE
from runtime.model.config import Config
from runtime.model.kv_cache import tensor_names
from runtime.model.session import Session

_IDS = "tensor(int64)"
_FLOATS = "tensor(float)"
_INT8 = "tensor(int8)"
Dimensions = Sequence[int | None]
"""A shape; None is a dimension for which the graph must take any number."""
Values = dict[str, tuple[str, Dimensions]]
"""Type and shape of inputs or outputs, by name."""


def check_interface(path: Path, session: Session, config: Config, *, is_fused: bool, cache: CacheType = "fp32") -> None:
    """Raise ValueError, naming the file, unless names, types and shapes are those that config.json implies.

    cache: the type of keys and values. The graph of an int8 cache has no mask, and may take rows of the embedding in
    place of ids.
    """
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    if config.head is not None:
        row = (None,) if config.head.kind == SEQUENCE else (None, None)
        ids: Values = dict.fromkeys(("input_ids", "attention_mask"), (_IDS, (None, None)))
        _check_values(path, "input", inputs, ids, {})
        _check_values(path, "output", outputs, {"logits": (_FLOATS, (*row, len(config.head.labels)))}, {})
        return
    check_layers(path, list(inputs), config.n_layer)
    _check_heads(path, config)
    names = tensor_names(config)
    past = (None, config.n_head, None, config.head_dim)
    of_cache = (_INT8 if cache == "int8" else _FLOATS, past)
    expected: Values = {name.format("past_key_values"): of_cache for name in names}
    if TOKEN_EMBEDDINGS in inputs:
        expected |= {TOKEN_EMBEDDINGS: (_FLOATS, (None, None, config.n_embd))}
    else:
        expected |= {"input_ids": (_IDS, (None, None))}
    if cache == "fp32":
        expected |= {"attention_mask": (_IDS, (None, None))}
    optional: Values = {"position_ids": (_IDS, (None, None))}
    if is_fused:
        expected |= optional
        optional = {}
        given = {value.name: value for value in session.get_overridable_initializers()}
        kept: Values = {"num_logits_to_keep": (_IDS, (1,))}
        _check_values(path, "default", given, kept, {KEEP_HIDDEN: (_IDS, (1,))})
    _check_values(path, "input", inputs, expected, optional)
    results: Values = {name.format("present"): of_cache for name in names}
    results |= {"logits": (_FLOATS, (None, None, config.vocab_size))}
    hidden: Values = {HIDDEN: (_FLOATS, (None, None, config.n_embd))} if is_fused else {}
    _check_values(path, "output", outputs, results, hidden)


def _check_heads(path: Path, config: Config) -> None:
    if config.n_embd % config.n_head:
        raise ModelFolderError(
            f"{path.parent / 'config.json'}: n_embd {config.n_embd} is no multiple of n_head {config.n_head}"
        )


def _check_values(path: Path, kind: str, found: Mapping[str, Any], expected: Values, optional: Values) -> None:
    """Compare with the expected values; only the optional ones may exist besides them.

    found: onnxruntime's NodeArg by name.
    """
    if missing := expected.keys() - found.keys():
        raise ModelFolderError(f"{path} has no {kind} {min(missing)!r}, which a GPT-2 with past-key-values has")
    if unknown := found.keys() - expected.keys() - optional.keys():
        raise ModelFolderError(f"{path} has {kind} {min(unknown)!r}, which a GPT-2 with past-key-values has not")
    for name, value in found.items():
        type_, shape = (expected | optional)[name]
        if value.type != type_ or not _fits(value.shape, shape):
            raise ModelFolderError(
                f"{path}: {kind} {name!r} is a {value.type} of shape {value.shape}, but config.json says "
                f"{type_} of {['any' if n is None else n for n in shape]}"
            )


def _fits(found: Sequence[int | str | None], expected: Dimensions) -> bool:
    """Whether two shapes agree. A dimension that the graph leaves open fits any number; a free one must be open."""
    return len(found) == len(expected) and all(
        not isinstance(n, int) or n == wanted for n, wanted in zip(found, expected, strict=True)
    )

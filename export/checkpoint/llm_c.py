"""Read checkpoints of llm.c: one `.bin` file with a header and all weights, in fp32 (version 3) or bf16 (version 5).

The header is 256 int32: magic number, version, n_positions, vocab_size, n_layer, n_head, n_embd, padded vocab_size.
The weights follow in a fixed order, each kind for all layers together, products as [n_out, n_in]. The vocabulary is
padded to a multiple of 128; the rows beyond vocab_size belong to no token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from export.checkpoint.config import Config
from export.checkpoint.weights import write_weights
from export.json_file import write_json

MAGIC = 20240326
_OTHER_FILES = {20240328: "the tokenizer", 20240520: "training data", 20240327: "a debug state", 20240527: "a state"}
_VERSIONS: dict[int, Any] = {3: np.dtype("<f4"), 5: np.dtype(ml_dtypes.bfloat16)}
_N_HEADER = 256
_LAYER_ORDER = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


def other_file(magic: int) -> str | None:
    """The kind of another file of llm.c by its magic number, in words; None for other numbers."""
    return _OTHER_FILES.get(magic)


def convert(path: Path, target: Path, eos_token_id: int | None) -> Path:
    """Write the same model as the checkpoint folder `target`, without a tokenizer; returns `target`.

    eos_token_id: of the tokenizer to use with it. Raises ValueError for another version, for invalid sizes, and for a
    file whose size differs from what its header says.
    """
    config, dtype, padded = _read_header(path, eos_token_id)
    target.mkdir()
    sizes = {key: getattr(config, key) for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    ends = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    described = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    write_json(target / "config.json", described | sizes | ends)
    write_weights(_tensors(path, config, dtype, padded), target)
    return target


def _read_header(path: Path, eos_token_id: int | None) -> tuple[Config, Any, int]:
    """Config, element type and padded vocab_size, checked against the size of the file."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(4 * _N_HEADER), "<i4")
    if len(header) < _N_HEADER:
        raise ValueError(f"{path} is truncated: its header has {header.nbytes} bytes, {4 * _N_HEADER} are needed")
    version, n_positions, vocab_size, n_layer, n_head, n_embd, padded = map(int, header[1:8])
    if version not in _VERSIONS:
        raise ValueError(
            f"{path} is a checkpoint of llm.c of version {version}; version 3 (fp32) and 5 (bf16) are read, which "
            "newer copies of llm.c write"
        )
    try:
        config = Config(
            vocab_size=vocab_size,
            n_positions=n_positions,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            eos_token_id=eos_token_id,
        )
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not a checkpoint of llm.c: {error}") from None
    if padded < vocab_size:
        raise ValueError(f"{path} is damaged: a vocabulary of {vocab_size} padded to {padded}")
    expected = 4 * _N_HEADER + _VERSIONS[version].itemsize * _n_elements(config, padded)
    found = path.stat().st_size
    if found != expected:
        problem = "is truncated" if found < expected else "has more than its weights"
        raise ValueError(f"{path} {problem}: it has {found:,} bytes, and its header asks for {expected:,}")
    return config, _VERSIONS[version], padded


def _n_elements(config: Config, padded: int) -> int:
    """The number of weights, the padding of the vocabulary included."""
    width = config.n_embd
    of_a_layer = 12 * width**2 + 13 * width
    return (padded + config.n_positions + 2) * width + config.n_layer * of_a_layer


def _order(config: Config, padded: int) -> list[tuple[str, int]]:
    """The name and number of elements of each tensor, in the order of the file."""
    shapes = config.tensor_shapes()
    layers = [f"h.{layer}.{part}" for part in _LAYER_ORDER for layer in range(config.n_layer)]
    names = ["wpe.weight", *layers, "ln_f.weight", "ln_f.bias"]
    sizes = [(name, int(np.prod(shapes[name]))) for name in names]
    return [("wte.weight", padded * config.n_embd), *sizes]


def _tensors(path: Path, config: Config, dtype: Any, padded: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor as our graph reads it: products as [n_in, n_out]."""
    shapes = config.tensor_shapes()
    stored = np.memmap(path, dtype, "r", offset=4 * _N_HEADER)
    begin = 0
    for name, size in _order(config, padded):
        flat = stored[begin : begin + size]
        begin += size
        if name == "wte.weight":
            yield name, flat.reshape(padded, config.n_embd)[: config.vocab_size]
        elif name.startswith("h.") and len(shapes[name]) == 2:
            n_in, n_out = shapes[name]
            yield name, flat.reshape(n_out, n_in).T
        else:
            yield name, flat.reshape(shapes[name])

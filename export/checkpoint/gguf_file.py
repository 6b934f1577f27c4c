"""Read GPT-2 from GGUF files, llama.cpp's format: weights of all its types, and the tokenizer in the metadata."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from export.checkpoint import tokenizer as tokenizer_file
from export.checkpoint.config import Config
from export.checkpoint.weights import INPUT, OUTPUT, write_weights
from export.json_file import write_json

MAGIC = b"GGUF"
MISSING = "reading GGUF files needs the package gguf, which is not installed: pip install -e '.[export]' in the clone"
_NAMES = {
    "token_embd.weight": "wte.weight",
    "position_embd.weight": "wpe.weight",
    "output_norm.weight": "ln_f.weight",
    "output_norm.bias": "ln_f.bias",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_KEYS = {
    "n_positions": "gpt2.context_length",
    "n_embd": "gpt2.embedding_length",
    "n_layer": "gpt2.block_count",
    "n_head": "gpt2.attention.head_count",
}
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# GGUF's types of special and added tokens.
_CONTROL = 3
_USER_DEFINED = 4
_GPT2_SPLITS = ("gpt-2", "gpt2", "default")
_ANOTHER_TOKENIZER = "--tokenizer FOLDER takes another in its place"

Metadata = Mapping[str, Any]


def check_installed() -> None:
    """Raise ModuleNotFoundError, saying what to install, unless the package gguf can be imported."""
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(MISSING)


def convert(path: Path, target: Path, *, with_tokenizer: bool) -> Path:
    """Write the same model, with fp32 weights, as the checkpoint folder `target`; returns `target`.

    with_tokenizer: write the tokenizer of the metadata too. Raises ValueError for a file that is truncated, damaged, or
    not of GPT-2; ModuleNotFoundError without the package gguf.
    """
    check_installed()
    reader = _open(path)
    metadata = _metadata(path, reader)
    _check_architecture(path, metadata)
    stored = _stored_tensors(path, reader)
    is_tied = OUTPUT not in stored or np.array_equal(stored[OUTPUT].data, stored[INPUT].data)
    raw = _raw_config(path, metadata, stored, is_tied=is_tied)
    target.mkdir()
    write_json(target / "config.json", raw)
    if with_tokenizer:
        _write_tokenizer(path, metadata, target)
    write_weights(_tensors(path, stored, is_tied=is_tied), target)
    return target


def _open(path: Path) -> Any:
    """A reader that raises an error for a truncated file; the package's own reads missing data as empty."""
    from gguf import GGUFReader

    # The package is not installed everywhere.
    class Reader(GGUFReader):  # type: ignore[misc,unused-ignore]
        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends in the middle")
            return super()._get(offset, dtype, count, override_order)

    try:
        return Reader(path)
    except OSError:
        raise
    # A damaged file raises errors of many classes.
    except Exception as error:
        raise ValueError(f"{path} is truncated, damaged or not a GGUF file: {error}") from None


def _metadata(path: Path, reader: Any) -> dict[str, Any]:
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, UnicodeDecodeError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is damaged: its metadata is not read ({error})") from None


def _check_architecture(path: Path, metadata: Metadata) -> None:
    kind = metadata.get("general.architecture")
    if kind != "gpt2":
        raise ValueError(f"{path} is a model of the architecture {kind!r}; 'gpt2' is needed")
    if metadata.get("split.count", 1) != 1:
        raise ValueError(f"{path} is one part of {metadata['split.count']}; llama-gguf-split --merge joins them")


def _stored_tensors(path: Path, reader: Any) -> dict[str, Any]:
    """The reader's tensors by our names. Raises ValueError for one that GPT-2 does not have."""
    stored = {}
    for tensor in reader.tensors:
        name = _our_name(tensor.name)
        if name is None:
            raise ValueError(f"{path}: the tensor {tensor.name} is no part of GPT-2")
        stored[name] = tensor
    if INPUT not in stored:
        raise ValueError(f"{path} has no tensor token_embd.weight")
    return stored


def _our_name(name: str) -> str | None:
    if name in _NAMES:
        return _NAMES[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    module, _, part = rest.partition(".")
    if block != "blk" or not layer.isdecimal() or module not in _LAYER_NAMES or part not in ("weight", "bias"):
        return None
    return f"h.{int(layer)}.{_LAYER_NAMES[module]}.{part}"


def _raw_config(path: Path, metadata: Metadata, stored: Mapping[str, Any], *, is_tied: bool) -> dict[str, Any]:
    """The content of config.json. Raises ValueError for sizes that are missing, invalid, or unlike the weights."""
    missing = [key for key in _KEYS.values() if key not in metadata]
    if missing:
        raise ValueError(f"{path}: its metadata has no {', '.join(missing)}")
    sizes: dict[str, Any] = {ours: metadata[key] for ours, key in _KEYS.items()} | {
        "vocab_size": _shape(stored[INPUT])[0]
    }
    inner = metadata.get("gpt2.feed_forward_length")
    epsilon = float(metadata.get("gpt2.attention.layer_norm_epsilon", 1e-5))
    ends: dict[str, Any] = {
        f"{role}_token_id": metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")
    }
    # The epsilon is stored in fp32, so that 1e-5 is read as 9.99999974e-6: round it to 6 digits.
    others: dict[str, Any] = {
        "layer_norm_epsilon": float(f"{epsilon:.6g}"),
        "tie_word_embeddings": is_tied,
        "n_inner": inner,
    }
    try:
        config = Config(**sizes, **ends, **others)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its metadata is impossible: {error}") from None
    # Compare a damaged number of layers first, for a message that says so; the next check would name one tensor.
    if config.n_layer > len(stored):
        raise ValueError(f"{path} has {len(stored)} tensors, and its metadata asks for {config.n_layer} layers")
    for name, shape in config.tensor_shapes().items():
        if name not in stored:
            raise ValueError(f"{path} has no tensor for {name}, which its metadata asks for")
        wanted = shape[::-1] if _is_product(name, shape) else shape
        if _shape(stored[name]) != wanted:
            found = list(_shape(stored[name]))
            raise ValueError(f"{path}: {stored[name].name} is {found}, but the metadata makes it {list(wanted)}")
    beyond = sorted(stored.keys() - config.tensor_shapes().keys() - {OUTPUT})
    if beyond:
        raise ValueError(f"{path}: {stored[beyond[0]].name} lies beyond the {config.n_layer} layers of the metadata")
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"} | (
        sizes | ends | others
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    """The shape in numpy's order: GGUF lists the innermost dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _is_product(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("h.") and len(shape) == 2


def _tensors(path: Path, stored: Mapping[str, Any], *, is_tied: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor in fp32, products as [n_in, n_out]."""
    from gguf import dequantize

    for name, tensor in stored.items():
        if name == OUTPUT and is_tied:
            continue
        shape = _shape(tensor)
        try:
            array = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{path}: {tensor.name} of type {tensor.tensor_type.name} is not read: {error}") from None
        yield name, array.T if _is_product(name, shape) else array


def _write_tokenizer(path: Path, metadata: Metadata, target: Path) -> None:
    """Write tokenizer.json, its settings and the chat template. Raises ValueError for another kind of tokenizer."""
    kind = metadata.get("tokenizer.ggml.model")
    split = metadata.get("tokenizer.ggml.pre", _GPT2_SPLITS[0])
    if kind != "gpt2" or split not in _GPT2_SPLITS:
        raise ValueError(
            f"{path} has a tokenizer {kind!r} that splits text as {split!r}, not GPT-2's: " + _ANOTHER_TOKENIZER
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    merges = metadata.get("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise ValueError(f"{path} has a tokenizer without tokens or merges: {_ANOTHER_TOKENIZER}")
    roles = _roles(metadata, tokens)
    tokenizer = _byte_level(path, metadata, tokens, merges)
    if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in roles:
        bos = roles["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{bos}:0 $A:0", f"{bos}:0 $A:0 $B:1", [(bos, tokens.index(bos))]
        )
    tokenizer.save(str(target / tokenizer_file.NAME))
    write_json(target / tokenizer_file.CONFIG, {"tokenizer_class": "GPT2Tokenizer"} | roles)
    if template := metadata.get("tokenizer.chat_template"):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")


def _roles(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    """The special tokens by transformers' names, such as bos_token."""
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    return {role: tokens[id_] for role, id_ in ids.items() if isinstance(id_, int) and 0 <= id_ < len(tokens)}


def _byte_level(path: Path, metadata: Metadata, tokens: list[str], merges: list[str]) -> Tokenizer:
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    # tokenizers raises plain Exception.
    except Exception as error:
        raise ValueError(f"{path}: its tokenizer is damaged ({error}): {_ANOTHER_TOKENIZER}") from None
    add_space = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for token, type_ in zip(tokens, types, strict=False):
        if type_ in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=type_ == _CONTROL, normalized=False)])
    return tokenizer

"""Read checkpoints of nanoGPT: `ckpt.pt`, and for character-level models the vocabulary in `meta.pkl`.

`ckpt.pt` holds `model` (products as [n_out, n_in]; names have a prefix if the model was compiled), `model_args`, and
the optimizer, which is left out. Both files are pickles; code in them is not run.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from export.checkpoint import pickle_file
from export.checkpoint import tokenizer as tokenizer_file
from export.checkpoint.config import Config
from export.checkpoint.weights import INPUT, OUTPUT, write_weights
from export.json_file import write_json

META = "meta.pkl"
PADDING = (64, 128)
"""A vocabulary may be padded to a multiple of these, as nanoGPT pads 50257 to 50304."""
_COMPILED = "_orig_mod."
_ARGUMENTS = {"vocab_size": "vocab_size", "block_size": "n_positions"} | {
    name: name for name in ("n_layer", "n_head", "n_embd")
}
_WITHOUT_TOKENIZER = (
    "{path} has no tokenizer: --tokenizer FOLDER takes GPT-2's where the model was trained on its tokens, or the "
    f"{META} of nanoGPT's data folder (data/NAME/{META}) where it was trained on characters"
)


def convert(path: Path, target: Path, tokenizer: Path | None) -> Path:
    """Write the same model as the checkpoint folder `target`; returns `target`.

    tokenizer: a folder with a tokenizer or a `meta.pkl`; None takes the `meta.pkl` beside the checkpoint. A tokenizer
    is written to `target` only if it comes from `meta.pkl`. Raises ValueError for a file that is damaged, holds more
    than plain data, or is not of nanoGPT; FileNotFoundError if there is no tokenizer.
    """
    meta = find_meta(path, tokenizer)
    if meta is None and tokenizer is None:
        raise FileNotFoundError(_WITHOUT_TOKENIZER.format(path=path))
    characters = character_tokenizer(meta) if meta else None
    vocabulary = characters or tokenizer_file.read(tokenizer or target)
    state, arguments = _load(path)
    config = _config(path, arguments, vocabulary)
    # Compare a damaged number of layers first, for a message that says so; the next check would name one tensor.
    if config.n_layer > len(state):
        raise ValueError(f"{path} has {len(state)} tensors, and its model_args ask for {config.n_layer} layers")
    shapes = config.tensor_shapes()
    has_bias = bool(arguments.get("bias", True))
    _check(path, state, shapes, has_bias=has_bias)
    target.mkdir()
    if characters:
        characters.save(str(target / tokenizer_file.NAME))
    is_tied = OUTPUT not in state or np.array_equal(_numpy(state[OUTPUT]), _numpy(state[INPUT]))
    write_json(target / "config.json", _described(config, is_tied=is_tied))
    write_weights(_tensors(state, shapes, is_tied=is_tied), target)
    return target


def find_meta(path: Path, tokenizer: Path | None) -> Path | None:
    """The `meta.pkl` in the folder that is named, else beside the checkpoint; None if there is none."""
    meta = (tokenizer or path.parent) / META
    return meta if meta.is_file() else None


def character_tokenizer(meta: Path) -> Tokenizer:
    """The tokenizer of a character-level model, from nanoGPT's `meta.pkl`.

    Each character of the training text is a token; as in nanoGPT, text with other characters cannot be encoded. Raises
    ValueError for a file that holds anything but dictionaries of strings and numbers, or has no table of characters.
    """
    table = _read_meta(meta).get("stoi")
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{meta} has no table of characters (stoi); --tokenizer FOLDER takes a tokenizer")
    for character, id_ in table.items():
        if not isinstance(character, str) or len(character) != 1 or type(id_) is not int:
            raise ValueError(f"{meta} maps {character!r} to {id_!r}; a character and its id are expected")
    if sorted(table.values()) != list(range(len(table))):
        raise ValueError(f"{meta}: the ids of its {len(table)} characters are not 0 to {len(table) - 1}")
    tokenizer = Tokenizer(models.WordLevel(table))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class _PlainUnpickler(pickle.Unpickler):
    """Reads only dictionaries, strings and numbers. A pickle that runs code must name a function or class: an error."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it names an object outside it, {pid!r}")


def _read_meta(meta: Path) -> dict[str, Any]:
    try:
        with meta.open("rb") as file:
            read = _PlainUnpickler(file).load()
    except OSError:
        raise
    # A damaged pickle raises errors of many classes.
    except Exception as error:
        raise ValueError(
            f"{meta} is damaged, or holds more than dictionaries of characters and numbers, and is not read ({error}); "
            "--tokenizer FOLDER takes a tokenizer.json in its place"
        ) from None
    if not isinstance(read, dict):
        raise ValueError(f"{meta} is not a meta.pkl of nanoGPT: a dictionary is expected")
    return read


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors without the prefix of compiled models, and model_args."""
    import torch

    read = pickle_file.load(path)
    if not isinstance(read, dict) or not isinstance(read.get("model_args"), dict):
        raise ValueError(f"{path} is not a checkpoint of nanoGPT, which has model and model_args")
    state = read.get("model")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a checkpoint of nanoGPT: model is not a dictionary of tensors")
    names = {name: name.removeprefix(_COMPILED).removeprefix("transformer.") for name in state}
    return {names[name]: tensor for name, tensor in state.items()}, read["model_args"]


def _config(path: Path, arguments: Mapping[str, Any], vocabulary: Tokenizer) -> Config:
    missing = [name for name in _ARGUMENTS if name not in arguments]
    if missing:
        raise ValueError(f"{path}: model_args has no {', '.join(missing)}")
    sizes = {ours: arguments[name] for name, ours in _ARGUMENTS.items()}
    end = vocabulary.token_to_id("<|endoftext|>")
    try:
        config = Config(**sizes, activation_function="gelu", bos_token_id=end, eos_token_id=end)
    except ValueError as error:
        raise ValueError(f"{path}: model_args: {error}") from None
    return _without_padding(config, vocabulary.get_vocab_size())


def _without_padding(config: Config, n_tokens: int) -> Config:
    """The config without padding of the vocabulary: rows of the embedding whose ids have no token."""
    if config.vocab_size <= n_tokens or not any(config.vocab_size == -(-n_tokens // size) * size for size in PADDING):
        return config
    print(f"      the vocabulary is padded from {n_tokens} to {config.vocab_size} ids; the padding is left out")
    return dataclasses.replace(config, vocab_size=n_tokens)


def _described(config: Config, *, is_tied: bool) -> dict[str, Any]:
    sizes = {key: getattr(config, key) for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    kind = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    return kind | sizes | ends | {"activation_function": "gelu", "tie_word_embeddings": is_tied}


def _check(path: Path, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, has_bias: bool) -> None:
    """Raise ValueError, naming the tensor, unless the file has all of the model and nothing else."""
    expected = {name: _stored_shape(name, shape) for name, shape in shapes.items()}
    for name, shape in expected.items():
        if name not in state and (has_bias or not name.endswith(".bias")):
            raise ValueError(f"{path}: the model has no tensor {name!r}, which its model_args ask for")
        found = tuple(state[name].shape) if name in state else shape
        if found != shape and (name != INPUT or found[1:] != shape[1:] or found[0] < shape[0]):
            raise ValueError(f"{path}: {name} is {list(found)}, but model_args make it {list(shape)}")
        if name in state and not state[name].is_floating_point():
            raise ValueError(f"{path}: {name} is {state[name].dtype}; weights must be floating point")
    # `.attn.bias` is the causal mask of models whose attention is not fused.
    unknown = [name for name in state if name not in expected and name != OUTPUT and not name.endswith(".attn.bias")]
    if unknown:
        raise ValueError(f"{path}: tensors that are no part of GPT-2 would be lost: {', '.join(sorted(unknown)[:5])}")


def _stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if _is_product(name, shape) else shape


def _is_product(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("h.") and len(shape) == 2


def _tensors(
    state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, is_tied: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor in transformers' layout: products as [n_in, n_out], zeros for biases that the model lacks."""
    for name, shape in shapes.items():
        if name not in state:
            yield name, np.zeros(shape, np.float32)
            continue
        array = _numpy(state[name])
        yield name, array.T if _is_product(name, shape) else array[: shape[0]]
    if not is_tied:
        yield OUTPUT, _numpy(state[OUTPUT])[: shapes[INPUT][0]]


def _numpy(tensor: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().numpy()
    return array

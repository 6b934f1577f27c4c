"""Read a tokenizer.json once, check it, and open the tokenizer from the bytes that were checked."""

from __future__ import annotations

import collections
import functools
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runtime.model.tokenizer import calls
from runtime.model.tokenizer.parts import (
    CALL_SETTINGS,
    SECTIONS,
    TokenizerFileError,
    check_added,
    check_call_settings,
    check_model,
    check_section,
    ids_put_around,
    shown,
)

# Four times the size of the largest published vocabularies, of 256,000 tokens.
MAX_BYTES = 128 * 2**20
# The stack level of warnings: the caller of runtime.load. Between it and read_tokenizer are Model.__init__,
# load_unchanged, the function that it is given, Model._open and Model._read_tokenizer.
_CALLER = 8
_KEYS = {"version", "added_tokens", "model", *CALL_SETTINGS, *(section.name for section in SECTIONS)}


def read_tokenizer(path: Path, vocab_size: int | None = None, *, trusted: bool = False) -> Tokenizer:
    """The tokenizer in a tokenizer.json. Truncation, padding and dropout that were saved with it are turned off.

    vocab_size: of the model that the ids are for. An id of the vocabulary beyond it is an error. Added tokens beyond
    it, as `[PAD]` often is, are told in a warning: `encode` refuses a text that has one. trusted: parts, patterns and
    sizes are not checked.

    Raises FileNotFoundError; ValueError, naming the file and the part, for what is not a tokenizer or has a part
    that is not allowed (see `runtime.model.tokenizer.parts`).

    >>> read_tokenizer(Path("models/demo/tokenizer.json"), 8192).get_vocab_size()
    8192
    """
    content = _read(path)
    stated: dict[str, int] = {}
    if not trusted:
        try:
            stated = check(content, vocab_size)
        except TokenizerFileError as error:
            # A model folder, for which vocab_size is known, can be loaded with verify='off'; a checkpoint cannot.
            cure = ", or load a folder that you trust with verify='off'" if error.is_part and vocab_size else ""
            raise ValueError(f"{path} {error}{cure}") from None
    tokenizer = calls.open_tokenizer(path, content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    warn = functools.partial(warnings.warn, stacklevel=_CALLER)
    if (dropout := _end_dropout(tokenizer)) > 0:
        warn(
            f"{path} has a dropout of {dropout:g}, which is for training: it is off, so a text always has the same ids"
        )
    for told in _differences(tokenizer, stated, vocab_size):
        warn(f"{path}: {told}")
    return tokenizer


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path} is missing; a model folder has one") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes, which no tokenizer is")
    return content


def check(content: bytes, vocab_size: int | None = None) -> dict[str, int]:
    """The ids that a tokenizer.json gives to its added tokens, by token.

    Raises TokenizerFileError, a ValueError, for content that is not JSON or has a part that is not allowed.
    """
    parsed = _parse(content)
    for name in parsed.keys() - _KEYS:
        if parsed[name] is not None:
            raise TokenizerFileError.at(shown(name), "is not a known key; leave it out")
    for name in CALL_SETTINGS:
        check_call_settings(name, parsed.get(name))
    check_added(parsed.get("added_tokens"))
    for section in SECTIONS:
        check_section(section, parsed.get(section.name))
    if "model" not in parsed:
        raise TokenizerFileError("is not a tokenizer: it has no model")
    model = check_model(parsed["model"])
    if vocab_size is not None:
        _check_ids(model, parsed.get("post_processor"), vocab_size)
    return {token["content"]: token["id"] for token in parsed.get("added_tokens") or []}


def _parse(content: bytes) -> dict[str, Any]:
    """Parse JSON as tokenizers does: UTF-8, no NaN, and no duplicate keys, of which readers take different ones."""
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TokenizerFileError(f"is not a tokenizer: it is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise TokenizerFileError("is not a tokenizer: it is not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_ids(model: dict[str, Any], post_processor: object, vocab_size: int) -> None:
    """Raise TokenizerFileError for an id that the model has no row for."""
    vocab = model["vocab"]
    largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    if largest >= vocab_size:
        token = _token(vocab, largest)
        told = f"gives {shown(token)} the id {largest:,}, and config.json's vocab_size is {vocab_size:,}"
        raise TokenizerFileError.of_other_model("model.vocab", told)
    around = max(ids_put_around(post_processor), default=-1)
    if around >= vocab_size:
        told = f"adds the id {around:,}, and config.json's vocab_size is {vocab_size:,}"
        raise TokenizerFileError.of_other_model("post_processor", told)


def _token(vocab: dict[str, int] | list[list[Any]], id_: int) -> str:
    if isinstance(vocab, dict):
        return next(token for token, found in vocab.items() if found == id_)
    return str(vocab[id_][0])


def _end_dropout(tokenizer: Tokenizer) -> float:
    """Turn off the dropout of merges, which would give a text other ids in each call. Returns the former dropout."""
    dropout: float | None = getattr(tokenizer.model, "dropout", None)
    if dropout is None:
        return 0.0
    tokenizer.model.dropout = None
    return dropout


def _differences(tokenizer: Tokenizer, stated: Mapping[str, int], vocab_size: int | None) -> Iterator[str]:
    """Warnings about added tokens: with other ids than the file says, and with ids beyond the vocabulary."""
    added = calls.added_tokens(tokenizer)
    for id_, token in added.items():
        if stated.get(token.content, id_) != id_:
            told = (
                f"the added token {shown(token.content)} has id {id_:,}, not {stated[token.content]:,} as the file says"
            )
            yield f"{told}: tokenizers numbers added tokens after the vocabulary"
    beyond = sorted(id_ for id_ in added if vocab_size is not None and id_ >= vocab_size)
    if beyond:
        first = shown(added[beyond[0]].content)
        told = f"{len(beyond)} added tokens, from {first} with id {beyond[0]:,}, are beyond config.json's vocab_size"
        yield f"{told} of {vocab_size:,}: a text with such a token is refused"

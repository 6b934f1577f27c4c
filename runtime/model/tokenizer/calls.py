"""All calls into the tokenizers library, with its failures as ValueError with a message of one line.

tokenizers raises bare `Exception`, and pyo3's `PanicException`, a BaseException, where its Rust code panics. Neither
names the text or the file. A panic also prints a line of Rust's own on standard error, which nothing can prevent.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.decoders import DecodeStream

P = ParamSpec("P")
T = TypeVar("T")
# How many characters of a text, and ids of a list, an error shows.
SHOWN = 24
SHOWN_IDS = 8


def is_panic(error: BaseException) -> bool:
    """Whether an exception is a panic of Rust code; its class cannot be imported."""
    return type(error).__name__ == "PanicException"


def guard(doing: Callable[[], str], call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of a call. A failure becomes a ValueError with what `doing` returns, then the reason.

    MemoryError, KeyboardInterrupt and SystemExit are not changed.
    """
    try:
        return call(*arguments, **named)
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(f"{doing()}: {_on_one_line(error)}") from None


def _on_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} (a panic of the tokenizers library)" if is_panic(error) else text


def short(text: str) -> str:
    """A text in quotes for an error, cut to its beginning."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def open_tokenizer(path: Path, content: bytes) -> Tokenizer:
    """A tokenizer from the content of its file. Raises ValueError, naming the file, for what is no tokenizer."""
    tokenizer: Tokenizer = guard(lambda: f"{path} is not a tokenizer", Tokenizer.from_buffer, content)
    return tokenizer


def duplicate(tokenizer: Tokenizer) -> Tokenizer:
    """A copy with settings of its own."""
    return guard(lambda: "the tokenizer cannot be copied", copy.deepcopy, tokenizer)


def encode(tokenizer: Tokenizer, text: str, *, whole: bool, vocab_size: int | None = None) -> Encoding:
    """Encode a text. whole: with the special tokens of the tokenizer's post-processor.

    vocab_size: of the model that the ids are for.
    Raises ValueError for a text that cannot be encoded, naming the word without a token if there is one; for an id
    beyond the model's vocabulary.
    """
    try:
        encoding: Encoding = guard(lambda: "", tokenizer.encode, text, add_special_tokens=whole)
    except ValueError as error:
        raise ValueError(_explain(tokenizer, text, str(error).removeprefix(": "))) from None
    if vocab_size is not None:
        _check_ids(encoding, vocab_size)
    return encoding


def _check_ids(encoding: Encoding, vocab_size: int) -> None:
    """Raise ValueError for an id that the model has no embedding for: an added token of a fine-tune, say."""
    if max(encoding.ids, default=0) < vocab_size:
        return
    at = next(at for at, id_ in enumerate(encoding.ids) if id_ >= vocab_size)
    raise ValueError(
        f"the token {short(encoding.tokens[at])} has id {encoding.ids[at]:,}, and this model's vocabulary has "
        f"{vocab_size:,} ids: it was not resized for this token. Leave it out of the text"
    )


def _explain(tokenizer: Tokenizer, text: str, reason: str) -> str:
    """Why a text has no ids."""
    told = f"the tokenizer cannot encode the text {short(text)}: {reason}"
    try:
        words = guard(lambda: "", _words, tokenizer, text)
    except ValueError:
        return told
    for word in words:
        try:
            guard(lambda: "", tokenizer.model.tokenize, word)
        except ValueError:
            return f"this model's vocabulary has no token for {short(word)}, and none for unknown words ({reason})"
    return told


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words that the tokenizer's model reads: the text after normalizer and pre-tokenizer."""
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if tokenizer.pre_tokenizer is None:
        return [normalized]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The tokenizer's text of ids; those that it does not have are left out. Raises ValueError where it fails."""
    text: str = guard(lambda: _about(ids), tokenizer.decode, ids, skip_special_tokens=skip_special_tokens)
    return text


def stream(tokenizer: Tokenizer, decoder: DecodeStream, id_: int) -> str:
    """What an id adds to the text of a DecodeStream, "" where nothing yet. Raises ValueError where it fails."""
    return guard(lambda: _about([id_]), decoder.step, tokenizer, id_) or ""


def _about(ids: Sequence[int]) -> str:
    told = ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
    return f"the tokenizer cannot decode the ids {told}"


def token_of(tokenizer: Tokenizer, id_: int) -> str | None:
    """The entry of the vocabulary with this id; None where there is none. Raises ValueError for no possible id."""
    token: str | None = guard(lambda: f"{id_} is not a token id", tokenizer.id_to_token, id_)
    return token


def id_of(tokenizer: Tokenizer, token: str) -> int | None:
    """The id of an entry of the vocabulary; None where there is none."""
    id_: int | None = guard(lambda: f"{short(token)} has no id", tokenizer.token_to_id, token)
    return id_


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by entry, added tokens among them."""
    ids: dict[str, int] = guard(lambda: "the tokenizer has no vocabulary", tokenizer.get_vocab)
    return ids


def added_tokens(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Added tokens, the special ones among them, by id."""
    tokens: dict[int, AddedToken] = guard(
        lambda: "the tokenizer has no added tokens", tokenizer.get_added_tokens_decoder
    )
    return tokens


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's parts in their order, as tokenizer.json writes them; none where there is no decoder."""
    if tokenizer.decoder is None:
        return []
    written: bytes = guard(lambda: "the tokenizer's decoder cannot be read", tokenizer.decoder.__getstate__)
    return list(_flatten(json.loads(written)))


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _flatten(part)

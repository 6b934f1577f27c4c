"""Text to ids and back: prompts in, streamed pieces out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, pre_tokenizers

from runtime.model import Model

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character decode to
CONTEXT_IDS = 4  # enough for a decoder that looks at its neighbours
LONG = 100_000  # characters: shorter texts are tokenized in a fifth of a second, whatever they hold


def encode(model: Model, text: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a text. `<|endoftext|>` and its like written in it are text unless `special_tokens` makes them tokens.

    Raises TypeError or ValueError for what is no text.
    """
    check_text(text)
    if special_tokens:
        return [id_ for part in _split_at_tokens(model.tokenizer, text) for id_ in part]
    return _encode_plain(model.tokenizer, text)


def check_text(text: object) -> None:
    """Raise TypeError or ValueError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate at character {error.start}: it is not valid Unicode") from None


def check_fits(model: Model, text: str, n_tokens: int) -> None:
    """Raise ValueError for a text that is more than so many tokens, whichever they are: before it is tokenized.

    A megabyte takes 200 MB to tokenize, and seconds where it is one long word. Raises TypeError as `check_text` does.
    """
    check_text(text)
    if len(text) <= LONG:
        return
    longest = _longest_token(model.tokenizer)
    least = 0 if longest is None else -(-len(text) // longest)
    if least > n_tokens:
        told = f"a text of {len(text):,} characters is at least {least:,} tokens, and {n_tokens:,} fit"
        raise ValueError(f"{told}: shorten it")


def _longest_token(tokenizer: Tokenizer) -> int | None:
    """Characters of a text that one token is at most; None where that is not known, as of all but byte-level BPE."""
    grows = any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
    if grows or tokenizer.normalizer is not None or not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return None
    return max(map(len, tokenizer.get_vocab()))


def _encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _split_at_tokens(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    special = {t.content: id_ for id_, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    longest_first = sorted(special, key=len, reverse=True)
    for part in re.split(f"({'|'.join(map(re.escape, longest_first))})" if special else "$^", text):
        yield [special[part]] if part in special else _encode_plain(tokenizer, part)


def encode_prompt(model: Model, prompt: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a prompt; an empty one begins with bos_token_id, as the model's training texts do."""
    ids = encode(model, prompt, special_tokens=special_tokens)
    if ids:
        return ids
    bos = model.config.bos_token_id
    if bos is None or not 0 <= bos < model.config.vocab_size:
        raise ValueError("the prompt is empty and this model has no beginning-of-text token; give a prompt")
    return [bos]


class PieceDecoder:
    """Text of ids as they come. No piece ends inside a character: what is unfinished waits for its other bytes.

    Joined, the pieces and what `flush` returns are what the tokenizer makes of all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        """`context`: the ids before the first, for decoders that put a space between words."""
        self._tokenizer = tokenizer
        self._settle(context)

    def push(self, id_: int) -> str:
        """The text that this id completes, "" while a character is unfinished."""
        self._ids.append(id_)
        text: str = self._tokenizer.decode(self._ids)
        if text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._shown) :]
        self._settle(self._ids)
        return piece

    def flush(self) -> str:
        """What is left: bytes that never became a character, as the tokenizer shows them."""
        text: str = self._tokenizer.decode(self._ids)
        piece = text[len(self._shown) :]
        self._settle(self._ids)
        return piece

    def _settle(self, ids: Sequence[int]) -> None:
        self._ids = list(ids[-CONTEXT_IDS:])
        self._shown: str = self._tokenizer.decode(self._ids)


class StopFilter:
    """The text before the first stop string to be complete. What may begin a stop string is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain now; once `stopped`, the last of it."""
        if not self._stops or self.stopped:
            return "" if self.stopped else piece
        self._held += piece
        found = [
            (self._held.find(stop) + len(stop), self._held.find(stop)) for stop in self._stops if stop in self._held
        ]
        if found:
            self.stopped = True
            return self._held[: min(found)[1]]
        n_safe = len(self._held) - max(_overlap(self._held, stop) for stop in self._stops)
        safe, self._held = self._held[:n_safe], self._held[n_safe:]
        return safe

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return "" if self.stopped else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))

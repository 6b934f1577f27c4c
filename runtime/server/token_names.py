"""Ids as OpenAI's log-probabilities show them: their text, or their bytes where those are no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runtime.logprobs import likeliest
from runtime.model import Model
from runtime.scoring import window_log_probabilities
from runtime.text import REPLACEMENT, PieceDecoder


class Token(NamedTuple):
    """One token of a prompt or a continuation."""

    id_: int
    offset: int  # of its first character, or of the one that its bytes are part of
    logprob: float | None  # None for the first of a prompt
    top: Mapping[int, float]  # the likeliest ids, and this one


class TokenNames:
    """Names of ids: different ids have different names in byte-level vocabularies."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._bytes, self._known = _bytes_of_letters(), dict[int, str]()
        self.longest = max(map(len, model.tokenizer.get_vocab()))  # characters of a token, at most

    def __call__(self, id_: int) -> str:
        r"""The text of a token; `bytes:\xe2\x82`, as OpenAI writes it, for a part of a character."""
        if id_ not in self._known:
            self._known[id_] = self._name(id_)
        return self._known[id_]

    def bytes_of(self, id_: int) -> list[int] | None:
        """The bytes of a token; None where the vocabulary is not of bytes."""
        word = self._tokenizer.id_to_token(id_)
        if word is None or not set(word) <= self._bytes.keys():
            return None
        return [self._bytes[letter] for letter in word]

    def _name(self, id_: int) -> str:
        text: str = self._tokenizer.decode([id_], skip_special_tokens=False)
        values = self.bytes_of(id_) if REPLACEMENT in text else None
        return text if values is None else "bytes:" + "".join(f"\\x{value:02x}" for value in values)


class TokenReader:
    """Tokens of ids as they come, with their place in the text."""

    def __init__(self, model: Model, context: Sequence[int], offset: int) -> None:
        """`context`: the ids before; `offset`: the characters before."""
        self._decoder, self._offset = PieceDecoder(model.tokenizer, context), offset

    def read(self, id_: int, logprob: float | None, top: Mapping[int, float]) -> Token:
        """The next token."""
        offset = self._offset
        self._offset += len(self._decoder.push(id_))
        return Token(id_, offset, logprob, {**top, id_: logprob} if logprob is not None and id_ not in top else top)


def read_prompt(model: Model, ids: Sequence[int], n_top: int) -> list[Token]:
    """The tokens of a prompt, each given those before it; one pass. At most n_positions + 1 ids."""
    reader = TokenReader(model, (), 0)
    tokens = [reader.read(ids[0], None, {})]
    if len(ids) > 1:
        for targets, chunk in window_log_probabilities(model, ids, skip=0):
            for id_, logprobs in zip(targets.tolist(), chunk, strict=True):
                tokens.append(reader.read(id_, float(logprobs[id_]), likeliest(logprobs, n_top)))
    return tokens


def _bytes_of_letters() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary: `bytes_to_unicode` of GPT-2's encoder.py."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}

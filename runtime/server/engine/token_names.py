"""Ids as OpenAI's log-probabilities show them: their text, or their bytes where those are no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runtime._math import likeliest
from runtime.model.model import Model
from runtime.scoring.scoring import window_log_probabilities
from runtime.tokenization.detokenizer import Detokenizer, PieceDecoder
from runtime.tokenization.token_bytes import TokenBytes


class TextPlace(NamedTuple):
    """Where in a prompt's text one of its tokens is."""

    offset: int  # of its first character, or of the one that its bytes are part of
    text: str  # what of the prompt's text it takes, "" for the later parts of a character


class Token(NamedTuple):
    """One token of a prompt or a continuation."""

    id_: int
    offset: int  # of its first character, or of the one that its bytes are part of
    logprob: float | None  # None for the first of a prompt
    top: Mapping[int, float]  # the likeliest ids, and this one
    before: int | None = None  # the id that is shown before it
    text: str | None = None  # its part of the text, where that is not for its id to say


class Alternative(NamedTuple):
    """A token that was likely at its place."""

    name: str
    bytes_: list[int] | None
    logprob: float


class TokenNames:
    r"""Names of tokens. In a text they are its parts and join to it; each alternative has a name of its own.

    A part of a character is `bytes:\xe2\x82`, as OpenAI writes it. A token that is not shown in the text is "". Of
    alternatives with the same text, and of those with none, one has the text, others their entry in the vocabulary,
    or `token_id:50300`.
    """

    def __init__(self, model: Model) -> None:
        self._tokenizer, self._texts = model.tokenizer, TokenTexts(model)
        self.longest = max(map(len, model.tokenizer.get_vocab()))  # characters of a token, at most

    def name(self, token: Token) -> str:
        """The name of a token in its text."""
        name = self._texts.name(token.id_, token.before)
        return name if token.text is None or name.startswith(_BYTES) else token.text

    def bytes_of(self, token: Token) -> list[int] | None:
        """The bytes of a token in its text; None where it has none."""
        name = self.name(token)
        return self._texts.bytes_of(token.id_, name) if name else None

    def alternatives(self, token: Token) -> list[Alternative]:
        """The likeliest tokens, and this one under its name in the text."""
        own, found, used = self.name(token), list[Alternative](), {self.name(token)}
        for id_, logprob in token.top.items():
            if id_ == token.id_:
                found.append(Alternative(own, self.bytes_of(token), logprob))
                continue
            text = self._texts.name(id_, token.before)
            names = (text, self._tokenizer.id_to_token(id_), f"token_id:{id_}")
            name = next(name for name in names if name and name not in used)
            used.add(name)
            found.append(Alternative(name, self._texts.bytes_of(id_, text) if text else None, logprob))
        return found


class TokenTexts:
    """Texts of single tokens, special ones written out."""

    def __init__(self, model: Model) -> None:
        self._bytes = TokenBytes(model.tokenizer)
        self._written = Detokenizer(model.tokenizer, skip_special_tokens=False)

    def name(self, id_: int, before: int | None) -> str:
        """The text of a token after another one, or its bytes where they are a part of a character."""
        values = self._bytes(id_)
        if values is not None and (self._bytes.is_byte_level or id_ in self._written.byte_ids):
            try:
                return values.decode()
            except UnicodeDecodeError:
                return _BYTES + "".join(f"\\x{value:02x}" for value in values)
        if before is None:
            return self._written.decode([id_])
        return self._written.decode([before, id_])[len(self._written.decode([before])) :]

    def bytes_of(self, id_: int, name: str) -> list[int]:
        """The bytes of a token of this name."""
        return list((self._bytes(id_) or b"") if name.startswith(_BYTES) else name.encode())


_BYTES = "bytes:"


class TokenReader:
    """Tokens of ids as they come, with their place in the text."""

    def __init__(self, model: Model, context: Sequence[int], offset: int, *, skip_special_tokens: bool = True) -> None:
        """`context`: the ids before; `offset`: the characters before."""
        self._detokenizer = Detokenizer(model.tokenizer, skip_special_tokens=skip_special_tokens)
        self._decoder = PieceDecoder(model.tokenizer, context, skip_special_tokens=skip_special_tokens)
        self._texts, self._offset = TokenTexts(model), offset
        self._before = next(filter(self._detokenizer.shows, reversed(context)), None)

    def read(self, id_: int, logprob: float | None, top: Mapping[int, float]) -> Token:
        """The next token."""
        offset, before = self._offset, self._before
        piece = self._decoder.push(id_)
        self._offset += len(piece)
        shows = self._detokenizer.shows(id_)
        if shows and piece.endswith(name := self._texts.name(id_, before)):
            offset = self._offset - len(name)  # what was unfinished before it has become text, too
        if shows:
            self._before = id_
        if logprob is not None and id_ not in top:
            top = {**top, id_: logprob}
        return Token(id_, offset, logprob, top, before, None if shows else "")


def find_places(text: str, spans: Sequence[tuple[int, int]]) -> list[TextPlace]:
    """The places of a text's tokens, whose spans the tokenizer tells: parts that join to the text."""
    places, done = list[TextPlace](), 0
    last = max((at for at, (_, end) in enumerate(spans) if end), default=-1)
    for at, (begin, end) in enumerate(spans):
        # what no token stands for, white space say, goes to the token after it, and at the end to the last
        until = len(text) if at == last else max(done, end)
        is_later_part = begin < end <= done
        places.append(TextPlace(begin if is_later_part else done, text[done:until]))
        done = until
    return places


def read_prompt(model: Model, ids: Sequence[int], n_top: int, places: Sequence[TextPlace] = ()) -> list[Token]:
    """The tokens of a prompt, each given those before it; one pass. At most n_positions + 1 ids.

    places: of a prompt that is a text; without, the text is that of the ids, special tokens written out.
    """
    reader = TokenReader(model, (), 0, skip_special_tokens=False)
    tokens = [reader.read(ids[0], None, {})]
    if len(ids) > 1:
        for targets, chunk in window_log_probabilities(model, ids, skip=0):
            for id_, logprobs in zip(targets.tolist(), chunk, strict=True):
                tokens.append(reader.read(id_, float(logprobs[id_]), likeliest(logprobs, n_top)))
    if not places:
        return tokens
    return [token._replace(offset=place.offset, text=place.text) for token, place in zip(tokens, places, strict=True)]

"""Tokens as OpenAI's log-probabilities show them: their text, or their bytes where those are not a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runtime._math import likeliest
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import Detokenizer, PieceDecoder
from runtime.model.tokenizer.token_bytes import TokenBytes
from runtime.scoring.scoring import window_log_probabilities

_BYTES = "bytes:"


class TextPlace(NamedTuple):
    """Where in a prompt's text one of its tokens is."""

    # of its first character, or of the character that its bytes are part of
    offset: int
    # its part of the prompt's text, "" for the later parts of a character
    text: str


class Token(NamedTuple):
    """One token of a prompt or a continuation."""

    id_: int
    # of its first character, or of the character that its bytes are part of
    offset: int
    # None for the first token of a prompt
    logprob: float | None
    # log-probabilities of the likeliest ids, and of this one
    top: Mapping[int, float]
    # the id that is shown before it
    before: int | None = None
    # its part of the text, where the id alone does not tell it
    text: str | None = None


class Alternative(NamedTuple):
    """A token that was likely at its place."""

    name: str
    bytes_: list[int] | None
    logprob: float


class TokenNames:
    r"""Names of tokens. The names of a text's tokens join to the text; each alternative has a name of its own.

    A part of a character is `bytes:\xe2\x82`, as OpenAI writes it. The name of a token that is not shown is "". Where
    alternatives have the same text or none, one has the text as its name. The others have their entry in the
    vocabulary, or `token_id:50300`.
    """

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._texts = TokenTexts(model)
        # characters of a token, at most
        self.longest = max(map(len, calls.vocabulary(model.tokenizer)))

    def name(self, token: Token) -> str:
        """The name of a token in its text."""
        name = self._texts.name(token.id_, token.before)
        return name if token.text is None or name.startswith(_BYTES) else token.text

    def bytes_of(self, token: Token) -> list[int] | None:
        """The bytes of a token in its text; None where it has none."""
        name = self.name(token)
        return self._texts.bytes_of(token.id_, name) if name else None

    def pieces(self, ids: Sequence[int]) -> list[str | list[int]]:
        """The text of each of several ids in a row; its bytes, where they are a part of a character."""
        pieces: list[str | list[int]] = []
        before: int | None = None
        for id_ in ids:
            name = self._texts.name(id_, before)
            values = self._texts.bytes_of(id_, name)
            try:
                pieces.append(bytes(values).decode())
            except UnicodeDecodeError:
                pieces.append(values)
            before = id_
        return pieces

    def alternatives(self, token: Token) -> list[Alternative]:
        """The likeliest tokens, and this one under its name in the text."""
        own = self.name(token)
        used = {own}
        found: list[Alternative] = []
        for id_, logprob in token.top.items():
            if id_ == token.id_:
                found.append(Alternative(own, self.bytes_of(token), logprob))
                continue
            text = self._texts.name(id_, token.before)
            names = (text, calls.token_of(self._tokenizer, id_), f"token_id:{id_}")
            name = next(name for name in names if name and name not in used)
            used.add(name)
            found.append(Alternative(name, self._texts.bytes_of(id_, text) if text else None, logprob))
        return found


class TokenTexts:
    """Texts of single tokens; special tokens are written out."""

    def __init__(self, model: Model) -> None:
        self._bytes = TokenBytes(model.tokenizer)
        self._written = Detokenizer(model.tokenizer, skip_special_tokens=False)

    def name(self, id_: int, before: int | None) -> str:
        """The text of a token after another one; its bytes, as `bytes:...`, where they are a part of a character."""
        values = self._bytes(id_)
        if values is not None and self._bytes.are_part_of_text(id_):
            try:
                return values.decode()
            except UnicodeDecodeError:
                return _BYTES + "".join(f"\\x{value:02x}" for value in values)
        if before is None:
            return self._written.decode([id_])
        return self._written.decode([before, id_])[len(self._written.decode([before])) :]

    def bytes_of(self, id_: int, name: str) -> list[int]:
        """The bytes of the token with this name."""
        return list((self._bytes(id_) or b"") if name.startswith(_BYTES) else name.encode())


class TokenReader:
    """Tokens of ids as they come, with their places in the text."""

    def __init__(self, model: Model, context: Sequence[int], offset: int, *, skip_special_tokens: bool = True) -> None:
        """`context`: the ids before the first; `offset`: the characters before them."""
        self._detokenizer = Detokenizer(model.tokenizer, skip_special_tokens=skip_special_tokens)
        self._decoder = PieceDecoder(model.tokenizer, context, skip_special_tokens=skip_special_tokens)
        self._texts = TokenTexts(model)
        self._offset = offset
        self._before = next(filter(self._detokenizer.shows, reversed(context)), None)

    def read(self, id_: int, logprob: float | None, top: Mapping[int, float]) -> Token:
        """The next token, with its log-probability and those of the likeliest ids."""
        offset = self._offset
        before = self._before
        piece = self._decoder.push(id_)
        self._offset += len(piece)
        shows = self._detokenizer.shows(id_)
        if shows and piece.endswith(name := self._texts.name(id_, before)):
            # the piece may begin with what was unfinished before this token
            offset = self._offset - len(name)
        if shows:
            self._before = id_
        if logprob is not None and id_ not in top:
            top = {**top, id_: logprob}
        return Token(id_, offset, logprob, top, before, None if shows else "")


def find_places(text: str, spans: Sequence[tuple[int, int]]) -> list[TextPlace]:
    """The places of a text's tokens: parts that join to the text.

    spans: begin and end of the characters of each token, as the tokenizer tells them.

    >>> find_places("a cat", [(0, 1), (1, 5)])
    [TextPlace(offset=0, text='a'), TextPlace(offset=1, text=' cat')]
    """
    places: list[TextPlace] = []
    done = 0
    last = max((at for at, (_, end) in enumerate(spans) if end), default=-1)
    for at, (begin, end) in enumerate(spans):
        # characters without a token, such as white space, go to the token after them; at the end, to the last one
        until = len(text) if at == last else max(done, end)
        is_later_part = begin < end <= done
        places.append(TextPlace(begin if is_later_part else done, text[done:until]))
        done = until
    return places


def read_prompt(model: Model, ids: Sequence[int], n_top: int, places: Sequence[TextPlace] = ()) -> list[Token]:
    """The tokens of a prompt with their log-probabilities given those before, in one pass.

    ids: at most n_positions + 1. n_top: how many likeliest ids each token comes with. places: of the tokens of a
    prompt that was given as a text; without them, the text is that of the ids, with special tokens written out.
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
